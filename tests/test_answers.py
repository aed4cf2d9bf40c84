"""The extractor reads what is said and abstains otherwise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.answers import Answer, extract, is_correct, verdict
from medgrpo.types import LETTERS, Record

OPTIONS = ("MRI", "X-ray", "CT", "Ultrasound")


def record(options=OPTIONS, answer="C"):
    return Record(id="1", problem="", question="", options=tuple(options), answer=answer)


def block(text, options=OPTIONS):
    return extract(f"<answer>{text}</answer>", options)


@pytest.mark.parametrize(
    "text",
    ["C", "c", "(C)", "(c)", "C.", "C)", "C:", "C) CT", "C)CT", "C. CT", "C: CT", "(C) CT", "c) ct.", "C) CT.",
     "CT", "ct", "CT.", " CT ", "\nC\n", "C)\n  CT"],
)  # fmt: skip
def test_names_option_c(text):
    assert block(text) == Answer("", text.strip(), "C", "parsed")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("E", "letter not offered"),
        ("(J)", "letter not offered"),
        ("z.", "letter not offered"),
        ("E) CT", "letter not offered"),
        ("A, C", "two options"),
        ("A and C", "two options"),
        ("A/C", "two options"),
        ("C D", "two options"),
        ("AC", "no option matches"),
        ("C) MRI", "two options"),
        ("CT or MRI", "two options"),
        ("C) CT, D) Ultrasound", "two options"),
        ("C because of the ring artefact", "no option matches"),
        ("C CT", "no option matches"),
        ("C) CT scan", "no option matches"),
        ("C) a slice", "no option matches"),
        ("A CT scan", "two options"),
        ("CT scan", "no option matches"),
        ("C..", "no option matches"),
        ("(C", "no option matches"),
        ("the third", "no option matches"),
        ("3", "no option matches"),
        (".", "no option matches"),
    ],
)
def test_abstains(text, reason):
    assert block(text) == Answer("", text.strip(), None, "unparsed", reason)


@pytest.mark.parametrize(
    "completion", ["", "C", "<answer>C", "C</answer>", "</answer>C<answer>", "<answer>C<answer>", "<think>x</think>C"]
)
def test_no_closed_block(completion):
    answer = extract(completion, OPTIONS)
    assert (answer.text, answer.choice, answer.reason) == (None, None, "no closed answer block")


@pytest.mark.parametrize(
    ("completion", "reasoning"),
    [
        ("<think>x</think><answer>C</answer>", "x"),
        ("<THINK>\nx\n</Think>\n\n<Answer>\nC\n</ANSWER> done", "x"),
        ("<answer>C</answer><think>x</think>", "x"),
        ("<answer>C</answer><think>x", "x"),
        ("<think><answer>A</answer></think><answer>C</answer>", "<answer>A</answer>"),
        ("<answer>C</answer><think>not <answer>A</answer></think>", "not <answer>A</answer>"),
        ("<answer>C</answer><think>not <answer>A</answer>", "not <answer>A</answer>"),
        ("x <answer>A</answer></think><answer>C</answer>", "x <answer>A</answer>"),
        ("<think>a</think> b <think>c</think><answer>C</answer>", "a\nc"),
        ("<think>a <think>b</think><answer>C</answer>", "a <think>b"),
        ("<answer>A</answer><answer>C</answer>", ""),
        ("<answer>A</answer><answer>C</answer><answer>B", ""),
        ("<answer><answer>C</answer></answer>", ""),
    ],
)
def test_reads_the_last_closed_block_outside_the_reasoning(completion, reasoning):
    answer = extract(completion, OPTIONS)
    assert (answer.choice, answer.reasoning) == ("C", reasoning)


@pytest.mark.parametrize(
    "completion",
    [
        "<think><answer>C</answer></think>",
        "<think><answer>C</answer>",
        "<answer>C</answer></think>",
        "<answer>C</answer><think>x</think></think>",
        "<think>x</think><think><answer>C</answer>",
        "<think>x<think>y</think><answer>C</answer></think>",
        "<answer>C<think>x</think></answer>",
        "<answer><think>x</think>C</answer>",
        "<ans<think>x</think>wer>C</answer>",
    ],
)
def test_never_reads_inside_or_across_the_reasoning(completion):
    assert extract(completion, OPTIONS).reason == "no closed answer block"


def test_the_last_block_counts_even_when_it_says_nothing():
    assert extract("<answer>C</answer><answer></answer>", OPTIONS).reason == "empty"


def test_same_text_twice_is_ambiguous_unless_a_letter_decides():
    options = ("SPECT", "Ultrasound", "spect.")
    assert block("SPECT", options).reason == "two options"
    assert block("C) SPECT", options).choice == "C"
    assert block("A", options).choice == "A"


def test_an_option_that_looks_like_a_letter():
    options = ("B", "A", "C", "E")
    assert block("A", options).reason == "two options"  # letter A, or the text of B
    assert block("C", options).choice == "C"  # both readings agree
    assert block("D", options).choice == "D"
    assert block("E", options).choice == "D"  # not offered as a letter, so only the text can be meant
    assert block("A) B", options).choice == "A"
    assert block("A) A", options).choice is None


def test_an_option_that_looks_labelled():
    options = ("C. difficile", "E. coli", "S. aureus", "None")
    assert block("C. difficile", options).choice == "A"
    assert block("E. coli", options).choice == "B"
    assert block("A) C. difficile", options).choice == "A"
    assert block("C. difficile", ("C. difficile", "x", "difficile")).reason == "two options"


def test_text_with_pattern_characters_and_white_space():
    options = ("T2 (axial) [1.5 T]", "a+b\u00a0 c")
    assert block("t2 (axial)\n[1.5 T].", options).choice == "A"
    assert block("A+B C", options).choice == "B"


@settings(deadline=None)
@given(st.integers(2, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, 9))))
def test_items_of_two_to_ten_options(case):
    count, index = case
    options = tuple(f"finding {i}" for i in range(count))
    answer = block(LETTERS[index], options)
    assert answer.choice == (LETTERS[index] if index < count else None)
    assert answer.reason == ("" if index < count else "letter not offered")


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "A", "C", "CT", ")", ".", " ", "\n", "x"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=16).map("".join), st.sampled_from([OPTIONS, ()]))
def test_answers_are_consistent(completion, options):
    answer = extract(completion, options)
    assert extract(completion.replace("think", "THINK").replace("answer", "Answer"), options).choice == answer.choice
    assert extract(f"<think>{completion}", options).choice is None or "</think>" in completion
    assert (answer.status == "unparsed") == bool(answer.reason)
    assert (answer.choice is not None) == (answer.status == "parsed" and bool(options))
    assert answer.choice is None or answer.choice in LETTERS[: len(options)]


@pytest.mark.parametrize("count", [1, 11])
def test_number_of_options(count):
    with pytest.raises(ValueError, match=f"2 to 10, got {count}"):
        block("A", ["x"] * count)


def test_open_question():
    gold = record(options=(), answer="Left lung.")
    assert extract("<answer> left  lung </answer>", ()) == Answer("", "left  lung", None, "parsed")
    assert verdict(gold, "<answer> left  lung </answer>") == "right"
    assert verdict(gold, "<answer>lung</answer>") == "wrong"
    assert verdict(gold, "<answer> </answer>") == "unparsed"


def test_unparsed_apart_from_wrong():
    assert verdict(record(), "<answer>C</answer>") == "right"
    assert verdict(record(), "<answer>B</answer>") == "wrong"
    assert verdict(record(), "<answer>B or C</answer>") == "unparsed"
    assert is_correct(block("CT"), record())
    assert not is_correct(block("MRI"), record())
    assert not is_correct(block("E"), record())
    assert not is_correct(block(""), record(options=(), answer=""))
