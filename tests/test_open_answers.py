"""Free text against a gold text, with the traps of medicine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.open_answers import exact_match, labels, normalize, set_f1, token_f1, yes_no
from tests.patience import no_hang


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Left\nLung.", "left lung"),
        ("a cyst", "cyst"),
        ("A cyst", "cyst"),
        ("fracture of the femur", "fracture of femur"),
        ("X-ray", "xray"),
        ("(T1), [T2]; “T3”!", "t1 t2 t3"),
        ("Pleural_Thickening", "pleural thickening"),
        ("ﬁbroma Ⅳ", "fibroma iv"),
        ("ＣＴ", "ct"),
        ("Straße", "strasse"),
        ("COVID-19", "covid19"),
        ("1.5 cm.", "1.5 cm"),
        ("-5, −5, x-5", "-5 -5 x5"),
        ("1,000", "1000"),
        ("1-2/3:4", "1-2/3:4"),
        ("HER2+ <5 %", "her2+ <5"),
        ("hepatitis A", "hepatitis a"),
        ("influenza A virus", "influenza a virus"),
        ("A", "a"),
        ("the", "the"),
        ("...", "..."),
        (" \n", ""),
    ],
)
def test_normalize(text, normal):
    assert normalize(text) == normal


@settings(deadline=None)
@given(st.text())
def test_normalize_keeps_something_and_ignores_case_and_white_space(text):
    assert bool(normalize(text)) == bool(text.strip())
    assert normalize(f"\n{text.replace(' ', '  ')}\t") == normalize(text)
    assert exact_match(text, text)


@pytest.mark.parametrize(
    ("said", "gold", "equal"),
    [
        ("The left lung.", "left lung", True),
        ("left lung", "right lung", False),
        ("lung", "left lung", False),
        ("1.5", "15", False),
        ("-5", "5", False),
        ("HER2+", "HER2-", False),
        ("hepatitis", "hepatitis A", False),
        (".", "?", False),
    ],
)
def test_exact_match(said, gold, equal):
    assert exact_match(said, gold) is equal


@pytest.mark.parametrize(
    ("said", "gold", "expected"),
    [
        ("the left lung", "Left lung!", 1.0),
        ("upper left lung", "left lung", 0.8),  # precision 2/3, recall 1
        ("lung", "left lung", 2 / 3),  # precision 1, recall 1/2
        ("lung lung lung", "lung", 0.5),  # one of three counts
        ("heart", "lung", 0.0),
        ("", "lung", 0.0),
        ("", "", 0.0),
    ],
)
def test_token_f1(said, gold, expected):
    assert token_f1(said, gold) == pytest.approx(expected)


@settings(deadline=None)
@given(*[st.lists(st.sampled_from(["left", "lung", "the", "heart"]), min_size=1).map(" ".join)] * 2)
def test_f1_is_symmetric_and_one_for_equal_words(said, gold):
    assert token_f1(said, gold) == token_f1(gold, said)
    assert (token_f1(said, gold) == 1.0) == (sorted(normalize(said).split()) == sorted(normalize(gold).split()))
    assert 0.0 <= token_f1(said, gold) <= 1.0


@pytest.mark.parametrize(
    "text",
    ["yes", "Yes.", "YES!", "**Yes**", "Yes, there is", "yes there is a mass", "Yes: a mass", "The answer is yes.",
     "Answer: yes", "My final answer is **yes**"],
)  # fmt: skip
def test_yes(text):
    assert yes_no(text) == "yes"


@pytest.mark.parametrize(
    "text",
    ["no", "No.", "NO", "**No**", "No, there is no mass", "No - it is clear", "no it is not", "No; normal",
     "no\nbecause", "The answer is no.", "(no)"],
)  # fmt: skip
def test_no(text):
    assert yes_no(text) == "no"


@pytest.mark.parametrize(
    "text",
    ["", "normal", "I don't know", "not seen", "nodule", "none", "yesterday", "eyes", "yes or no", "Yes and no",
     "yes/no", "No, wait, yes", "Yes, there is no mass", "no image was given", "No idea", "No lesion is seen", "no-one",
     "I say yes", "There is no way to tell", "The answer is no mass", "是"],
)  # fmt: skip
def test_neither_or_both(text):
    assert yes_no(text) is None


@pytest.mark.parametrize(
    "text",
    ["Edema|Mass", "mass, edema", "Mass; Edema.", "mass\nedema", "mass and edema", "- Mass\n- Edema\n",
     "the mass, and edema"],
)  # fmt: skip
def test_labels_in_any_order_and_layout(text):
    assert labels(text) == {"edema", "mass"}


def test_labels_are_cut_at_whole_words_only():
    assert labels("gland, Band and hand") == {"gland", "band", "hand"}
    assert labels(" |, ") == frozenset()


def test_set_f1_by_hand():
    assert set_f1("edema, mass", "Mass|Edema") == 1.0
    assert set_f1("edema, edema", "edema") == 1.0
    assert set_f1("edema", "Mass|Edema|Hernia") == pytest.approx(0.5)
    assert set_f1("edema mass", "Mass|Edema") == 0.0
    assert set_f1("", "Mass") == 0.0


@pytest.mark.parametrize("piece", ["no ", "yes ", "answer is ", "the ", ".", "-1", "a|", "*", "\n", "and "])
def test_a_long_text_comes_to_an_end(piece):
    with no_hang():
        for text in (piece * 100_000, "no" + piece * 100_000, "the answer is" + piece * 100_000):
            yes_no(text)
            token_f1(text, "x")
            labels(text)
