"""Accuracy by group, with numbers worked by hand."""

import pytest

from medgrpo.evaluation import GroupAccuracy, judge
from medgrpo.types import Record


def record(index, modality, task, answer="A"):
    return Record(f"r{index}", "", "What?", ("cyst", "mass"), answer, modality=modality, task=task)


RECORDS = [
    record(0, "ct", "Disease Diagnosis"),
    record(1, "ct", "Lesion Grading"),
    record(2, "mri", "Lesion Grading", "B"),
    record(3, "", ""),
]
SAID = ["<answer>A</answer>", "<answer>B</answer>", "<answer>mass</answer>", "A"]


def test_judge_tells_unparsed_from_wrong():
    rows = [judge(r, text, finished=i != 3) for i, (r, text) in enumerate(zip(RECORDS, SAID, strict=True))]
    assert [row["verdict"] for row in rows] == ["right", "wrong", "right", "unparsed"]
    assert [row["answer"] for row in rows] == ["A", "B", "B", None]
    assert [row["correct"] for row in rows] == [True, False, True, False]
    assert [row["truncated"] for row in rows] == [False, False, False, True]
    assert rows[2]["gold"] == "B"
    assert rows[2]["id"] == "r2"


def test_group_accuracy():
    metric = GroupAccuracy(RECORDS)
    for part in (slice(0, 3), slice(3, 4)):  # in any batches
        rows = [judge(r, text, True) for r, text in zip(RECORDS[part], SAID[part], strict=True)]
        metric.update(RECORDS[part], rows)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "accuracy": 2 / 4,
            "accuracy/modality/ct": 1 / 2,
            "accuracy/modality/mri": 1.0,
            "accuracy/task/Disease Diagnosis": 1.0,
            "accuracy/task/Lesion Grading": 1 / 2,
            "unparsed": 1 / 4,
            "truncated": 0.0,
            "n": 4.0,
        }
    )


def test_groups_without_a_row_are_left_out():
    metric = GroupAccuracy(RECORDS)
    metric.update(RECORDS[:1], [judge(RECORDS[0], SAID[0], True)])
    assert "accuracy/modality/mri" not in metric.compute()
    assert metric.compute()["accuracy"] == 1.0
