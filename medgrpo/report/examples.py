"""Examples for the report's page: which questions are shown, with small pictures and what each run said.

Everything here has a size: the page is to stay small whatever the predictions hold.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from data_modules.image_root import ImageRoot
from data_modules.images import open_rgb
from medgrpo.answers import verdict
from medgrpo.evaluation import judge, said
from medgrpo.predictions import Prediction
from medgrpo.runs import Run
from medgrpo.statistics import majority
from medgrpo.types import DataError, Record, View

IMAGE_BYTES = 5_500
"""Of pictures per example, on average, before base64 adds a third."""

TEXT_BYTES = 5_500
"""Of question, options and completions per example, as JSON."""

MAX_TEXT = 2000
"""Characters of a completion or a question that are shown."""

MAX_OPTION = 200
MAX_IMAGES = 4
MAX_SAMPLES = 4

SIZES = ((192, 80), (192, 65), (192, 50), (192, 35), (128, 50), (128, 30), (96, 30), (64, 30))
"""Longest side in pixels and JPEG quality, tried in this order until a picture is small enough."""

VIEW_NAMES: dict[View, str] = {
    "blank": "with a blank image",
    "wrong_image": "with another image",
    "shuffled": "options in another order",
}


@dataclass(frozen=True)
class Question:
    """One question, and the predictions of the runs that were asked it."""

    record: Record
    predictions: dict[str, dict[View, Prediction]]
    """Name of the run -> view -> prediction; ``image`` is among the views."""
    verdicts: dict[str, tuple[str, ...]]
    """Name of the run -> verdict of each sample: ``right``, ``wrong`` or ``unparsed``."""

    @property
    def changed(self) -> bool:
        """Whether the runs differ in what they got right."""
        return len({verdicts.count("right") / len(verdicts) for verdicts in self.verdicts.values()}) > 1


def questions(runs: Sequence[Run]) -> list[Question]:
    """The questions of all runs, each once, in the order in which they come.

    Runs share a question when id, text, options, gold answer and images agree.
    """
    found: dict[tuple, tuple[Record, dict[str, dict[View, Prediction]]]] = {}
    for run in runs:
        views: dict[str, dict[View, Prediction]] = defaultdict(dict)
        for prediction in run.predictions:
            views[prediction.record.id][prediction.view] = prediction
        for predictions in views.values():
            if "image" in predictions:
                record = predictions["image"].record
                key = (record.id, record.question, record.options, record.answer, record.images)
                found.setdefault(key, (record, {}))[1][run.name] = predictions
    return [
        Question(record, asked, {name: _verdicts(views["image"]) for name, views in asked.items()})
        for record, asked in found.values()
    ]


def choose(asked: Sequence[Question], count: int) -> list[Question]:
    """At most ``count`` questions, in turn from each group of modality, question type, dataset and verdict.

    The verdict is that of the first run, first sample. Within a group, questions that the runs answered differently
    come first; for the rest the order is by a hash of the id, so that no part of a file is preferred. What is chosen is
    returned in the order of ``asked``.
    """
    groups = defaultdict(list)
    for place, question in enumerate(asked):
        record = question.record
        verdict = next(iter(question.verdicts.values()))[0]
        groups[record.modality, record.task, record.dataset, verdict].append((place, question))
    for members in groups.values():
        members.sort(key=lambda member: (not member[1].changed, zlib.crc32(_bytes(member[1].record.id))))
    turns = (member for turn in zip_longest(*groups.values()) for member in turn if member is not None)
    chosen = [member for _, member in zip(range(count), turns, strict=False)]
    return [question for _, question in sorted(chosen, key=lambda member: member[0])]


def to_json(chosen: Sequence[Question], runs: Sequence[Run]) -> dict[str, Any]:
    """What the page's script reads.

    Returns:
        ``runs`` [{name}], ``images`` [data addresses, each picture once] and ``examples`` with ``id``, ``question``,
        ``options``, ``gold``, ``modality``, ``task``, ``dataset``, ``seen``, ``images`` [{path, index} or {path, why}],
        ``more_images`` and ``answers`` [one per run, None where it was not asked].
    """
    roots = {run.name: ImageRoot(run.image_root) for run in runs}
    root_of = {question.record: roots[next(iter(question.predictions))] for question in chosen}
    paths = {(root.root, path) for record, root in root_of.items() for path in record.images[:MAX_IMAGES]}
    size = min(IMAGE_BYTES * len(chosen) // max(len(paths), 1), 2 * IMAGE_BYTES)
    pictures: dict[tuple[Path, str], dict[str, Any]] = {}
    sources: list[str] = []

    def picture(root: ImageRoot, path: str) -> dict[str, Any]:
        key = root.root, path
        if key not in pictures:
            try:
                source = thumbnail(open_rgb(root.find(path)), size)
            except DataError as error:
                pictures[key] = {"why": shown(str(error), MAX_OPTION)}
            else:
                pictures[key] = {"index": len(sources)}
                sources.append(source)
        return {"path": shown(path, MAX_OPTION)} | pictures[key]

    examples = []
    for question in chosen:
        record = question.record
        root = root_of[record]
        examples.append(
            {
                "id": shown(record.id, MAX_OPTION),
                "question": shown(record.question or record.problem, MAX_TEXT),
                "options": [shown(option, MAX_OPTION) for option in record.options],
                "gold": shown(record.answer, MAX_OPTION),
                "modality": shown(record.modality, MAX_OPTION),
                "task": shown(record.task, MAX_OPTION),
                "dataset": shown(record.dataset, MAX_OPTION),
                "seen": any(views["image"].seen for views in question.predictions.values()),
                "images": [picture(root, path) for path in record.images[:MAX_IMAGES]],
                "more_images": len(record.images[MAX_IMAGES:]),
                "answers": _answers(question, [run.name for run in runs]),
            }
        )
    return {"runs": [{"name": shown(run.name, MAX_OPTION)} for run in runs], "images": sources, "examples": examples}


def thumbnail(image: Image.Image, max_bytes: int) -> str:
    """A small JPEG as a ``data:`` address, at most ``max_bytes`` before base64 where `SIZES` reach that."""
    small = image.copy()
    for side, quality in SIZES:
        small.thumbnail((side, side))
        data = BytesIO()
        small.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= max_bytes:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def shown(text: str, limit: int) -> str:
    """Text without tricks: invisible characters, marks of direction and lone surrogates are shown by their number.

    Of a text longer than ``limit`` characters head and tail are left, since the answer stands at the end.
    """
    text = "".join(c if c.isprintable() or c in "\n\t" else " " if c.isspace() else f"⟨U+{ord(c):04X}⟩" for c in text)
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail
    return f"{text[:head]} [... {len(text) - limit:,} characters left out ...] {text[len(text) - tail :]}"


def _verdicts(prediction: Prediction) -> tuple[str, ...]:
    """Of each sample, by the lenient rule."""
    return tuple(verdict(prediction.record, completion, "lenient") for completion in prediction.completions)


def _answers(question: Question, names: Sequence[str]) -> list[dict[str, Any] | None]:
    """With completions as long as the size of an example allows."""
    for limit in (MAX_TEXT, 1000, 500, 250, 100, 0):
        answer = partial(_answer, question, limit=limit)
        answers = [answer(name) if name in question.predictions else None for name in names]
        if len(json.dumps(answers, ensure_ascii=False).encode()) <= TEXT_BYTES:
            break
    return answers


def _answer(question: Question, name: str, limit: int) -> dict[str, Any]:
    views = question.predictions[name]
    prediction, verdicts = views["image"], question.verdicts[name]
    answers = judge(prediction).answers
    samples = zip(prediction.completions, answers, verdicts, prediction.truncated, strict=True)
    k = len(answers)
    return {
        "right": round(verdicts.count("right") / k, 4),
        "read": _short(majority([said(question.record, answer) for answer in answers])),
        "verdicts": sorted({*verdicts, *(["truncated"] if any(prediction.truncated) else [])}),
        "note": f"{verdicts.count('right')} of {k} samples right; {min(k, MAX_SAMPLES)} shown" if k > 1 else "",
        "samples": [
            {"text": shown(text, limit), "read": _short(answer), "verdict": verdict, "truncated": truncated}
            for text, answer, verdict, truncated in list(samples)[:MAX_SAMPLES]
        ],
        "views": [_other(VIEW_NAMES[view], views[view]) for view in VIEW_NAMES if view in views],
    }


def _other(name: str, prediction: Prediction) -> dict[str, Any]:
    """The first sample's answer under another view, by the text of the option: letters may mean other options there."""
    record, answer = prediction.record, judge(prediction).answers[0]
    if answer is not None and record.options:
        answer = record.options[record.letters.index(answer)]
    return {"name": name, "read": _short(answer), "verdict": _verdicts(prediction)[0]}


def _short(answer: str | None) -> str | None:
    return None if answer is None else shown(answer, MAX_OPTION)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
