"""The graders of other projects give the letters that those projects give, faults included."""

from dataclasses import replace
from string import ascii_uppercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import no_hang

from medgrpo.graders import GRADERS, Grade, grade, grader_name, huatuo_readings
from medgrpo.types import LETTERS, Record, SettingsError

OTHERS = [name for name in GRADERS if name != "ours"]
# Chosen, with the refusal and the garbage, so that the cells hold in which the nearest option is taken: those depend on
# the texts. "Glandular ducts" are nearer to Pancreas than to Breast tissue, "<answer>b</answer>" too, "b)" is not.
TISSUES = ("Skin", "Breast tissue", "Liver", "Pancreas")


def record(options=TISSUES, answer="B", name="1", closed=False):
    return Record(id=name, problem="", question="", options=tuple(options), answer=answer, closed=closed)


def read(name, completion, question=None):
    (found,) = grade(name, [question or record()], [completion])
    return found


# What the same outputs are worth, gold B: output, then Med-R1, MedVLM-R1, MedVLThinker, MedEvalKit, VLMEvalKit before
# its judge, HuatuoGPT-o1 first and last. A letter where it is known, 1 right, 0 wrong or abstained, - abstained.
MATRIX = [
    ("<think>…</think>\n<answer>B</answer>", "1 1 1 1 - BB"),
    ("<answer>B)</answer>", "0 0 0 1 - BB"),
    ("<answer>B. Breast tissue</answer>", "0 0 1 1 B BB"),
    ("<answer>B) Breast tissue</answer>", "0 0 0 1 B BB"),
    ("<answer>Breast tissue</answer>", "0 0 1 1 B BB"),
    ("<answer>b</answer>", "0 0 1 1 - DD"),
    ("The answer is B.", "0 0 0 1 B BB"),
    ("The correct answer is **B**. Glandular ducts are seen.", "0 0 0 0 B BB"),
    ("so \\boxed{B}", "0 0 0 1 B BB"),
    ("<answer>A</answer> wait <answer>B</answer>", "0 0 0 0 - AB"),
    ("<think>maybe B but no</think><answer>A</answer>", "0 0 0 0 B BA"),
    ("<think>Not breast tissue.</think><answer>A</answer>", "0 0 0 0 B AA"),
    ("", "0 0 0 A - DD"),
    ("I don't know.", "0 0 0 A - AA"),
    ("????", "0 0 0 A - DD"),
    ("<think>It is either Skin or Breast tissue; the ducts suggest", "0 0 0 1 - BB"),
]


@pytest.mark.parametrize(("completion", "cells"), MATRIX)
def test_same_output_many_graders(completion, cells):
    *single, huatuo = cells.split()
    for name, cell in zip(("medr1", "medvlmr1", "medvlthinker", "medevalkit", "vlmevalkit"), single, strict=True):
        found = read(name, completion)
        assert found.correct == (cell in "1B"), name
        assert found.strict_correct == found.correct
        assert found.unparsed == (found.extracted is None)
        if cell in "-AB":
            assert (found.extracted or "-") == cell, name
    assert huatuo_readings(record(), completion) == tuple(huatuo)
    assert read("medevalkit", completion).extracted in tuple("ABCD")  # it never abstains
    best = "B" if "B" in huatuo else huatuo[0]
    assert read("huatuo", completion) == Grade(best, best == "B", best == "B", False)


# Gold C = "CT"; what the evaluation scripts of Med-R1 and MedVLM-R1 extract.
SEEDS = [
    ("<think>x</think>\n<answer> C </answer>", "C", "C"),
    ("<think>x</think>\n<answer>\nC\n</answer>", "C", "C"),
    ("<think>x</think>\n<answer>c</answer>", "c", None),
    ("<think>x</think>\n<answer>C)</answer>", None, None),
    ("<think>x</think>\n<answer>C.</answer>", None, None),
    ("<think>x</think>\n<answer>(C)</answer>", None, None),
    ("<think>x</think>\n<answer>C) CT</answer>", None, None),
    ("<think>x</think>\n<answer>CT</answer>", "CT", None),
    ("<think>x</think>\n\n<answer>C</answer>", "C", "C"),
    ("<think>x</think>\n<answer>C</answer>\n", "C", "C"),
    ("<think>x</think>\n<answer>C</answer> done", "C", "C"),
    ("<think>a</think> junk <think>b</think><answer>C</answer>", "C", "C"),
    ("<think>x</think>\n<answer>C</answer><answer>B</answer>", "C", "C"),
    ("<answer>C</answer>", "C", "C"),
    ("C", "C", None),  # Med-R1: by its later scripts, which take the whole output; the pattern alone finds nothing
    ("None\n\n<answer> C </answer>", "C", "C"),
    ("<think></think><answer></answer>", None, None),
]


@pytest.mark.parametrize(("completion", "medr1", "medvlmr1"), SEEDS)
def test_what_the_seeds_extract(completion, medr1, medvlmr1):
    question = record(("MRI", "X-ray", "CT", "Ultrasound"), "C")
    for name, taken in (("medr1", medr1), ("medvlmr1", medvlmr1)):
        right = taken == "C"
        assert read(name, completion, question) == Grade(taken, right, right, taken is None)


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("<think>…</think>\n<answer>B</answer>", "B"),
        ("<answer>B)</answer>", "B"),
        ("<answer>B. Breast tissue</answer>", "B"),
        ("<answer>B) Breast tissue</answer>", "B"),
        ("<answer>Breast tissue</answer>", "B"),
        ("<answer>b</answer>", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is **B**. Glandular ducts are seen.", "B"),
        ("so \\boxed{B}", "B"),
        ("<answer>A</answer> wait <answer>B</answer>", "B"),
        ("<think>maybe B but no</think><answer>A</answer>", "A"),
        ("<think>Not breast tissue.</think><answer>A</answer>", "A"),
        ("", None),
        ("I don't know.", None),
        ("????", None),
        ("<think>It is either Skin or Breast tissue; the ducts suggest", None),
        ("<answer>A or B</answer>", None),
        ("<answer>B", None),
    ],
)
def test_ours_reads_what_is_said_and_else_abstains(completion, extracted):
    found = read("ours", completion)
    assert (found.extracted, found.correct, found.unparsed) == (extracted, extracted == "B", extracted is None)


def test_ours_keeps_strict_apart():
    assert read("ours", "<answer>B</answer>") == Grade("B", True, True, False)
    assert read("ours", "so \\boxed{B}") == Grade("B", True, False, False)
    assert read("ours", "<answer>A</answer> wait <answer>B</answer>") == Grade("B", True, False, False)


def test_ours_reads_open_answers():
    opened = record((), "Left lung")
    assert read("ours", "<answer>left lung.</answer>", opened).correct
    assert read("ours", "<answer>heart</answer>", opened) == Grade("heart", False, False, False)
    assert read("ours", "", opened) == Grade(None, False, False, True)
    closed = record((), "yes", closed=True)
    assert read("ours", "<answer>Yes</answer>", closed).correct
    assert read("ours", "<answer>yes and no</answer>", closed).unparsed


def test_medr1_takes_a_bare_letter_only_where_the_word_answer_is_not_said():
    assert read("medr1", "B").extracted == "B"
    assert read("medr1", "B.").unparsed
    assert read("medr1", "E").unparsed
    assert read("medr1", "answer B").unparsed
    assert read("medr1", "<think><answer>A</answer></think><answer>B</answer>").extracted == "A"


def test_medvlthinker_takes_letter_label_or_text_of_the_first_block_or_of_all():
    twice = "<answer>b</answer><answer>A</answer>"
    for said in ("b. BREAST tissue", "Breast Tissue", "b", "<answer>\nB\n</answer>", twice):
        assert read("medvlthinker", said).correct, said
    assert read("medvlthinker", "<answer>tumour</answer>") == Grade("tumour", False, False, False)
    for said in ("tumour", "<answer></answer>", "<answer>B"):
        assert read("medvlthinker", said) == Grade(None, False, False, True), said


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("b\n\nLiver, I mean.", "B"),
        ("Some thoughts: liver\n\nB. Liver", "B"),
        ("\\boxed{A} no, \\boxed{{}liver}", "C"),
        ("\\boxed{\\text{B}}", "C"),  # "\text{b}" is nearest to Liver
        ("\\boxed{ c }", "C"),
        ("\\boxed{C", "D"),  # the word "none" is nearest to Pancreas
        ("it is boxed: B", "D"),
        ("the answer is C and the final answer: B", "B"),
        ("Final answer B", "B"),
        ("**Answer**: C. Because", "C"),
        ("Answer: C", "C"),
        ("答案: C", "C"),
        ("answer is liver", "C"),
        ("it shows:liver. Not skin", "C"),
        ("breast\n tissue:\nc", "C"),
        ("<answer>A</answer> wait <answer>B</answer>", "D"),  # "a b" is nearest to Pancreas
        ("it shows: d", "B"),  # " d" is no letter, and all of it is nearest to Breast tissue
        ("<answer></answer>", "D"),  # an empty block is no block, and all of it is nearest
    ],
)
def test_medevalkit_rules_in_order(completion, letter):
    assert read("medevalkit", completion).extracted == letter


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("(B)", "B"),
        ("B is it", "B"),
        ("B with ducts and lobules", None),  # five tokens, and the letter is not among the last four
        ("It is B. or A", None),
        ("The answer is **D**, with ducts and lobules and much else to see", "D"),
        ("the Answer  is a mass", "A"),
        ("I see ducts and lobules of a pancreas", "D"),
        ("I see no ducts and no lobules, so I think that a pancreas is likely", None),  # longer than 58
    ],
)
def test_vlmevalkit_rules_in_order(completion, letter):
    assert read("vlmevalkit", completion).extracted == letter


@pytest.mark.parametrize(
    ("completion", "letters"),
    [
        ("The answer is A, no, the answer is C", "AC"),
        ("The answer is Not clear, so C", "NN"),
        ("A. B and *D*", "AD"),
        ("A mass, B", "BB"),  # "A " is an article
        ("B C", "BB"),  # they share the space
        ("选C项", "CC"),
        ("skin, then liver, then skin", "CA"),  # first: the one mentioned for the first time last
        ("A or B\n## Final Response\n\nI take D.", "DD"),
    ],
)
def test_huatuo_rules_in_order(completion, letters):
    assert huatuo_readings(record(), completion) == tuple(letters)


def test_huatuo_reports_the_reading_that_is_better_on_the_whole_list():
    first, last = "(A) or (B)", "(B) or (A)"
    texts = [first, first, last]
    assert [g.extracted for g in grade("huatuo", [record(name=n) for n in "123"], texts)] == ["B", "B", "A"]
    texts = [first, last, last]
    assert [g.extracted for g in grade("huatuo", [record(name=n) for n in "123"], texts)] == ["A", "B", "B"]
    texts = [first, last]
    assert [g.extracted for g in grade("huatuo", [record(name=n) for n in "12"], texts)] == ["A", "B"]


def test_huatuo_takes_the_better_reading_of_each_data_set():
    first, last = "(A) or (B)", "(B) or (A)"
    questions = [replace(record(name=str(i)), dataset=name) for i, name in enumerate(("x", "y", "x", "y", "y"))]
    found = grade("huatuo", questions, [first, last, first, last, first])
    assert [g.extracted for g in found] == ["B", "B", "B", "B", "A"]  # one list would take all the first: A B A B A


@pytest.mark.parametrize("name", GRADERS)
def test_options_with_and_without_their_letters_are_graded_alike(name):
    labelled = record([f"{letter}) {text}" for letter, text in zip("ABCD", TISSUES, strict=True)])
    for completion, _ in MATRIX:
        assert read(name, completion, labelled) == read(name, completion), completion


def test_medvlthinker_ignores_white_space_around_a_text():
    assert read("medvlthinker", "<answer>B. MRI</answer>", record(("CT ", "MRI "))).correct


@pytest.mark.parametrize("name", ["medevalkit", "medvlthinker"])
def test_of_equal_option_texts_the_right_one_counts(name):
    doubled = record(("CT", "MRI", "CT"), "C")
    assert read(name, "<answer>ct</answer>", doubled).correct
    assert read(name, "<answer>ct</answer>", replace(doubled, answer="B")).extracted == "A"


def test_grades_are_in_order_of_the_records():
    questions = [record(name="1"), record(name="2", answer="A")]
    for name in GRADERS:
        found = grade(name, questions, ["<answer>B</answer>", "<answer>B</answer>"])
        if name != "vlmevalkit":
            assert [g.correct for g in found] == [True, False], name
        assert grade(name, [], []) == []
        with pytest.raises(ValueError, match="zip"):
            grade(name, questions, ["<answer>B</answer>"])


@pytest.mark.parametrize(
    ("spelled", "name"),
    [("Med-R1", "medr1"), ("MedVLM_R1", "medvlmr1"), ("MedVLThinker", "medvlthinker"), ("MedEvalKit", "medevalkit"),
     ("VLM Eval Kit", "vlmevalkit"), ("HuatuoGPT-o1", "huatuo"), ("huatuo", "huatuo"), ("Our s-Grader", "ours")],
)  # fmt: skip
def test_names_in_any_spelling(spelled, name):
    assert grader_name(spelled) == name
    assert grader_name(name) == name


@pytest.mark.parametrize("name", ["", "lmms-eval", "HuatuoGPT-Vision", "med"])
def test_a_name_that_is_none_lists_those_that_are(name):
    with pytest.raises(SettingsError, match="ours, medr1, medvlmr1, medvlthinker, medevalkit, vlmevalkit, huatuo"):
        grade(name, [], [])


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_refuse_open_questions(name):
    with pytest.raises(SettingsError, match=r"1 of 2 have none, the first is 'q7'.*grader ours"):
        grade(name, [record(), record((), "lung", name="q7")], ["", ""])


PIECES = st.sampled_from(
    ["<answer>", "</answer>", "<think>", "</think>", "answer is ", "Answer: ", "\\boxed{", "{", "}", "boxed", "\n\n",
     "\n", " ", ".", ":", "*", "A", "b", "C.", "J", "N", "Z", "skin", "breast tissue", "## Final Response\n\n",
     "选", "İ"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)
OPTIONS = st.lists(st.sampled_from(["Skin", "A", "", "İ", "b", "None"]) | st.text(max_size=9), min_size=2, max_size=10)


@settings(deadline=None)
@given(OPTIONS, TEXTS, st.data())
def test_no_grader_fails_and_what_it_takes_is_an_option_or_a_text(options, text, data):
    question = record(options, data.draw(st.sampled_from(LETTERS[: len(options)])))
    for name in GRADERS:
        found = read(name, text, question)
        assert found.unparsed == (found.extracted is None)
        assert found.correct <= (found.extracted == question.answer)
        assert found.extracted != ""
        if name in ("ours", "vlmevalkit"):
            assert found.extracted is None or found.extracted in question.letters
        if name == "huatuo":
            assert found.extracted in ascii_uppercase
        if name == "medevalkit":
            assert found.extracted in question.letters


REFUSALS = st.sampled_from(["I", " cannot", " tell", "?", "!", " \n", "sorry, ", "<think>", "</think>", "0", "%"])


@settings(deadline=None)
@given(st.lists(REFUSALS))
def test_ours_credits_no_refusal(pieces):
    for answer in "ABCD":
        assert read("ours", "".join(pieces), record(answer=answer)) == Grade(None, False, False, True)


MANY_CHARACTERS = "".join(map(chr, range(97, 297)))


@pytest.mark.parametrize(
    "unit",
    ["<answer>", "</answer>", "<answer>B ", "<answer> \n", "<answer>B", "\\boxed{", "{", " ", "a", "B", "B ", "*",
     "\n\n", "answer is ", "answer is **", "answer ", "breast ", "breast tissue", "skin liver ", "选",
     MANY_CHARACTERS],
)  # fmt: skip
@pytest.mark.parametrize("name", GRADERS)
def test_long_outputs_come_to_an_end(name, unit):
    text = unit * (100_000 // len(unit))
    with no_hang():
        read(name, text)
        read(name, "<answer>" + text)
        read(name, "answer is" + text + "<answer>B")
