"""Tables of figures worked by hand: what they show, how they align, and that names in them do no harm."""

import csv
import io
import re
from dataclasses import fields, replace

import pytest

from medgrpo.comparison import Comparison
from medgrpo.evaluation import Cell, Summary
from medgrpo.reasoning import Reasoning
from medgrpo.tables import (
    WIDTH,
    best_blind,
    compare_text,
    csv_table,
    latex_table,
    matrix_csv,
    matrix_latex,
    percent,
    text_table,
    warning,
)

NOTHING = {field.name: None for field in fields(Cell)}
PLAIN = Cell(
    **NOTHING
    | {"n": 200, "images": 200, "accuracy": 0.62, "low": 0.551, "high": 0.6844, "boot_low": 0.55, "boot_high": 0.69}
    | {"strict": 0.5, "unparsed": 0.0625, "truncated": 0.01, "chance": 0.25, "majority": 0.3, "k": 1}
)
REASONING = Reasoning(
    n=190,
    concluded=0.9,
    agreement=0.955,
    mean_words=81.25,
    mean_words_right=70.0,
    mean_words_wrong=None,
    mean_tokens=100.0,
    repetition=0.125,
)


def summary(overall=PLAIN, reasoning=None, **groups):
    macro = {kind: sum(cell.accuracy for cell in named.values()) / len(named) for kind, named in groups.items()}
    worst = {kind: min(named, key=lambda name, named=named: named[name].accuracy) for kind, named in groups.items()}
    return Summary(overall, groups | {"options": {"4": overall}}, macro, worst, reasoning)


TWO = summary(
    modality={"ct": replace(PLAIN, accuracy=0.7), "mri": replace(PLAIN, n=1000, images=1000, accuracy=0.5, blank=0.4)}
)


def test_text_table():
    assert text_table(TWO).splitlines() == [
        "              n  accuracy          95 %  strict  unparsed  truncated  chance  majority  blank",
        "all         200      62.0  [55.1, 68.4]    50.0       6.2        1.0    25.0      30.0      -",
        "modality",
        "  ct        200      70.0  [55.1, 68.4]    50.0       6.2        1.0    25.0      30.0      -",
        "  mri     1,000      50.0  [55.1, 68.4]    50.0       6.2        1.0    25.0      30.0   40.0",
        "options",
        "  4         200      62.0  [55.1, 68.4]    50.0       6.2        1.0    25.0      30.0      -",
        "macro accuracy: modality 60.0",
        "worst group: modality mri 50.0 (n = 1,000)",
    ]


def test_text_table_has_what_else_is_known():
    cell = replace(
        PLAIN,
        images=50,
        option_prior=0.4,
        wrong_image=0.3,
        blank=0.5,
        blank_changed=0.2,
        wrong_image_changed=0.25,
        shuffled=0.6,
        order_changed=0.15,
        f1=0.333,
        majority_vote=0.7,
        pass_at_k=0.9,
        k=8,
    )
    lines = text_table(summary(cell, REASONING, modality={"ct": cell})).splitlines()
    assert lines[0].split() == ["by", "wrong"]  # the first of two lines
    assert lines[1].split()[-2:] == ["blank", "image"]
    assert len(lines[0]) == len(lines[1])
    assert "[55.0, 69.0]" in lines[2]  # the bootstrap over images, as images repeat
    assert lines[-6:] == [
        "answers that change: blank image 20.0 %, wrong image 25.0 %",
        "options in another order: accuracy 60.0, 15.0 % of answers change",
        "8 samples per question: majority vote 70.0, pass@8 90.0",
        "open questions: F1 33.3",
        "reasoning: 190 completions, 81.2 words each (right 70.0), 12.5 % of 4-grams repeated",
        "its conclusion: found in 90.0 %, the answer agrees with it in 95.5 % of these",
    ]
    assert not any(line.startswith("macro") for line in lines)  # one group is no average


def test_text_table_keeps_its_width_whatever_the_names():
    cell = replace(PLAIN, n=123_456, images=3, option_prior=0.4, blank=0.9, wrong_image=0.3, blank_changed=1.0)
    text = text_table(
        summary(cell, REASONING, modality={"x" * 300: cell, "a\nb\x1b[31m": cell}, task={"y" * 300: cell})
    )
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "x…x" in text
    assert "  a b [31m " in text
    _, heads, *rows = text.splitlines()[:5]
    assert all(len(row) == len(heads) for row in rows if row[-1].isdigit())


def test_long_names_that_differ_at_their_end_are_told_apart():
    datasets = {f"Published collection of radiology questions, part {i}": PLAIN for i in range(30)}
    cell = replace(PLAIN, images=3, option_prior=0.4, blank=0.5, wrong_image=0.3)
    rows = text_table(summary(cell, dataset=datasets)).splitlines()
    labels = [row.split("    200 ")[0].rstrip() for row in rows if row.startswith("  Published")]
    assert len(set(labels)) == 30


def test_text_table_of_usual_names_fits_120_characters():
    cell = replace(PLAIN, n=800, images=800, option_prior=0.4, blank=0.5, wrong_image=0.3, blank_gain_low=0.1)
    text = text_table(summary(cell, task={"Modality Recognition": replace(cell, accuracy=1, low=0.978, high=1)}))
    assert max(map(len, text.splitlines())) <= 120


def test_what_is_of_the_questions_with_options_is_said():
    mixed = summary(PLAIN)
    assert "questions with options" not in text_table(mixed)
    mixed.groups["options"] |= {"4": replace(PLAIN, n=120), "open": replace(PLAIN, n=80)}
    assert "chance, majority and prior: of the 120 questions with options" in text_table(mixed).splitlines()


@pytest.mark.parametrize(
    ("change", "whose", "share"),
    [
        ({}, "the best constant letter", 0.3),
        ({"option_prior": 0.6}, "the lookup of option texts", 0.6),
        ({"majority": 0.1}, "chance", 0.25),
    ],
)
def test_best_figure_without_looking(change, whose, share):
    assert best_blind(summary(replace(PLAIN, **change))) == (whose, share)


def test_warning_when_the_interval_does_not_lie_above_it():
    assert warning(summary(replace(PLAIN, option_prior=0.55))) == ""
    said = warning(summary(replace(PLAIN, option_prior=0.551)))
    assert said == (
        "not distinguishable from answering blind: accuracy is 62.0 %, with a 95 % interval from 55.1 %, and the "
        "lookup of option texts has 55.1 %"
    )
    assert " ".join(text_table(summary(replace(PLAIN, option_prior=0.551))).split()).endswith(said)


def test_warning_when_the_image_adds_nothing_that_is_shown():
    seen = replace(PLAIN, blank=0.54, blank_gain_low=0.01, blank_gain_high=0.15)
    assert warning(summary(seen)) == ""
    # not where blank accuracy is higher than the interval of the accuracy begins: it may be of other questions
    assert warning(summary(replace(seen, blank=0.58))) == ""
    assert warning(summary(replace(seen, blank_gain_low=-0.0001))) == (
        "not distinguishable from answering blind: the same policy has 54.0 % with a blank image, and what the image "
        "adds lies between +0.0 and +15.0 points (95 % interval)"
    )
    both = warning(summary(replace(seen, blank_gain_low=0.0, majority=0.6)))
    assert "the best constant letter has 60.0 %; the same policy has 54.0 % with a blank image" in both


def test_warning_heeds_that_questions_share_images():
    cell = replace(PLAIN, boot_low=0.4, majority=0.45)
    assert warning(summary(cell)) == ""
    assert "from 40.0 %" in warning(summary(replace(cell, images=20)))


def test_open_questions_have_no_chance():
    mixed = summary(replace(PLAIN, accuracy=0.1, low=0.05))
    mixed.groups["options"]["open"] = PLAIN
    assert best_blind(mixed) is None
    assert warning(mixed) == ""
    unseen = replace(mixed, overall=replace(mixed.overall, blank=0.1, blank_gain_low=-0.1, blank_gain_high=0.1))
    assert "with a blank image" in warning(unseen)


def test_percent():
    assert [percent(x) for x in (None, 1.0, 0.12345, -0.0001, -0.031)] == [None, "100.0", "12.3", "0.0", "-3.1"]


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_table():
    rows = rows_of(csv_table({"base": TWO, "=1+1": TWO}))
    assert [(row["run"], row["kind"], row["group"]) for row in rows[:5]] == [
        ("base", "all", ""),
        ("base", "modality", "ct"),
        ("base", "modality", "mri"),
        ("base", "options", "4"),
        ("base", "macro", "modality"),
    ]
    assert len(rows) == 10
    assert rows[5]["run"] == "'=1+1"
    assert rows[2] | {"n": "1000", "accuracy": "0.5", "blank": "0.4", "shuffled": ""} == rows[2]
    assert (rows[4]["accuracy"], rows[4]["n"]) == ("0.6", "")
    assert set(rows[0]) == {"run", "kind", "group", *NOTHING}


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@sum", " =1", "\t=1"])
def test_csv_holds_no_formula(name):
    assert rows_of(csv_table({"run": summary(modality={name: PLAIN})}))[1]["group"] == f"'{name}"
    assert matrix_csv([name], ["a"], [[-0.5]]).splitlines()[1].startswith(("'", "\"'"))


def test_csv_keeps_commas_quotes_and_lines_in_their_cell():
    name = 'a, "b"\nc'
    assert rows_of(csv_table({name: TWO}))[0]["run"] == name


def test_latex_table():
    lines = latex_table({"base_1": TWO, "50 % {x}": summary()}).splitlines()
    assert lines[:4] == [
        r"\begin{tabular}{llrrrrrrrrr}",
        r"\toprule",
        r"Run & Group & n & accuracy & 95 \% & strict & unparsed & truncated & chance & majority & blank \\",
        r"\midrule",
    ]
    assert lines[4] == r"base\_1 & all & 200 & 62.0 & [55.1, 68.4] & 50.0 & 6.2 & 1.0 & 25.0 & 30.0 & -- \\"
    assert lines[6].startswith(r" & modality: mri & 1,000 & 50.0 & ")
    assert lines[8] == r"\midrule"
    assert lines[9].startswith(r"50 \% \{x\} & all & ")
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert {line.count(" & ") for line in lines if line.endswith(r"\\")} == {10}


def test_latex_is_escaped():
    name = "_ & % # $ { } ~ ^ \\ < | \n\x00"
    row = matrix_latex([name], ["x"], [[0.5]]).splitlines()[4]
    assert row == (
        r"\_ \& \% \# \$ \{ \} \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{} \textbar{} & 50.0 \\"
    )
    assert not re.search(r"(?<!\\)[%#$_]", row)


def test_matrices():
    rows, columns, values = ["[ct]", "-3 dB_"], ["ct", "=mri"], [[0.5, None], [-0.031, 0.12345678]]
    assert matrix_csv(rows, columns, values).splitlines() == [",ct,'=mri", "[ct],0.5,", "'-3 dB_,-0.031,0.123457"]
    assert matrix_latex(rows, columns, values).splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & ct & =mri \\",
        r"\midrule",
        r"{}[ct] & 50.0 & -- \\",
        r"-3 dB\_ & $-3.1$ & 12.3 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_compare_text():
    comparison = Comparison(1200, 500, 100, 200, 400, 0.5, 0.5833, 0.0833, 0.0561, 0.111, 1.2e-8, 34, 1)
    assert compare_text(comparison, ("base", "x" * 200)).splitlines() == [
        f"base -> {'x' * 27}…{'x' * 27}",
        "  1,200 questions of both runs (34 that one run alone has are left out)",
        "  accuracy 50.0 -> 58.3: +8.3 points, 95 % bootstrap over images [+5.6, +11.1]",
        "  right in both 500, in the first only 100, in the second only 200, in neither 400; McNemar p = 1.2e-08",
    ]
    same = replace(comparison, low=-0.01, p_value=0.0514, missing=0)
    lines = compare_text(same, ("a", "b")).splitlines()
    assert lines[1] == "  1,200 questions of both runs"
    assert lines[-2].endswith("p = 0.051")
    assert lines[-1] == "  the interval holds 0: no difference is shown"
    assert "of each first sample" in compare_text(replace(comparison, samples=4), ("a", "b")).splitlines()[-1]
