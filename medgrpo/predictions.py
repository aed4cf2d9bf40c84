"""What a policy answered: one `Prediction` per question and view, kept as a line of JSON that can be graded anew.

A file of predictions is complete in itself: it holds the question, the options and the gold answer beside the
completions, so tables, comparisons and reports are made from it without a model and without the question files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from medgrpo.answers import extract, is_correct, verdict
from medgrpo.types import LETTERS, DataError, Record, View

VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True)
class Prediction:
    """What was said to one question under one view."""

    record: Record
    """The question as it was asked: under ``shuffled`` options and gold letter are those of the new order."""
    completions: tuple[str, ...]
    """[k] decoded texts without special tokens; k is 1 for greedy decoding."""
    truncated: tuple[bool, ...]
    """[k] True where a completion was cut off."""
    num_tokens: tuple[int, ...] = ()
    """[k] lengths in tokens; empty when unknown."""
    view: View = "image"
    prompt: str = ""
    """What the model was given, after the chat template; empty when unknown."""
    seen: bool | None = None
    """Whether an image of the question is also in the training data; None when that is unknown."""
    option_prior: str | None = None
    """The letter that a lookup of option texts, learned on the training data, picks; None without one."""

    @property
    def key(self) -> tuple[str, str]:
        """What is unique among the predictions of a run."""
        return self.view, self.record.id

    @property
    def image_key(self) -> str:
        """Equal for questions about the same images: these are not independent of each other."""
        return "\n".join(self.record.images) or self.record.id


def to_row(prediction: Prediction) -> dict[str, Any]:
    """The prediction as JSON values; empty fields are left out.

    ``answer``, ``correct`` (lenient rule) and ``strict_correct`` are those of the first completion, for whoever reads
    the file; ``from_row`` does not trust them. ``samples`` is there when there are several completions.
    """
    record = prediction.record
    texts, cut = prediction.completions, prediction.truncated
    lengths = prediction.num_tokens or (None,) * len(texts)
    samples = [
        {"completion": text, "truncated": short} | _filled({"num_tokens": length})
        for text, short, length in zip(texts, cut, lengths, strict=True)
    ]
    answer = extract(texts[0], record.options, "lenient", record.closed)
    row = {
        "id": record.id,
        "view": prediction.view,
        "modality": record.modality,
        "task": record.task,
        "dataset": record.dataset,
        "images": list(record.images),
        "question": record.question,
        "problem": record.problem if record.problem != record.question else "",
        "options": list(record.options),
        "closed": record.closed or None,
        "metadata": dict(record.metadata),
        "prompt": prediction.prompt,
        "seen": prediction.seen,
        "option_prior": prediction.option_prior,
    }
    verdicts = {
        "gold": record.answer,
        "answer": answer.taken,
        "correct": is_correct(answer, record),
        "strict_correct": verdict(record, texts[0], "strict") == "right",
    }
    return _filled(row) | samples[0] | verdicts | ({"samples": samples} if len(samples) > 1 else {})


def from_row(row: dict[str, Any], place: str) -> Prediction:
    """A prediction from JSON values: at least ``id``, ``completion`` and ``gold``, and ``options`` if it is a choice.

    Args:
        row: of a file of predictions, ours or another's. ``options`` are texts in letter order, or ``{"A": text}``.
            Without ``truncated``, a completion is taken to be cut off where a tag that it opened is not closed.
        place: file and line, for errors.

    Raises:
        DataError: a field that is missing or malformed.
    """
    for name in ("id", "completion", "gold"):
        if not isinstance(row.get(name), str | (int if name == "id" else str)):
            raise DataError(f"{place}: expected a text in the field {name!r}, got {row.get(name)!r}")
    options = _options(row.get("options"), place)
    gold = row["gold"].strip()
    if options and (len(gold) != 1 or gold.upper() not in LETTERS[: len(options)]):
        raise DataError(f"{place}: gold: expected a letter from A to {LETTERS[len(options) - 1]}, got {row['gold']!r}")
    view = row.get("view", "image")
    if view not in VIEWS:
        raise DataError(f"{place}: view: expected one of {', '.join(VIEWS)}, got {view!r}")
    samples = row.get("samples") or [row]
    if not isinstance(samples, list) or not all(
        isinstance(s, dict) and isinstance(s.get("completion"), str) for s in samples
    ):
        raise DataError(f"{place}: samples: expected objects with a `completion` each")
    texts = tuple(sample["completion"] for sample in samples)
    lengths = tuple(sample.get("num_tokens") for sample in samples)
    question = _text(row, "question", place)
    images = row.get("images", ())
    if isinstance(images, str):
        images = [images]
    if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{place}: images: expected paths, got {images!r}")
    prior, seen = row.get("option_prior"), row.get("seen")
    if not (prior is None or (isinstance(prior, str) and prior and prior in LETTERS[: len(options)])):
        raise DataError(f"{place}: option_prior: expected the letter of an option, or none, got {prior!r}")
    if not (seen is None or isinstance(seen, bool)):
        raise DataError(f"{place}: seen: expected true, false or none, got {seen!r}")
    metadata = row.get("metadata", {})
    record = Record(
        id=str(row["id"]),
        problem=_text(row, "problem", place) or question,
        question=question,
        options=options,
        answer=gold.upper() if options else row["gold"],
        images=tuple(images),
        modality=_text(row, "modality", place),
        task=_text(row, "task", place),
        dataset=_text(row, "dataset", place),
        closed=bool(row.get("closed")),
        metadata=metadata if isinstance(metadata, dict) else {},
    )
    return Prediction(
        record,
        completions=texts,
        truncated=tuple(bool(sample.get("truncated", _left_open(sample["completion"]))) for sample in samples),
        num_tokens=lengths if all(type(length) is int for length in lengths) else (),
        view=view,
        prompt=_text(row, "prompt", place),
        seen=seen,
        option_prior=prior,
    )


def read_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of a JSON lines file, in its order.

    Raises:
        DataError: no such file, a malformed line, or a question that has two lines under one view.
    """
    found: dict[tuple[str, str], Prediction] = {}
    for place, row in read_rows(path):
        prediction = from_row(row, place)
        if prediction.key in found:
            raise DataError(f"{place}: the id {prediction.record.id!r} has a line already; ids must be unique")
        found[prediction.key] = prediction
    return list(found.values())


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON lines file, each after its file and line, for errors.

    A line that lacks its newline is of a run that died while it wrote it, and is left out when it is not whole.

    Raises:
        DataError: no such file, or a line that is no object.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: expected a file of predictions, JSON lines; {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise DataError(f"{place}: expected a JSON object, got {line[:80]!r} ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object, got {line[:80]!r}")
        yield place, row


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write a JSON lines file, whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(line_of(prediction) for prediction in predictions)
    partial.replace(path)


def line_of(prediction: Prediction) -> str:
    """One line of the file, newline included."""
    return json.dumps(to_row(prediction), ensure_ascii=False) + "\n"


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value not in (None, "", [], {})}


def _text(row: dict[str, Any], name: str, place: str) -> str:
    value = row.get(name, "")
    if value is not None and not isinstance(value, str):
        raise DataError(f"{place}: expected a text in the field {name!r}, got {value!r}")
    return value or ""


def _options(options: Any, place: str) -> tuple[str, ...]:
    if isinstance(options, dict):
        by_letter = {str(letter).strip().upper(): option for letter, option in options.items()}
        if sorted(by_letter) == list(LETTERS[: len(options)]):
            options = [by_letter[letter] for letter in sorted(by_letter)]
    options = () if options is None else options
    texts = isinstance(options, Sequence) and not isinstance(options, str) and all(isinstance(o, str) for o in options)
    if not texts or (options and not 2 <= len(options) <= len(LETTERS)):
        raise DataError(
            f"{place}: options: expected 2 to {len(LETTERS)} texts in letter order, or letters with their texts, or "
            f"none for an open question; got {options!r}"
        )
    return tuple(options)


def _left_open(completion: str) -> bool:
    text = completion.lower()
    return any(text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>") for tag in ("think", "answer"))
