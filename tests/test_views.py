"""Questions shown otherwise: the same questions, whatever the batch, with exactly one thing changed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.options import parse_options
from data_modules.views import shown
from medgrpo.types import LETTERS, Record


def record(index, modality="ct", answer="A", images=None, options=("cyst", "mass", "normal")):
    problem = "What is seen? " + " ".join(f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
    images = (f"{index}.png",) if images is None else images
    return Record(f"r{index}", problem, "What is seen?", options, answer, images, modality)


RECORDS = [record(i, "ct" if i < 6 else "mri", "ABC"[i % 3]) for i in range(9)]


def test_image_changes_nothing():
    assert shown(RECORDS, "image", 0) == RECORDS


def test_blank_leaves_out_questions_without_an_image():
    text = record(9, images=())
    assert shown([*RECORDS, text], "blank", 0) == RECORDS


def test_a_wrong_image_is_of_the_same_modality_and_another_answer():
    changed = shown(RECORDS, "wrong_image", 0)
    of = {r.images: r for r in RECORDS}
    assert [r.id for r in changed] == [r.id for r in RECORDS]
    for before, after in zip(RECORDS, changed, strict=True):
        other = of[after.images]
        assert replace(after, images=before.images) == before
        assert other.modality == before.modality
        assert other.answer != before.answer


def test_a_wrong_image_is_never_one_of_its_own():
    same = [replace(r, images=("shared.png",)) for r in RECORDS[:5]]
    assert shown(same, "wrong_image", 0) == []
    two = [record(0, images=("a.png", "b.png")), record(1, images=("b.png", "c.png")), record(2, images=("d.png",))]
    assert shown(two, "wrong_image", 0) == []


def test_a_wrong_image_with_the_same_answer_is_better_than_none():
    alike = [record(0), record(1)]
    assert [r.images for r in shown(alike, "wrong_image", 0)] == [("1.png",), ("0.png",)]


def test_wrong_images_and_orders_do_not_depend_on_what_else_is_asked_in_what_batch():
    assert shown(RECORDS, "shuffled", 3)[2:4] == shown(RECORDS[2:4], "shuffled", 3)
    assert shown(RECORDS, "wrong_image", 3) == shown(RECORDS, "wrong_image", 3)
    assert shown(RECORDS, "wrong_image", 3) != shown(RECORDS, "wrong_image", 4)


@given(st.integers(2, 10), st.integers(0, 1000), st.data())
def test_every_option_gets_another_letter_and_gold_stays_the_same_text(size, seed, data):
    options = tuple(f"option {i}x" for i in range(size))
    before = record(0, answer=data.draw(st.sampled_from(LETTERS[:size])), options=options)
    (after,) = shown([before], "shuffled", seed)
    assert sorted(after.options) == sorted(options)
    assert all(old != new for old, new in zip(options, after.options, strict=True))
    assert after.options[LETTERS.index(after.answer)] == options[LETTERS.index(before.answer)]
    assert parse_options(after.problem) == (before.question, after.options)


def test_published_wording_stays_around_the_options():
    before = Record("r", "Seen? A) CT B) CT scan, C) MRI.", "Seen?", ("CT", "CT scan", "MRI"), "B", ("i.png",))
    for seed in range(5):
        (after,) = shown([before], "shuffled", seed)
        a, b, c = after.options
        assert after.problem == f"Seen? A) {a} B) {b}, C) {c}."


@pytest.mark.parametrize("problem", ["What is seen?", "mass or cyst: What is seen?"])
def test_wording_in_which_the_options_are_not_found_is_laid_out_anew(problem):
    (after,) = shown([replace(record(0), problem=problem)], "shuffled", 0)
    assert after.problem.splitlines() == [
        "What is seen?",
        *(f"{letter}) {text}" for letter, text in zip("ABC", after.options, strict=True)),
    ]


@pytest.mark.parametrize(
    ("problem", "options", "said"),
    [
        ("Seen? A) Yes B) No\nAnswer Yes or No", ("Yes", "No"), "Seen? A) No B) Yes\nAnswer Yes or No"),
        ("Seen? A)B, B)x", ("B", "x"), "Seen? A)x, B)B"),
        ("Seen? (A) B (B) A", ("B", "A"), "Seen? (A) A (B) B"),
        ("Seen?\nA: 1\nB: 1.5", ("1", "1.5"), "Seen?\nA: 1.5\nB: 1"),
        ("Seen? A) CT B) CT scan of A", ("CT", "CT scan"), "Seen? A) CT scan B) CT of A"),
    ],
)
def test_neither_letters_nor_words_around_are_taken_for_options(problem, options, said):
    (after,) = shown([Record("r", problem, "Seen?", options, "A", ("i.png",))], "shuffled", 0)
    assert (after.problem, after.options, after.answer) == (said, options[::-1], "B")


@pytest.mark.parametrize("last", ["All of the above", "Both A and B", "none of these", "A & B"])
def test_options_that_speak_of_each_other_have_no_other_order(last):
    assert shown([record(0, options=("cyst", "mass", last))], "shuffled", 0) == []
    assert shown([record(0, options=("cyst", "mass", "hepatitis A and cirrhosis"))], "shuffled", 0)


def test_open_questions_have_no_order():
    assert shown([record(0, options=(), answer="a cyst")], "shuffled", 0) == []
