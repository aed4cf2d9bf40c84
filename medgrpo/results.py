"""Results in the layout of Med-R1 and MedVLM-R1, read and written.

    {"accuracy": 61.3, "results": [{"question": {...}, "ground_truth": "B", "model_output": "...",
                                    "extracted_answer": "B"}, ...]}

``accuracy`` is in percent; ``question`` is the whole record: with Med-R1 ``image, problem, solution``. Ours has these
and, beside them, the fields of our own files of predictions, so that nothing is lost on the way back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.fields import show
from data_modules.labels import labels_of_file
from data_modules.options import parse_gold
from data_modules.readers import med_r1, medvlm_r1
from medgrpo.answers import extract, is_correct
from medgrpo.predictions import Prediction, from_row, to_row
from medgrpo.types import DataError, Record

_HEAD = 2**16
"""Characters that tell whether a file is one of results."""

_OURS = frozenset(
    ("id", "question", "options", "images", "modality", "task", "dataset", "closed", "metadata")
    + ("prompt", "seen", "option_prior", "num_tokens", "truncated")
)
"""Fields of a line of predictions that ``question`` keeps; the others stand elsewhere in the results."""

_STRING = r'"(?:[^"\\]|\\.)*"'
_RESULTS = re.compile(rf'\ufeff?\s*\{{(?:\s*{_STRING}\s*:\s*(?:{_STRING}|[\w.+-]+)\s*,)*?\s*"results"\s*:\s*\[')

_LAYOUTS: tuple[tuple[frozenset[str], Callable[[dict[str, Any], str, str], Record]], ...] = (
    (frozenset({"question", "options", "problem"}), medvlm_r1),
    (frozenset({"problem"}), med_r1),
)
"""Fields of ``question`` that tell whose record it is, the most specific first, and its reader."""


def is_results(path: str | Path) -> bool:
    """Whether a file is one JSON object with a list ``results``, as against JSON lines; judged by how it begins.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            return _RESULTS.match(file.read(_HEAD)) is not None
    except OSError as error:
        raise DataError(f"{path}: expected a file of results or of predictions; {error.strerror}") from error


def write_results(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write the predictions of the view ``image``, one result for each completion: the file is whole or not there.

    ``accuracy`` and ``extracted_answer`` are by the lenient rule. ASCII, as the seeds write it.

    Raises:
        DataError: none of the predictions is of the view ``image``, or the file cannot be written.
    """
    results, right = [], 0
    for prediction in predictions:
        if prediction.view != "image":
            continue
        for number in range(len(prediction.completions)):
            result, correct = _result(prediction, number)
            results.append(result)
            right += correct
    if not results:
        raise DataError(f"{path}: expected at least one prediction of the view `image`, got none; nothing is written")
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="ascii") as file:
            json.dump({"accuracy": 100 * right / len(results), "results": results}, file, indent=1)
            file.write("\n")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be written; {error.strerror}") from error


def read_results(path: str | Path) -> list[Prediction]:
    """Predictions of a file of results, in its order: ours, Med-R1's or MedVLM-R1's.

    A record without an ``id`` gets its position, from 0, so that two files on the same questions can be compared. The
    answers are not taken over from ``extracted_answer``: they are read from ``model_output``, as all others are. What
    the file does not say is unknown; modality and question type may be told by the file's name.

    Raises:
        DataError: no such file, not a file of results, or a malformed record, named by its position.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: expected a file of results, JSON; {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a file of results, one JSON object; is it whole? {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise DataError(f"{path}: expected an object with a list in `results`, got {show(content)}")
    modality, task = labels_of_file(path)
    found: dict[str, Prediction] = {}
    for index, result in enumerate(content["results"]):
        place = f"{path}, results[{index}]"
        prediction = _prediction(result, index, place, modality, task)
        first = found.get(prediction.record.id)
        if first is None:
            found[prediction.record.id] = prediction
        elif result["question"].get("sample") == len(first.completions):
            found[prediction.record.id] = _joined(first, prediction)
        else:
            raise DataError(f"{place}: the id {prediction.record.id!r} is also of one before it; ids must be unique")
    return list(found.values())


def _result(prediction: Prediction, number: int) -> tuple[dict[str, Any], bool]:
    """One of ``results``, for the completion of this number, and whether it is right."""
    record, completion = prediction.record, prediction.completions[number]
    one = replace(
        prediction,
        completions=(completion,),
        truncated=(prediction.truncated[number],),
        num_tokens=prediction.num_tokens[number : number + 1],
    )
    seeds = {
        "image": record.images[0] if record.images else "",
        "problem": record.problem,
        "solution": f"<answer> {record.answer} </answer>",
    }
    ours = {name: value for name, value in to_row(one).items() if name in _OURS}
    if number:
        ours["sample"] = number
    answer = extract(completion, record.options, rule="lenient", closed=record.closed)
    result = {
        "question": seeds | ours,
        "ground_truth": record.answer,
        "model_output": completion,
        "extracted_answer": answer.taken,
    }
    return result, is_correct(answer, record)


def _joined(first: Prediction, other: Prediction) -> Prediction:
    """One prediction with the samples of both."""
    return replace(
        first,
        completions=first.completions + other.completions,
        truncated=first.truncated + other.truncated,
        num_tokens=first.num_tokens + other.num_tokens,
    )


def _prediction(result: Any, index: int, place: str, modality: str, task: str) -> Prediction:
    if not isinstance(result, dict) or not isinstance(result.get("question"), dict):
        raise DataError(f"{place}: expected an object whose `question` is the whole record, got {show(result)}")
    for name in ("ground_truth", "model_output"):
        if not isinstance(result.get(name), str):
            raise DataError(f"{place}: expected a text in the field {name!r}, got {show(result.get(name))}")
    question, output, gold = result["question"], result["model_output"], result["ground_truth"]
    if "id" in question and "truncated" in question:
        return from_row(question | {"gold": gold, "completion": output}, place)
    read = next((read for fields, read in _LAYOUTS if fields <= question.keys()), None)
    if read is None:
        raise DataError(
            f"{place}: question: expected the fields of Med-R1 (image, problem, solution), of MedVLM-R1 (with question "
            f"and options beside them) or of our own results, got {sorted(question)[:20]}"
        )
    try:
        record = read({"solution": gold} | question, modality, task)
        answer = parse_gold(gold, record.options, "ground_truth")
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    if answer != record.answer:
        raise DataError(f"{place}: `ground_truth` is {answer!r}, and the solution of the question {record.answer!r}")
    return from_row(vars(record) | {"id": record.id or str(index), "gold": answer, "completion": output}, place)
