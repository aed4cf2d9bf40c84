"""Accuracy counted batch by batch: the same as of the whole run, whatever the batches and ranks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.evaluation import flat, summarize
from medgrpo.group_accuracy import GroupAccuracy
from medgrpo.predictions import Prediction
from medgrpo.types import Record


def record(index, modality="", task="", answer="A"):
    return Record(f"r{index}", "", "What?", ("cyst", "mass", "normal"), answer, (f"{index}.png",), modality, task)


def said_to(record, *letters):
    completions = tuple(f"<answer>{letter}</answer>" if letter else "I cannot tell." for letter in letters)
    return Prediction(record, completions, tuple(not letter for letter in letters))


RECORDS = [
    record(0, "ct", "Disease Diagnosis"),
    record(1, "ct", "Lesion Grading"),
    record(2, "mri", "Lesion Grading", "B"),
    record(3),
]
PREDICTIONS = [said_to(r, said) for r, said in zip(RECORDS, ("A", "B", "mass", None), strict=True)]


def metric_values(metric):
    return {name: value.item() for name, value in metric.compute().items()}


def test_group_accuracy():
    metric = GroupAccuracy(RECORDS)
    metric.update(PREDICTIONS[:3])
    metric.update(PREDICTIONS[3:])
    assert metric_values(metric) == pytest.approx(
        {
            "accuracy": 2 / 4,
            "accuracy/modality/ct": 1 / 2,
            "accuracy/modality/mri": 1.0,
            "accuracy/task/Disease Diagnosis": 1.0,
            "accuracy/task/Lesion Grading": 1 / 2,
            "strict_accuracy": 2 / 4,
            "unparsed": 1 / 4,
            "truncated": 1 / 4,
            "n": 4.0,
        }
    )


def test_group_accuracy_is_over_samples():
    metric = GroupAccuracy(RECORDS)
    metric.update([said_to(RECORDS[0], "A", "A", "A"), said_to(RECORDS[1], "A", "B", None)])
    values = metric_values(metric)
    assert (values["accuracy"], values["n"]) == (pytest.approx(4 / 6), 2.0)
    assert values["truncated"] == pytest.approx(1 / 6)


def test_group_accuracy_keeps_lenient_and_strict_apart():
    metric = GroupAccuracy(RECORDS)
    metric.update([Prediction(RECORDS[0], ("<answer>B</answer><answer>A</answer>",), (False,))])
    values = metric_values(metric)
    assert (values["accuracy"], values["strict_accuracy"], values["n"]) == (1.0, 0.0, 1.0)


def test_groups_without_a_prediction_are_left_out():
    metric = GroupAccuracy(RECORDS)
    metric.update(PREDICTIONS[:1])
    assert "accuracy/modality/mri" not in metric.compute()
    assert metric.compute()["accuracy"] == 1.0


@st.composite
def runs(draw):
    """Predictions of a few questions."""
    predictions = []
    for i in range(draw(st.integers(1, 6))):
        asked = record(i, draw(st.sampled_from(["ct", "mri", ""])), answer=draw(st.sampled_from("ABC")))
        letters = draw(st.lists(st.sampled_from(["A", "B", "C", None]), min_size=1, max_size=3))
        predictions.append(said_to(asked, *letters))
    return predictions


@settings(max_examples=30, deadline=None)
@given(runs(), st.data())
def test_batches_of_updates_change_nothing(run, data):
    names = [prediction.record for prediction in run]
    whole, parts, ranks = GroupAccuracy(names), GroupAccuracy(names), [GroupAccuracy(names) for _ in range(2)]
    whole.update(run)
    cut = data.draw(st.integers(0, len(run)))
    for part, rank in zip((run[:cut], run[cut:]), ranks, strict=True):
        parts.update(part)
        rank.update(part)
    assert metric_values(parts) == metric_values(whole)
    assert (ranks[0].counts + ranks[1].counts).tolist() == whole.counts.tolist()
    assert ranks[0].n + ranks[1].n == whole.n


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(["A", "B", None])] * 2), min_size=4, max_size=4))
def test_it_agrees_with_the_table_of_the_whole_run(letters):
    run = [said_to(record, *said) for record, said in zip(RECORDS, letters, strict=True)]
    metric, table = GroupAccuracy(RECORDS), flat(summarize(run))
    metric.update(run)
    values = metric_values(metric)
    common = values.keys() & table.keys()
    assert {name: values[name] for name in common} == pytest.approx({name: table[name] for name in common})
    assert values.keys() <= table.keys()
