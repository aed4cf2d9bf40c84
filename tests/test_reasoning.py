"""What the reasoning ends on, and the statistics of it, on cases worked by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.predictions import Prediction
from medgrpo.reasoning import check, conclusion, repetition
from medgrpo.types import Record

SCANS = ("Mammography", "CT", "CT angiography", "MRI")
ORGANS = ("Skin", "Breast tissue", "Lung", "Liver")


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        # statements
        ("The answer is B.", "B"),
        ("The correct answer is **B**, since it is bright.", "B"),
        ("The best option would be (C)", "C"),
        ("Answer: B. Breast tissue", "B"),
        ("the answer is:\n\nB", "B"),
        ("Soft tissue is seen, so B", "B"),
        ("Therefore, the correct option is Breast tissue.", "B"),
        ("Therefore, it is most likely breast  tissue.", "B"),
        ("thus \\boxed{C}", "C"),
        (r"so $\boxed{\text{Liver}}$", "D"),
        ("I would go with option D", "D"),
        ("Therefore A.", "A"),
        ("The answer is A because it is the surface.", "A"),
        ("B) fits, so the answer is B) Breast tissue, not C.", "B"),
        ("It cannot be A so the answer is B", "B"),
        ("There is no air, so the answer is B", "B"),
        # the last statement holds
        ("So A. No, wait: so B. The answer is C.", "C"),
        ("The answer is B. That is all there is to say.", "B"),
        ("The answer is B. C and D are wrong.", "B"),
        ("The answer is not A. It looks like liver.", "D"),
        ("So skin or lung. The edge looks like liver.", "D"),
        ("So option A fits. That is all.", "A"),
        ("Therefore A is more likely than B.", "A"),
        ("The answer is A if there is a rim. There is a rim. So the answer is A.", "A"),
        ("The answer is A. But wait. Let me see again. Yes, it is skin.", "A"),
        # the last sentence
        ("A ring. It looks like breast tissue", "B"),
        ("It looks like the lung! This is option (B)", "B"),
        ("The mass resembles (C)", "C"),
        ("LIVER.", "D"),
        # not settled
        ("The answer is B. On reflection it looks like liver.", None),
        ("The answer is B or C.", None),
        ("The answer is B/C.", None),
        ("The answer is skin and lung", None),
        ("The answer is not B.", None),
        ("The answer isn't B.", None),
        ("I do not think the answer is B", None),
        ("The wrong answer is B", None),
        ("If the answer is B then the edge would be sharp", None),
        ("Is it bright, or is the answer B? So B?", None),
        ("So B is unlikely", None),
        ("So B isn't it", None),
        ("It is not the liver.", None),
        ("Either skin or lung.", None),
        ("There is no skin to be seen", None),
        ("So I cannot tell. Because a tissue is not named.", None),
        ("The answer is a tissue", None),
        ("The answer is E", None),
        ("Skin. Nothing else can be said about the picture", None),
        ("The lungs", None),
        ("A non-liver organ", None),
        # said of an option, but not that it is the answer
        ("So A is ruled out", None),
        ("So skin doesn't fit.", None),
        ("So option A contradicts the findings.", None),
        ("Thus, skin typically has a bright edge. This one is dark.", None),
        ("So skin was my first guess. But the edge is dark.", None),
        ("Therefore B is less likely than A.", None),
        ("The answer is skin until proven otherwise.", None),
        ("The diagnosis is skin vs lung.", None),
        ("The answer is A is what a novice would say.", None),
        ("The least likely option is B.", None),
        ("The worst choice is B.", None),
        ("My conclusion is that skin must be ruled out first.", None),
        ("Everything speaks against the liver.", None),
        ("It looks different from the liver.", None),
        ("The edge is darker than that of the liver.", None),
        ("It would be the liver", None),
        ("Could this be the liver", None),
        ("Is this the liver?", None),
        # taken back
        ("So A... no wait, D.", None),
        ("So A, no, D.", None),
        ("The answer is A. Hmm, no. D.", None),
        ("The answer is A. Correction: D.", None),
        ("The answer is A. However, that does not fit. It is D.", None),
        ("The answer is A. But the edge is dark.", None),
        ("", None),
    ],
)
def test_conclusion(reasoning: str, expected: str | None) -> None:
    assert conclusion(reasoning, ORGANS) == expected


@pytest.mark.parametrize(
    ("reasoning", "options", "expected"),
    [
        ("It is a CT angiography", SCANS, "C"),  # the longest text
        ("It is a CT", SCANS, "B"),
        ("So a CT-like picture of CT angiography", SCANS, None),
        ("The answer is A CT", SCANS, "B"),  # an article, not the letter
        ("Fracture is seen", ("No", "Fracture is seen."), "B"),
        ("No fracture", ("Yes", "No"), None),  # the bone may be normal: yes
        ("There is a gap. So no.", ("Yes", "No"), "B"),
        ("The answer is no mass.", ("Yes", "No"), None),
        ("It is not: no", ("Yes", "No"), None),
        ("It measures 2.5 cm", ("2", "5"), None),
        ("It measures 5 cm", ("2", "5"), "B"),
        ("Benign", ("benign", "Benign."), None),  # two options of one text
        ("The answer is B.", ("benign", "Benign."), "B"),
        ("I is a letter. The answer is I think unclear", tuple(f"option no {n}" for n in range(10)), None),
        ("The answer is I.", tuple(f"option no {n}" for n in range(10)), "I"),
        ("The answer is 42", (), None),
        ("Nothing.", ("", "nothing"), "B"),
        ("The answer is (1+1)*", ("(1+1)*", "[a"), "A"),
    ],
)
def test_conclusion_by_the_text_of_the_options(reasoning: str, options: tuple[str, ...], expected: str | None) -> None:
    assert conclusion(reasoning, options) == expected


@given(st.text(max_size=200), st.lists(st.text(max_size=8), min_size=2, max_size=10))
def test_conclusion_of_anything_is_an_offered_letter_or_none(reasoning: str, options: list[str]) -> None:
    assert conclusion(reasoning, options) in (None, *"ABCDEFGHIJ"[: len(options)])


@given(
    st.lists(st.sampled_from(["so", "B", "the answer is", "not", "skin", ".", ",", ":", "\n", "or", "(", "A)", "?"]))
)
def test_conclusion_never_names_what_is_not_said(parts: list[str]) -> None:
    assert conclusion(" ".join(parts), ORGANS) in (None, "A", "B")


@pytest.mark.parametrize("word", ["so ", "the answer is ", "so B ", "( ", "not ", "so the ", "B, ", "\n", ": "])
def test_conclusion_of_a_loop_is_quick(word: str) -> None:
    start = time.process_time()
    conclusion(word * 10_000, ORGANS)
    assert time.process_time() - start < 2


def test_repetition_worked_by_hand() -> None:
    assert repetition("a b c d") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("The the THE, the. the the") == pytest.approx(2 / 3)
    assert repetition("a b c") == repetition("") == 0.0


def prediction(answer: str, *completions: str, options: tuple[str, ...] = ORGANS, **fields) -> Prediction:
    record = Record(answer + completions[0], "Which?", "Which?", options, answer)
    return Prediction(record, completions, (False,) * len(completions), **fields)


def test_check_worked_by_hand() -> None:
    found = check(
        [
            prediction("B", "<think>It is bright so B</think>\n<answer> B </answer>", num_tokens=(12,)),
            prediction("B", "<think>Dark, so the answer is C</think><answer>B</answer>", num_tokens=(14,)),
            prediction("A", "<think>a b c d a b c d</think><answer>D</answer>", num_tokens=(22,)),
            prediction("A", "<think>So D</think>", num_tokens=(4,)),
            prediction("A", "<answer>A</answer>", num_tokens=(100,)),
            prediction("A", "<think> </think><answer>A</answer>", num_tokens=(100,)),
            prediction("B", "<think>So B</think><answer>B</answer>", view="blank"),
        ]
    )
    assert found.n == 4
    assert found.concluded == 0.75
    assert found.agreement == 0.5  # B = B, C != B; the third has no conclusion, the fourth no answer
    assert found.mean_words == (5 + 6 + 8 + 2) / 4
    assert found.mean_words_right == 5.5
    assert found.mean_words_wrong == 5
    assert found.mean_tokens == 13
    assert found.repetition == pytest.approx(0.2 / 4)


def test_check_counts_every_sample() -> None:
    found = check([prediction("B", "<think>So B</think><answer>B</answer>", "<think>So A</think><answer>B</answer>")])
    assert (found.n, found.agreement, found.mean_tokens, found.mean_words_wrong) == (2, 0.5, None, None)


def test_check_of_open_questions_knows_no_conclusion() -> None:
    found = check([prediction("liver", "<think>So liver</think><answer>Liver</answer>", options=())])
    assert (found.concluded, found.agreement, found.mean_words_right) == (None, None, 2)


def test_check_is_none_without_reasoning() -> None:
    assert check([]) is None
    assert check([prediction("A", "<answer>A</answer>")]) is None
