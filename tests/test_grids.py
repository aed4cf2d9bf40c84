"""What several runs say together, worked by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.evaluation import Cell, Summary
from medgrpo.predictions import Prediction
from medgrpo.report.grids import LABEL_LENGTH, caveats, differences, is_base, label, matrices, modes, steps
from medgrpo.runs import Run, TrainedOn
from medgrpo.types import MODALITIES, Record


def cell(accuracy: float, n: int = 10) -> Cell:
    values = dict.fromkeys((f.name for f in fields(Cell)), None)
    return Cell(**values | {"n": n, "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "k": 1})


def summary(overall: float = 0.5, **groups: dict[str, float | tuple[float, int]]) -> Summary:
    """``groups``: kind -> name -> accuracy, or accuracy and n."""
    cells = {
        kind: {name: cell(*(value if isinstance(value, tuple) else (value,))) for name, value in named.items()}
        for kind, named in groups.items()
    }
    return Summary(overall=cell(overall), groups=cells, macro={}, worst={}, reasoning=None)


def run(name: str, trained_on: TrainedOn | None = None, prompt: str = "think") -> Run:
    return Run(Path(name), name, {"data.prompt": prompt}, ".", trained_on, ())


def on(*modalities: str, tasks: tuple[str, ...] = ("a", "b"), step: int = 100, **kwargs) -> TrainedOn:
    return TrainedOn(modalities=tuple(sorted(modalities)), tasks=tasks, step=step, **kwargs)


CT, MRI, BASE = run("ct", on("ct")), run("mri", on("mri")), run("base")
THREE = {
    "ct": summary(modality={"ct": 0.9, "mri": 0.4, "oct": 0.2}),
    "mri": summary(modality={"ct": 0.5, "mri": 0.8}),
    "base": summary(modality={"ct": 0.3, "mri": 0.5, "oct": 0.3}),
}


def test_accuracy_and_gain_by_modality() -> None:
    accuracy, gain = matrices([MRI, BASE, CT], THREE)
    assert (accuracy.kind, accuracy.measure, accuracy.mode) == ("modality", "accuracy", "think")
    assert accuracy.rows == accuracy.runs == ("base", "ct", "mri")
    assert accuracy.columns == ("ct", "mri", "oct")
    assert accuracy.values == ((0.3, 0.5, 0.3), (0.9, 0.4, 0.2), (0.5, 0.8, None))
    assert accuracy.counts == ((10, 10, 10), (10, 10, 10), (10, 10, 0))
    assert accuracy.title == "Accuracy, trained on one modality, tested on each"
    assert (gain.measure, gain.rows, gain.columns) == ("gain", ("ct", "mri"), ("ct", "mri", "oct"))
    assert gain.values[0] == pytest.approx((0.6, -0.1, -0.1))
    assert gain.values[1][:2] == pytest.approx((0.2, 0.3))
    assert gain.values[1][2] is None
    assert gain.counts == ((10, 10, 10), (10, 10, 0))
    assert gain.title == "Gain over the base, trained on one modality, tested on each"
    assert accuracy.notes == gain.notes == ()


def test_means_of_rows() -> None:
    accuracy, gain = matrices([MRI, BASE, CT], THREE)
    assert accuracy.means == pytest.approx((1.1 / 3, 0.5, 0.65))
    assert accuracy.means_elsewhere[0] is None
    assert accuracy.means_elsewhere[1:] == pytest.approx((0.3, 0.5))  # of .4 and .2; of .5 alone
    assert gain.means_elsewhere == pytest.approx((-0.1, 0.2))


def test_a_row_that_was_tested_on_its_own_column_alone_has_no_mean_elsewhere() -> None:
    (accuracy,) = matrices([CT, MRI], {"ct": summary(modality={"ct": 0.9}), "mri": summary(modality={"mri": 0.1})})
    assert accuracy.values == ((0.9, None), (None, 0.1))
    assert accuracy.means_elsewhere == (None, None)


def test_without_a_base_there_is_no_gain() -> None:
    (accuracy,) = matrices([CT, MRI], THREE)
    assert accuracy.measure == "accuracy"
    assert accuracy.rows == ("ct", "mri")
    assert accuracy.notes == ()


def test_rows_and_columns_are_in_the_order_of_the_modalities() -> None:
    runs = [run(f"r{m}", on(m)) for m in sorted(MODALITIES)]
    groups = {**dict.fromkeys(sorted(MODALITIES), 0.5), "unknown": 0.1}
    (accuracy,) = matrices(runs, {r.name: summary(modality=groups) for r in runs})
    assert accuracy.rows == accuracy.columns == MODALITIES


def test_tasks_too() -> None:
    runs = [run("grading", on("ct", "mri", tasks=("Lesion Grading",))), run("base")]
    summaries = {
        "grading": summary(task={"Lesion Grading": 0.75, "Disease Diagnosis": 0.25, "unknown": 1.0}),
        "base": summary(task={"Lesion Grading": 0.5, "Disease Diagnosis": 0.5}),
    }
    accuracy, gain = matrices(runs, summaries)
    assert accuracy.kind == gain.kind == "task"
    assert accuracy.columns == ("Disease Diagnosis", "Lesion Grading")
    assert gain.values == ((-0.25, 0.25),)


def test_runs_on_several_modalities_or_tested_on_one_are_no_matrix() -> None:
    both = run("both", on("ct", "mri"))
    assert matrices([both, BASE], {"both": THREE["ct"], "base": THREE["base"]}) == []
    assert matrices([CT], {"ct": summary(modality={"ct": 0.5})}) == []


def test_of_several_runs_of_a_row_the_highest_step_counts_then_the_last_name() -> None:
    runs = [run("z", on("ct", step=50)), run("x", on("ct")), run("y", on("ct"))]
    summaries = {name: summary(modality={"ct": a, "mri": a}) for name, a in (("x", 0.1), ("y", 0.2), ("z", 0.3))}
    (accuracy,) = matrices(runs, summaries)
    assert accuracy.values == ((0.2, 0.2),)
    assert accuracy.notes == ("Of the runs trained on ct, y (step 100) counts, not x, z.",)


def test_each_prompt_mode_has_its_matrix_and_its_base() -> None:
    runs = [run("t", on("ct")), run("n", on("ct"), "nothink"), run("bt"), run("bn", None, "nothink")]
    summaries = {
        name: summary(modality={"ct": a, "mri": a})
        for name, a in (("t", 0.5), ("n", 0.75), ("bt", 0.25), ("bn", 0.625))
    }
    found = matrices(runs, summaries)
    assert [(m.mode, m.measure, m.runs) for m in found] == [
        ("think", "accuracy", ("bt", "t")),
        ("think", "gain", ("t",)),
        ("nothink", "accuracy", ("bn", "n")),
        ("nothink", "gain", ("n",)),
    ]
    assert found[1].values == ((0.25, 0.25),)
    assert found[3].values == ((0.125, 0.125),)
    assert found[2].title.endswith("tested on each (nothink)")


def test_a_base_with_another_prompt_is_said() -> None:
    base = run("b", None, "nothink")
    accuracy, _ = matrices([CT, base], {"ct": THREE["ct"], "b": THREE["base"]})
    assert accuracy.notes == (
        "The base is b.",
        "The base was tested with another data.prompt than ct: a gain there is not one of training alone.",
    )


def test_of_several_bases_the_last_by_name_counts() -> None:
    runs = [run("base-b"), run("base-a"), CT]
    accuracy, _ = matrices(runs, {"ct": THREE["ct"], "base-a": THREE["mri"], "base-b": THREE["base"]})
    assert accuracy.runs == ("base-b", "ct")
    assert accuracy.notes == ("The base is base-b: of 2 the one asked most like the rows, then the last by name.",)


def asked(run: Run, *ids: str, **fields) -> Run:
    """The run with a prediction for each id, of ct."""
    records = [Record(id_, "?", "?", ("x", "y"), "A", modality="ct", **fields) for id_ in ids]
    return replace(run, predictions=tuple(Prediction(record, ("A",), (False,)) for record in records))


@pytest.mark.parametrize("other", [("q1", "q3"), ("q1",), ("q1", "q2", "q3")])
def test_a_gain_is_of_the_same_questions_only(other: tuple[str, ...]) -> None:
    accuracy, gain = matrices([asked(CT, "q1", "q2"), asked(BASE, "q2", "q1")], THREE)
    assert gain.values == (pytest.approx((0.6, -0.1, -0.1)),)
    assert accuracy.notes == ()
    mri = asked(MRI, *other)
    accuracy, gain = matrices([asked(CT, "q1", "q2"), mri, asked(BASE, "q1", "q2")], THREE)
    assert gain.values == (pytest.approx((0.6, -0.1, -0.1)), (None, pytest.approx(0.3), None))
    assert accuracy.notes == ("Not every row was asked the same questions in each column.",)


def test_a_base_of_other_questions_gives_no_gain_at_all() -> None:
    summaries = {"ct": summary(modality={"ct": 0.5}), "base": summary(modality={"ct": 0.5, "mri": 0.5})}
    found = matrices([asked(CT, "q1"), asked(BASE, "q9")], summaries)
    assert [matrix.measure for matrix in found] == ["accuracy"]


def test_the_base_is_the_one_that_was_asked_like_the_rows() -> None:
    """Three texts of one's own, all without a mode: the prompt itself decides, not the name of the run."""
    ct = run("ct", on("ct"), "{Question} Name it.")
    bases = [run("base1", None, "{Question} Name it."), run("base2", None, "{Question} Look."), run("base3", None, "x")]
    accuracy, gain = matrices([ct, *bases], {"ct": THREE["ct"], **{f"base{i}": THREE["base"] for i in (1, 2, 3)}})
    assert accuracy.runs == ("base1", "ct")
    assert len(accuracy.notes) == len(gain.notes) == 1


def test_a_run_of_which_nothing_is_known_is_no_base() -> None:
    unknown = replace(run("somewhere"), settings={})
    assert not is_base(unknown)
    assert label(unknown) == "unknown data"
    (accuracy,) = matrices([CT, MRI, unknown], {**THREE, "somewhere": THREE["base"]})
    assert accuracy.rows == ("ct", "mri")
    assert steps([unknown], {"somewhere": THREE["base"]}) == []


def test_differences_are_of_how_was_asked_not_of_whom() -> None:
    def of(**settings) -> Run:
        return replace(run("r"), settings=settings)

    assert differences(of(**{"data.test": ["a"], "ckpt_path": "x"}), of(**{"data.test": ["b"], "ckpt_path": "y"})) == ()
    first = of(**{"data.prompt": "think", "data.resize": 1, "trainer.precision": "32-true"})
    assert differences(first, of(**{"data.prompt": "nothink", "data.resize": 2})) == ("data.prompt", "data.resize")
    weights = [of(weights={"model_name_or_path": w}) for w in "ab"]
    adapter = replace(weights[1], settings={**weights[1].settings, "model.policy.adapter": "folder"})
    assert differences(*weights) == ()  # one may be the other, trained in full
    assert differences(weights[0], adapter) == ("weights",)
    assert differences(weights[1], adapter) == ()


def test_what_does_not_vary_is_no_matrix() -> None:
    """Runs on one modality each, all on one task: a matrix by task would have one row of many runs."""
    runs = [run(m, on(m, tasks=("a",))) for m in ("ct", "mri")]
    groups = summary(modality={"ct": 0.5, "mri": 0.5}, task={"a": 0.5, "b": 0.5})
    assert [m.kind for m in matrices(runs, {"ct": groups, "mri": groups})] == ["modality"]
    assert [m.kind for m in matrices(runs[:1], {"ct": groups})] == ["modality", "task"]


def test_caveats_name_what_a_figure_hides() -> None:
    runs = [asked(run(name, on("ct", step=step)), "q1") for name, step in (("a", 10), ("b", 10), ("c", 20))]
    found = steps(runs, dict.fromkeys("abc", summary()))
    points = [point for each in found for point in each.points]
    assert [point.run for point in points] == ["b", "c"]
    shown = "Of runs with the same training data, prompt mode and step the last by name is shown, not a."
    assert caveats(runs, points) == (shown,)
    assert caveats(runs[1:], points) == ()
    runs[1] = asked(runs[1], "q2")
    assert caveats(runs[1:], points) == ("Not all were asked the same questions.",)


@pytest.mark.parametrize(
    ("trained_on", "expected"),
    [
        (None, "base"),
        (on("mri"), "mri"),
        (on("mri", tasks=("Lesion Grading",)), "mri"),
        (on("mri", "ct"), "ct+mri"),
        (on("mri", "ct", tasks=("Lesion Grading",)), "Lesion Grading"),
        (on(*MODALITIES), "all modalities"),
        (on(*MODALITIES, tasks=("Lesion Grading",)), "Lesion Grading"),
        (on(tasks=("Lesion Grading",)), "Lesion Grading"),
        (on(tasks=("a", "b")), "a+b"),
        (on(tasks=(), datasets=("MedQA",)), "MedQA"),
        (TrainedOn(), "unknown data"),
        (on(*MODALITIES[:6]), "ct+mri+xray+ultrasound+fundus…"),
    ],
)
def test_labels(trained_on: TrainedOn | None, expected: str) -> None:
    assert label(run("r", trained_on)) == expected


@given(st.lists(st.sampled_from(MODALITIES), unique=True), st.lists(st.text(min_size=1), unique=True))
def test_labels_are_short_and_not_empty(modalities: list[str], tasks: list[str]) -> None:
    assert 1 <= len(label(run("r", on(*modalities, tasks=tuple(tasks))))) <= LABEL_LENGTH


def test_steps_ascend_within_a_label_and_mode() -> None:
    runs = [
        run("mri-100", on("mri")),
        run("ct-200", on("ct", step=200)),
        run("ct-20", on("ct", step=20)),
        run("ct-20-again", on("ct", step=20)),
        run("ct-20-nothink", on("ct", step=20), "nothink"),
        run("base"),
    ]
    accuracies = dict(zip((r.name for r in runs), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    found = steps(runs, {name: summary(a) for name, a in accuracies.items()})
    assert [(s.label, s.mode, [(p.step, p.accuracy) for p in s.points]) for s in found] == [
        ("base", "think", [(0, 0.6)]),
        ("ct", "think", [(20, 0.4), (200, 0.2)]),
        ("ct", "nothink", [(20, 0.5)]),
        ("mri", "think", [(100, 0.1)]),
    ]
    last = found[1].points[1]
    assert (last.run, last.n, last.low, last.high) == ("ct-200", 10, pytest.approx(0.1), pytest.approx(0.3))


def test_labels_that_are_cut_alike_stay_apart() -> None:
    six = ("ct", "mri", "xray", "ultrasound", "fundus")
    runs = [run("a", on(*six, "dermoscopy")), run("b", on(*six, "microscopy"))]
    found = steps(runs, {"a": summary(0.1), "b": summary(0.2)})
    assert [len(series.points) for series in found] == [1, 1]


def test_modes_are_compared_by_the_last_checkpoint() -> None:
    runs = [
        run("ct-after", on("ct"), "think_after"),
        run("ct-nothink", on("ct"), "med_r1_nothink"),
        run("ct-50", on("ct", step=50)),
        run("ct-100", on("ct")),
        run("ct-own", on("ct"), "Question: {Question}"),
        run("base", None, "nothink"),
    ]
    accuracies = dict(zip((r.name for r in runs), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    points = modes(runs, {name: summary(a) for name, a in accuracies.items()})
    assert [(p.label, p.mode, p.step, p.accuracy) for p in points] == [
        ("base", "nothink", 0, 0.6),
        ("ct", "think", 100, 0.4),
        ("ct", "nothink", 100, 0.2),
        ("ct", "think_after", 100, 0.1),
    ]


def test_nothing_gives_nothing() -> None:
    assert matrices([], {}) == modes([], {}) == steps([], {}) == []
