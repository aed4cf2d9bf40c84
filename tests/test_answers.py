"""The extractor reads what is said and abstains otherwise."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medgrpo.answers import Answer, extract, f1, is_correct, plain_options, verdict
from medgrpo.types import LETTERS, Record
from tests.patience import no_hang

OPTIONS = ("MRI", "X-ray", "CT", "Ultrasound")


def record(options=OPTIONS, answer="C"):
    return Record(id="1", problem="", question="", options=tuple(options), answer=answer)


def block(text, options=OPTIONS):
    answer = extract(f"<answer>{text}</answer>", options)
    assert extract(f"<answer>{text}</answer>", options, "lenient") == answer
    return answer


def lenient(completion, options=OPTIONS):
    return extract(completion, options, "lenient")


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
    "text",
    ["**C**", "*C*", "__C__", "`C`", '"C"', "“C”", "$C$", "**C.**", "**(C)**", "**CT**", '"CT."', "**C)** CT",
     "**C) CT**", "Option C", "option c.", "Choice C", "Option C: CT", "**Option C**", "C - CT", "C – ct.", "C, CT",
     "C (CT)", "C (CT).", "(C). CT", "CT (C)", "ct (c)."],
)  # fmt: skip
def test_marks_and_the_word_option_are_no_part_of_the_choice(text):
    assert block(text) == Answer("", text, "C", "parsed")
    assert block(text, ("MRI", "X-ray", "SPECT", "Ultrasound")).choice == (None if "ct" in text.lower() else "C")


@pytest.mark.parametrize(
    "text",
    ["**A** or **C**", "**A** **C**", '"A" "C"', "*A* and *C*", "Option A or C", "Options C", "Option A, option C",
     "C - MRI", "C, MRI", "C, D", "C (MRI)", "CT (A)", "CT, MRI", "not C", "**not C**", "not option C", "Option E",
     "C*", "CT*", "*CT", '"C', "$", "**", "****", '""', "option", "Option", "C?", "maybe C", "C - ", "C - CT scan",
     "C, because of the ring", "The answer is C", "**C** is wrong"],
)  # fmt: skip
def test_marks_do_not_make_a_choice_of_what_is_none(text):
    assert (block(text).choice, block(text).status) == (None, "unparsed")


def test_the_text_as_it_stands_comes_before_the_text_without_marks():
    assert block("T2*", ("T2", "T2*")).choice == "B"
    assert block('"T2"', ("T2", '"T2"')).choice == "B"
    assert block("Option A", ("Option B", "Option A")).reason == ""
    assert block("Option A", ("Option B", "Option A")).choice == "B"
    assert block("E. coli", ("E. coli", "coli", "x", "y", "none")).choice == "A"


@pytest.mark.parametrize(
    "labelled", [("A) cyst", "B) mass"), ("A. cyst", "B. mass"), ("(a) cyst", "(b)mass"), ("A: cyst", "B:mass")]
)
def test_options_that_carry_their_letters(labelled):
    assert plain_options(labelled) == ("cyst", "mass")
    for said in ("B", "mass", "B) mass", "B. mass", "(B) mass", "b: MASS", labelled[1]):
        assert block(said, labelled).choice == "B"
    assert block("B) cyst", labelled).choice is None
    assert lenient("The answer is a mass.", labelled).choice == "B"


@pytest.mark.parametrize(
    "options",
    [("A) cyst", "mass"), ("B) cyst", "A) mass"), ("A) cyst", "B)"), ("Cyst", "Mass"), ("E. coli", "B. fragilis"), ()],
)
def test_options_without_their_own_letters_stay(options):
    assert plain_options(options) == options


BARE = ["C", "C.", "(C)", "**C**", "CT", "ct.", "C) CT", "Option C", "<think>x</think>C", "C\n<think>A</think>"]


@pytest.mark.parametrize("completion", BARE)
def test_a_completion_that_is_nothing_but_an_answer_is_read_by_the_lenient_rule(completion):
    assert lenient(completion).choice == "C"
    assert extract(completion, OPTIONS).reason == "no closed answer block"


@pytest.mark.parametrize(
    "completion", ["", "E", "A or C", "C D", "a CT", "It is CT", "CT shows it", "C\n\nB", "C<think>x</think>B", "x) C"]
)
def test_any_more_than_an_answer_is_not_read(completion):
    assert lenient(completion).reason == "no closed answer block"


@pytest.mark.parametrize("text", [r"\boxed{C}", "[C]", r"\boxed{C) CT}", "[ CT ]"])
def test_boxes_and_brackets_around_the_whole_block_are_marks(text):
    assert block(text).choice == "C"


def test_the_correct_option():
    assert lenient("The correct option is C.").choice == "C"
    assert lenient("The correct choice is B, not C.").choice == "B"
    assert lenient("Each option is A or C.").choice is None


@pytest.mark.parametrize("completion", ["", "<answer>C", "C</answer>", "</answer>C<answer>", "<answer>C<answer>"])
@pytest.mark.parametrize("rule", ["strict", "lenient"])
def test_no_closed_block(completion, rule):
    answer = extract(completion, OPTIONS, rule)
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
    ],
)
@pytest.mark.parametrize("rule", ["strict", "lenient"])
def test_reads_the_block_outside_the_reasoning(completion, reasoning, rule):
    answer = extract(completion, OPTIONS, rule)
    assert (answer.choice, answer.reasoning) == ("C", reasoning)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("<answer>A</answer><answer>C</answer>", "several answer blocks"),
        ("<answer>C</answer> wait <answer>C</answer>", "several answer blocks"),
        ("<answer>A</answer><answer>C</answer><answer>B", "several answer blocks"),
        ("<answer>A</answer><think>x</think><answer>C</answer>", "several answer blocks"),
        ("<answer><answer>C</answer></answer>", "stray answer tag"),
        ("<answer>C</answer><answer>B", "stray answer tag"),
        ("A</answer> <answer>C</answer>", "stray answer tag"),
        ("<ans<think>x</think>wer>A</answer><answer>C</answer>", "stray answer tag"),
    ],
)
def test_only_the_lenient_rule_takes_the_last_of_several_blocks(completion, reason):
    strict = extract(completion, OPTIONS, "strict")
    assert (strict.status, strict.choice, strict.reason) == ("unparsed", None, reason)
    assert extract(completion, OPTIONS) == strict
    assert lenient(completion).choice == "C"


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
@pytest.mark.parametrize("rule", ["strict", "lenient"])
def test_never_reads_inside_or_across_the_reasoning(completion, rule):
    assert extract(completion, OPTIONS, rule).reason == "no closed answer block"


def test_the_last_block_counts_even_when_it_says_nothing():
    assert lenient("<answer>C</answer><answer></answer>").reason == "empty"
    assert lenient(r"<answer></answer> The answer is C. \boxed{C}").reason == "empty"
    assert lenient(r"<answer>A or B</answer> The answer is C. \boxed{C}").reason == "two options"


@pytest.mark.parametrize(
    "tail", [" The answer is C.", r" so \boxed{C}", " Answer: C", " C", "<think>x</think> The answer is C."]
)
@pytest.mark.parametrize("head", ["<answer>C", "<answer>", "C</answer>", "<ANSWER> <answer> C"])
def test_where_a_block_is_not_closed_nothing_is_read(head, tail):
    for completion in (head + tail, tail + head):
        assert lenient(completion).status == "unparsed"


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


@pytest.mark.parametrize(
    "completion",
    [
        r"so \boxed{C}",
        r"$\boxed{C}$",
        r"\boxed {C}",
        r"\boxed{c.}",
        r"\boxed{\text{C}}",
        r"\boxed{ \textbf{(C)} }",
        r"\boxed{\mathbf {C}}",
        r"\boxed{\text{\textbf{C)} CT}}",
        r"\boxed{\text{C. } \text{CT}}",
        r"\boxed{CT}",
        r"\boxed{\boxed{C}}",
        r"\boxed{A} no, \boxed{C}",
        r"The answer is A. \boxed{C} The answer is B.",
        r"<think>\boxed{A}</think>\boxed{C}",
        r"\boxed{C}<think>\boxed{A}",
    ],
)
def test_lenient_reads_the_last_box(completion):
    assert lenient(completion).choice == "C"
    assert extract(completion, OPTIONS).reason == "no closed answer block"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (r"\boxed{}", "empty"),
        (r"\boxed{\text{}}", "empty"),
        (r"\boxed{A, C}", "two options"),
        (r"\boxed{A} \boxed{B or C}", "two options"),
        (r"\boxed{E}", "letter not offered"),
        (r"\boxed{\frac{1}{2}}", "no option matches"),
        (r"\boxed{C", "box not closed"),
        (r"\boxed{C} then \boxed{\text{A}", "box not closed"),
        (r"The answer is C. \boxed{C\}", "box not closed"),
        (r"<think>\boxed{C}</think>", "no closed answer block"),
        (r"<think>\boxed{C}", "no closed answer block"),
        (r"\boxed{C}</think>", "no closed answer block"),
        (r"\boxed{<think>x</think>C}", "box not closed"),
        (r"\boxed C", "no closed answer block"),
    ],
)
def test_lenient_abstains_on_a_box(completion, reason):
    assert (lenient(completion).choice, lenient(completion).reason) == (None, reason)


@pytest.mark.parametrize(
    "line",
    [
        "The answer is C.",
        "the answer is c",
        "The answer is: C",
        "The answer is **C**. The others are not.",
        "The **answer** is *C*",
        "The answer is (C).",
        "The answer is C)",
        'The answer is "C".',
        "The answer is $C$.",
        "The answer is `C`",
        "The answer is option C.",
        "The answer is most likely C.",
        "The answer is C!",
        "The answer is C. A and B are wrong.",
        "The answer is C because A is not seen.",
        "The answer is C, since A, B and D are not.",
        "The answer is C (because of the ring)",
        "The answer is C, not A.",
        "The answer is C rather than A",
        "The answer is C, which is fast.",
        "The answer is C) CT",
        "The answer is C. CT.",
        "The answer is (C) CT, because of the ring",
        "The answer is C, CT.",
        "The answer is C - CT",
        "The answer is **C:** CT",
        "The answer is C (CT).",
        "The answer is C. CT is fast.",
        "The answer is C. MRI would be slow.",
        "The answer is CT.",
        "The answer is a CT.",
        "The answer is the CT (C).",
        "The answer is A CT.",
        "The answer is ct because of the ring",
        "The correct answer is C.",
        "The only correct answer is C.",
        "My final answer is C",
        "The most likely answer is C",
        "The answer to the question is C",
        "So answer is C",
        "Answer is C",
        "Answer: C",
        "**Answer:** C",
        "**Answer**: C) CT",
        "Final answer: C",
        "Answer:\n\n**C**\n",
        "### Final Answer\n**C**",
        "### Final answer\n\nC. CT",
        "It is not A, the answer is C.",
        "If so, the answer is C.",
        "This is not A so the answer is C",
        "The answer is A. No: the answer is C.",
        "The answer is A.\n\nFinal answer: C\nThank you.",
        "The answer is C. The wrong answer is A.",
        "<think>The answer is A.</think> The answer is C.",
        "The answer is C. <think>The answer is A.",
        "The answer is A.</think>The answer is C.",
        "The answer is A. <think>x</think> The answer is C.",
    ],
)
def test_lenient_reads_what_the_last_phrase_names(line):
    assert lenient(line).choice == "C"
    assert lenient(f"It is A or B. {line}\n").choice == "C" or "</think>" in line or line[0] == "#"
    assert extract(line, OPTIONS).reason == "no closed answer block"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("The answer is A or B", "two options"),
        ("The answer is A. Or B.", "two options"),
        ("The answer is C/D", "two options"),
        ("The answer is C and D", "two options"),
        ("The answer is C, D", "two options"),
        ("The answer is C as well as D", "two options"),
        ("The answer is either C or D", "two options"),
        ("The answer is CT or MRI", "two options"),
        ("The answer is C) MRI", "two options"),
        ("The answer is C. MRI.", "two options"),
        ("The answer is CT (A)", "two options"),
        ("The answer is E. CT", "two options"),
        ("The answer is A B", "two options"),
        ("The answer is E.", "letter not offered"),
        ("The answer is not C", "no option matches"),
        ("The answer is neither C", "no option matches"),
        ("The answer is C?", "no option matches"),
        ("The answer is C...", "no option matches"),
        ("The answer is C is wrong", "no option matches"),
        ("The answer is C, which is wrong", "no option matches"),
        ("The answer is C CT", "no option matches"),
        ("The answer is CT scan", "no option matches"),
        ("The answer is a scan", "no option matches"),
        ("The answer is . C", "no option matches"),
        ("The answer is in the picture: C", "no option matches"),
        ("The answer is C. The answer is unclear.", "no option matches"),
        ("The answer is", "empty"),
        ("Answer:", "empty"),
        ("The answer is C. Answer:", "empty"),
        ("I don't think the answer is C.", "phrase in doubt"),
        ("It is not clear whether the answer is C", "phrase in doubt"),
        ("Fine, if the answer is C", "phrase in doubt"),
        ("The answer isn't C", "phrase in doubt"),
        ("The answer could be C", "phrase in doubt"),
        ("The answers are A and C", "phrase in doubt"),
        ("I cannot determine the answer: the image is blank. C", "phrase in doubt"),
        ("I cannot answer this: C", "no closed answer block"),
        ("The wrong answer is C", "no closed answer block"),
        ("The patient's answer: C", "no closed answer block"),
        ("The answer <think>x</think> is C", "no closed answer block"),
        ("<think>The answer is C", "no closed answer block"),
        ("<think>x</think><think>The answer is C</think>", "no closed answer block"),
        ("The answer is C.</think>", "no closed answer block"),
        ("Is it C?\nC, CT, (C) or C. CT", "no closed answer block"),
        ("Final C", "no closed answer block"),
        ("I am sorry, but I cannot give medical advice.", "no closed answer block"),
        ("asdf ;;; C 1 {", "no closed answer block"),
        (" \n", "no closed answer block"),
    ],
)
def test_lenient_abstains_without_a_clear_phrase(completion, reason):
    assert (lenient(completion).choice, lenient(completion).reason) == (None, reason)


def test_an_article_is_no_letter():
    options = ("lesion", "abscess", "cyst", "a cyst wall")
    assert lenient("The answer is a cyst.", options).choice == "C"
    assert lenient("The answer is a cyst because of a rim.", options).choice == "C"
    assert lenient("The answer is a cyst wall.", options).choice == "D"
    assert lenient("The answer is an abscess.", options).choice == "B"
    assert lenient("The answer is a tumour.", options).choice is None
    assert lenient("The answer is a.", options).choice == "A"
    assert lenient("The answer is A B.", ("B", "A")).choice is None


def test_of_a_phrase_the_longest_reading_counts():
    options = ("E. coli", "coli", "likely benign", "benign", "None")
    assert lenient("The answer is E. coli.", options).choice is None  # A, or E with the text of B
    assert lenient("The answer is E. coli.", ("x", *options[:1], "y", "z", "w")).choice == "B"
    assert lenient("The answer is likely benign.", options).choice == "C"
    assert lenient("The answer is probably benign.", options).choice == "D"
    assert lenient("The answer is C, benign because of x.", options).choice is None
    assert lenient("The answer is A.", ("B", "A")).choice is None
    assert lenient("The answer is C) SPECT", ("SPECT", "x", "spect.")).choice == "C"
    assert lenient("The answer is SPECT", ("SPECT", "x", "spect.")).reason == "two options"


BREAST = ("Skin", "Breast tissue", "Lung", "Liver")
# Outputs that seven published graders disagree about, gold B: strict, lenient.
GRADED = [
    ("<think>The lobules are seen.</think>\n<answer>B</answer>", "B", "B"),
    ("<answer>B)</answer>", "B", "B"),
    ("<answer>B. Breast tissue</answer>", "B", "B"),
    ("<answer>B) Breast tissue</answer>", "B", "B"),
    ("<answer>Breast tissue</answer>", "B", "B"),
    ("<answer>b</answer>", "B", "B"),
    ("The answer is B.", None, "B"),
    ("The correct answer is **B**. Glandular tissue and ducts are seen.", None, "B"),
    (r"so \boxed{B}", None, "B"),
    ("<answer>A</answer> wait <answer>B</answer>", None, "B"),
    ("<think>maybe B but no</think><answer>A</answer>", "A", "A"),
    ("<think>Not breast tissue.</think><answer>A</answer>", "A", "A"),
    ("", None, None),
    ("I'm sorry, but I can't help with medical images.", None, None),
    ("!!!! 0x1f the the the", None, None),
    ("The picture could be Skin. Then again, Breast tissue shows lobules, and the", None, None),
    ("<think>The picture could be Skin. The answer is Breast tissue, as", None, None),
]


@pytest.mark.parametrize("row", GRADED, ids=lambda row: repr(row[0]))
def test_outputs_that_graders_disagree_about(row):
    completion, strict, lenient_choice = row
    assert extract(completion, BREAST).choice == strict
    assert lenient(completion, BREAST).choice == lenient_choice
    says = {None: "unparsed", "B": "right", "A": "wrong"}
    assert verdict(record(BREAST, "B"), completion) == says[strict]
    assert verdict(record(BREAST, "B"), completion, "lenient") == says[lenient_choice]


THINK = "<think>x</think>"
# Completions that the rewards of the seed projects disagree about, gold C: strict, lenient.
EDGES = [
    (THINK + "\n<answer> C </answer>", "C", "C"),
    (THINK + "<answer>\nC\n</answer>", "C", "C"),
    (THINK + "<answer>c</answer>", "C", "C"),
    (THINK + "<answer>C)</answer>", "C", "C"),
    (THINK + "<answer>C.</answer>", "C", "C"),
    (THINK + "<answer>(C)</answer>", "C", "C"),
    (THINK + "<answer>C) CT</answer>", "C", "C"),
    (THINK + "<answer>CT</answer>", "C", "C"),
    (THINK + "\n\n<answer>C</answer>", "C", "C"),
    (THINK + "<answer>C</answer>\n", "C", "C"),
    (THINK + "<answer>C</answer> done", "C", "C"),
    ("<think>a</think> junk <think>b</think><answer>C</answer>", "C", "C"),
    (THINK + "<answer>C</answer><answer>B</answer>", None, "B"),
    ("<answer>C</answer>", "C", "C"),
    ("C", None, "C"),
    ("None\n\n<answer> C </answer>", "C", "C"),
    ("<think></think><answer></answer>", None, None),
]


@pytest.mark.parametrize("row", EDGES, ids=lambda row: repr(row[0]))
def test_edge_matrix(row):
    completion, strict, lenient_choice = row
    assert (extract(completion, OPTIONS).choice, lenient(completion).choice) == (strict, lenient_choice)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "A", "C", "CT", ")", ".", " ", "\n", "x", r"\boxed{", "}",
          "The answer is ", "Answer: ", " not ", " or ", "yes", "no"]  # fmt: skip
COMPLETIONS = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)
OFFERS = st.sampled_from([OPTIONS, ()])


@settings(deadline=None)
@given(COMPLETIONS, OFFERS, st.sampled_from(["strict", "lenient"]))
def test_answers_are_consistent(completion, options, rule):
    answer = extract(completion, options, rule)
    upper = completion.replace("think", "THINK").replace("<answer", "<Answer")
    assert extract(upper, options, rule).choice == answer.choice
    assert (answer.status == "unparsed") == bool(answer.reason)
    assert (answer.choice is not None) == (answer.status == "parsed" and bool(options))
    assert answer.choice is None or answer.choice in LETTERS[: len(options)]


@settings(deadline=None)
@given(COMPLETIONS, OFFERS, st.booleans())
@example("The answer is B. <answer>C</answer>", OPTIONS, False)
def test_what_strict_reads_lenient_reads_the_same(completion, options, closed):
    strict = extract(completion, options, "strict", closed)
    assert strict.status == "unparsed" or extract(completion, options, "lenient", closed) == strict


@settings(deadline=None)
@given(COMPLETIONS, OFFERS, st.sampled_from(["strict", "lenient"]), st.sampled_from(["</think>", "</THINK>", ""]))
@example("The answer is C.", OPTIONS, "lenient", "")
@example(r"\boxed{C}", OPTIONS, "lenient", "</think>")
def test_reasoning_alone_is_never_read(completion, options, rule, end):
    reasoning = completion.replace("</think>", "")
    answer = extract(f"<think>{reasoning}{end}", options, rule)
    assert (answer.text, answer.status) == (None, "unparsed")


@settings(deadline=None)
@given(st.lists(st.sampled_from([*OPTIONS, *"ABCD()[]{}.:*", " ", "\n", "is", "not", "The"]) | st.text()).map("".join))
@example("C")
@example("CT")
def test_text_without_block_box_or_phrase_is_read_as_a_block_would_be(completion):
    if not any(word in completion.casefold() for word in ("answer", "boxed", "think", "correct")):
        assert lenient(completion).choice == block(completion.strip()).choice


@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</answer>", "<think>", "</think>", "{", "}", r"\boxed{", "the answer is ", "the most likely ",
     "final answer \n", "answer ", " ", "*\n", "A or ", "(", "C) ", "no "],
)  # fmt: skip
def test_a_long_completion_comes_to_an_end(piece):
    long = piece * 100_000
    with no_hang():
        for head in ("", "The answer is ", r"\boxed{", "<answer>"):
            lenient(head + long)
        lenient("The answer is " + long, ())
        lenient(f"<answer>{long}</answer>")


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule: expected strict or lenient, got 'loose'"):
        extract("C", OPTIONS, "loose")


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
    assert verdict(gold, "<answer>The left lung!</answer>") == "right"
    assert verdict(gold, "<answer>left lung</answer><answer>left lung</answer>") == "unparsed"


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("<answer>a</answer><answer>left lung</answer>", "left lung"),
        (r"\boxed{\text{left lung}}", "left lung"),
        (r"\boxed{10^{-3}}", "10^{-3}"),
        ("The answer is **left lung**.", "left lung"),
        ("The answer is the left lung, because it is dark. It is.", "the left lung"),
        ("Answer: E. coli. It is common.", "E. coli"),
        ("Answer:\n1.5 cm\nThank you", "1.5 cm"),
        ("Answer: HIV (AIDS). So", "HIV (AIDS)"),
        (r"\boxed{\{1\}}", r"\{1\}"),
    ],
)
def test_open_question_by_the_lenient_rule(completion, text):
    assert lenient(completion, ()) == Answer("", text, None, "parsed")
    assert extract(completion, ()).status == "unparsed"


@pytest.mark.parametrize(
    "completion",
    ["left lung", "The answer is not the lung.", "The answer is either left or right", "I doubt the answer is lung",
     "The answer may be lung", "<answer>lung", r"\boxed{}", "<think>The answer is lung.</think>", "The answer is ."],
)  # fmt: skip
def test_open_question_without_an_answer(completion):
    assert lenient(completion, ()).status == "unparsed"


def test_closed_question():
    gold = Record(id="1", problem="", question="", options=(), answer="No", closed=True)
    assert verdict(gold, "<answer>No, there is not.</answer>") == "right"
    assert verdict(gold, "The answer is no.", "lenient") == "right"
    assert verdict(gold, "<answer>Yes</answer>") == "wrong"
    assert verdict(gold, "<answer>normal</answer>") == "wrong"
    assert verdict(gold, "<answer>I do not know</answer>") == "wrong"
    assert verdict(gold, "<answer>yes and no</answer>") == "unparsed"
    assert verdict(gold, "No.", "lenient") == "right"
    assert verdict(gold, "No fracture", "lenient") == "unparsed"
    side = Record(id="1", problem="", question="", options=(), answer="left", closed=True)
    assert verdict(side, "<answer>Left.</answer>") == "right"
    assert verdict(side, "<answer>Right</answer>") == "wrong"


def test_several_labels():
    gold = record(options=(), answer="Lung Opacity|Edema|Pleural_Thickening")
    right = block("edema, pleural thickening and lung opacity", ())
    assert is_correct(right, gold)
    assert f1(right, gold) == 1.0
    part = block("Edema; Mass", ())
    assert not is_correct(part, gold)
    assert f1(part, gold) == pytest.approx(2 * 1 / (2 + 3))
    assert not is_correct(block("Lung Opacity|Edema|Pleural_Thickening|Mass", ()), gold)


def test_f1_by_kind_of_question():
    assert f1(block("C"), record()) == 1.0
    assert f1(block("B"), record()) == 0.0
    assert f1(block("C or D"), record()) == 0.0
    assert f1(block("upper left lung", ()), record(options=(), answer="left lung")) == pytest.approx(0.8)
    assert f1(block(" ", ()), record(options=(), answer="left lung")) == 0.0
    yes = Record(id="1", problem="", question="", options=(), answer="yes", closed=True)
    assert f1(block("Yes, there is", ()), yes) == 1.0
    assert f1(block("there is a yes", ()), yes) == 0.0


def test_unparsed_apart_from_wrong():
    assert verdict(record(), "<answer>C</answer>") == "right"
    assert verdict(record(), "<answer>B</answer>") == "wrong"
    assert verdict(record(), "<answer>B or C</answer>") == "unparsed"
    assert is_correct(block("CT"), record())
    assert not is_correct(block("MRI"), record())
    assert not is_correct(block("E"), record())
    assert not is_correct(block(""), record(options=(), answer=""))


@pytest.mark.parametrize(
    ("completion", "options", "taken"),
    [
        ("<answer>b</answer>", ("CT", "MRI"), "B"),
        ("<answer>neither</answer>", ("CT", "MRI"), None),
        ("<answer>pleural effusion</answer>", (), "pleural effusion"),
        ("The answer may be pneumonia.", (), None),  # in doubt: there is a text, and yet no answer
    ],
)
def test_what_is_taken_is_a_letter_or_a_text_or_nothing(completion, options, taken):
    assert extract(completion, options, "lenient").taken == taken
