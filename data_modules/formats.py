"""Question files -> `Record`: Med-R1 splits, MedVLM-R1 files, and our own JSONL (one record per line).

The alias table of the modalities is here and not in the modality modules, because readers need it and may import
`medgrpo.types` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from medgrpo.types import LETTERS, MODALITIES, DataError, Record

Format = Literal["auto", "med_r1", "medvlm_r1", "jsonl"]

ALIASES: dict[str, tuple[str, ...]] = {
    "ct": ("CT", "CT(Computed Tomography)", "Computed Tomography", "CAT scan"),
    "mri": ("MRI", "MR", "MR (Mag-netic Resonance Imaging)", "Magnetic Resonance Imaging", "Magnetic Resonance"),
    "xray": ("X-Ray", "Xray", "CXR", "Chest X-Ray", "Radiograph", "Radiography", "CR", "DX"),
    "ultrasound": ("ultrasound", "US", "Ultrasonography", "Sonography"),
    "fundus": ("Fundus", "Fundus Photography", "CFP", "Color Fundus Photography"),
    "dermoscopy": ("Dermoscopy", "Derm", "Dermatoscopy"),
    "microscopy": ("Microscopy", "Microscopy Images", "Micro", "Microscope"),
    "oct": ("OCT", "OCT (Optical Coherence Tomography", "Optical Coherence Tomography"),
}
"""Names of each modality in files and on the command line; case, spaces and punctuation do not matter.
OmniMedVQA's own strings are among them as published, with its spelling and its missing bracket."""

TASKS = (
    "Anatomy Identification",
    "Disease Diagnosis",
    "Lesion Grading",
    "Modality Recognition",
    "Other Biological Attributes",
)
"""Question types of OmniMedVQA."""

MAX_LISTED = 20
"""Problems of one file that an error spells out; the rest are counted."""

_BEFORE = r"(?:^|(?<=[\s,;.?!:\"']))"
_LAYOUTS = (
    re.compile(_BEFORE + r"([A-J])\)"),  # A)x, B)y and A) x\nB) y
    re.compile(r"^[ \t]*([A-J])[:.](?=\s)", re.MULTILINE),  # A: x\nB: y
    re.compile(_BEFORE + r"\(([A-J])\)"),  # (A) x (B) y
)
_CONNECTIVES = {"", "and", "or", "and/or", "&"}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_MODALITY_KEYS = {_key(alias): name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
_TASK_KEYS = {_key(task): task for task in TASKS}


def modality_of(name: str) -> str:
    """Canonical modality of a name such as ``MR (Mag-netic Resonance Imaging)``; empty when unknown."""
    return _MODALITY_KEYS.get(_key(name), "")


def task_of(name: str) -> str:
    """Question type of a name such as ``lesion_grading``; empty when it is not one of `TASKS`."""
    return _TASK_KEYS.get(_key(name), "")


def parse_options(problem: str) -> tuple[str, tuple[str, ...]]:
    """Split a problem into its stem and its inline options.

    The options are the last chain of markers A, B, C ... in letter order, in any of the layouts ``A)x, B)y``,
    ``A) x`` per line, ``A: x`` per line and ``(A) x (B) y``. A marker needs white space or punctuation before it, so
    ``(CT)`` and ``(ACJ OA)`` are none; commas inside options and equal options are kept.

    Returns:
        Stem without enclosing quotes, and the options; the stem is the whole problem when there are none.
    """
    for layout in _LAYOUTS:
        # A bracket that closes one opened before is text, as in "(type B)", unless the bracket before is a stray one.
        inside = _closing_brackets(problem)
        found = list(layout.finditer(problem))
        chains = [_last_chain(problem, [m for m in found if m.end() - 1 not in inside]), _last_chain(problem, found)]
        chain = max(chains, key=len)  # the first of equals
        if chain:
            return _unquote(problem[: chain[0].start()]), _texts(problem, chain)
    return _unquote(problem), ()


def _closing_brackets(text: str) -> set[int]:
    """Positions of ``)`` that close a ``(`` more than one letter away."""
    opened, closing = [], set()
    for position, character in enumerate(text):
        if character == "(":
            opened.append(position)
        elif character == ")" and opened and position - opened.pop() > 2:
            closing.add(position)
    return closing


def _last_chain(text: str, markers: list[re.Match[str]]) -> list[re.Match[str]]:
    """The last run of markers A, B, ... of two letters or more that is not a mere mention like ``(A) and (B)``."""
    for start in reversed([i for i, marker in enumerate(markers) if marker[1] == "A"]):
        chain = [markers[start]]
        for marker in markers[start + 1 :]:
            if len(chain) < len(LETTERS) and marker[1] == LETTERS[len(chain)]:
                chain.append(marker)
        if len(chain) > 1 and _CONNECTIVES.isdisjoint(option.lower() for option in _texts(text, chain)[:-1]):
            return chain
    return []


def _texts(text: str, chain: list[re.Match[str]]) -> tuple[str, ...]:
    ends = [marker.start() for marker in chain[1:]]
    inner = [text[marker.end() : end].strip() for marker, end in zip(chain, ends, strict=False)]
    return (*(option.removesuffix(",").rstrip() for option in inner), text[chain[-1].end() :].strip())


def _unquote(stem: str) -> str:
    stem = stem.strip()
    quoted = len(stem) > 1 and stem[0] == stem[-1] == '"' and '"' not in stem[1:-1]
    return stem[1:-1].strip() if quoted else stem


def parse_gold(solution: str, options: tuple[str, ...]) -> str:
    """Gold answer of a published solution: ``<answer> C </answer>``, ``C``, or the text of one option.

    Option texts are compared without regard to case and a final period.

    Returns:
        A letter when there are options, else the text.

    Raises:
        DataError: neither a letter of the options nor the text of exactly one of them.
    """
    tagged = re.findall(r"<answer>(.*?)</answer>", solution, re.DOTALL)
    text = (tagged[-1] if tagged else solution).strip()
    letters = LETTERS[: len(options)]
    if not options:
        if len(text) == 1 and text in LETTERS:
            raise DataError(f"field 'solution': the letter {text} names an option, but 'problem' has no options")
        return text
    if len(text) == 1 and text in letters:
        return text
    wanted = _option_key(text)
    matches = [letter for letter, option in zip(letters, options, strict=False) if _option_key(option) == wanted]
    if len(matches) != 1:
        found = f"the text of several ({', '.join(matches)})" if matches else "none of them"
        raise DataError(
            f"field 'solution': expected a letter of {letters} or the text of one option, got {text[:80]!r}: {found}"
        )
    return matches[0]


def _option_key(text: str) -> str:
    return text.strip().lower().rstrip(".").rstrip()


def read_records(path: str | Path, format: Format = "auto") -> list[Record]:
    """Read and check a question file.

    Args:
        path: A JSON list, or JSON lines.
        format: ``auto`` decides by the fields of the first record.

    Returns:
        The records in file order; ``id`` is the file's stem and the index, unless the file has ids of its own.

    Raises:
        DataError: unreadable file, or bad records: each with its index, field, what was expected and what was got.
    """
    path = Path(path)
    rows = _load(path)
    reader = _READERS[_detect(path, rows[0]) if format == "auto" else format]
    modality, task = _file_labels(path)
    records, problems, seen = [], [], {}
    for index, row in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise DataError(f"expected an object with fields, got {_show(row)}")
            record = reader(row, f"{path.stem}-{index}", modality, task)
            _check(record)
            if record.id in seen:
                raise DataError(f"field 'id': {record.id!r} is also the id of record {seen[record.id]}")
        except DataError as error:
            problems.append(f"record {index}: {error}")
            continue
        seen[record.id] = index
        records.append(record)
    if problems:
        more = f"\n  ... and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        listed = "\n  ".join(islice(problems, MAX_LISTED))
        raise DataError(f"{path}: {len(problems)} bad of {len(rows)} records:\n  {listed}{more}")
    return records


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write one record per line, readable by `read_records`."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def _load(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path given for this split.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}") from error
    if text.lstrip().startswith("["):
        rows = _parse(text, f"{path}")
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parse(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: expected a JSON list or JSON lines of records, got no record")
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON is nested too deeply") from error


def _detect(path: Path, row: Any) -> str:
    names = set(row) if isinstance(row, dict) else set()
    if {"image", "options"} <= names or {"solution", "options"} <= names:
        return "medvlm_r1"
    if {"problem", "solution"} <= names:
        return "med_r1"
    if {"question", "answer"} <= names:
        return "jsonl"
    raise DataError(
        f"{path}: record 0 has fields {sorted(names)}, which is no known format. Expected image, problem, solution "
        "(Med-R1); image, question, options, answer or solution (MedVLM-R1); or id, question, options, answer (JSONL)."
    )


def _file_labels(path: Path) -> tuple[str, str]:
    """Modality and task that a file's name tells, as in ``Lesion Grading_train.json``."""
    name = re.sub(r"[ _-](train|test|val|valid|validation)$", "", path.stem, flags=re.IGNORECASE)
    return modality_of(name), task_of(name)


def _med_r1(row: dict[str, Any], id: str, modality: str, task: str) -> Record:
    problem = _text(row, "problem")
    images = _images(row, "image")
    question, options = parse_options(problem)
    answer = parse_gold(_text(row, "solution"), options)
    parts = Path(images[0]).parts if images else ()
    dataset = parts[1] if len(parts) > 2 and parts[0] == "Images" else ""
    return Record(id, problem, question, options, answer, images, modality, task, dataset)


def _medvlm_r1(row: dict[str, Any], id: str, modality: str, task: str) -> Record:
    question = _text(row, "question")
    options = _texts_of(row, "options")
    problem = _text(row, "problem") if "problem" in row else _problem(question, options)
    answer = parse_gold(_text(row, "solution" if "solution" in row else "answer"), options)
    if options and "answer" in row and _option_key(_text(row, "answer")) != _option_key(options[LETTERS.index(answer)]):
        gold = options[LETTERS.index(answer)]
        raise DataError(f"field 'answer': expected {gold!r}, the text of option {answer}, got {_show(row['answer'])}")
    subset = modality_of(row["subset"]) if isinstance(row.get("subset"), str) else ""
    dataset = _text(row, "dataset") if row.get("dataset") else ""
    return Record(id, problem, question, options, answer, _images(row, "image"), subset or modality, task, dataset)


def _jsonl(row: dict[str, Any], id: str, modality: str, task: str) -> Record:
    unknown = sorted(set(row) - {field.name for field in fields(Record)})
    if unknown:
        raise DataError(f"unknown fields {unknown}; expected {[field.name for field in fields(Record)]}")
    question = _text(row, "question")
    options = _texts_of(row, "options") if row.get("options") else ()
    label = _text(row, "modality") if row.get("modality") else modality
    if label and not modality_of(label):
        raise DataError(f"field 'modality': expected one of {', '.join(MODALITIES)} or nothing, got {label!r}")
    return Record(
        id=_text(row, "id") if "id" in row else id,
        problem=_text(row, "problem") if "problem" in row else _problem(question, options),
        question=question,
        options=options,
        answer=_text(row, "answer"),
        images=_images(row, "images"),
        modality=modality_of(label),
        task=_text(row, "task") if row.get("task") else task,
        dataset=_text(row, "dataset") if row.get("dataset") else "",
    )


_READERS = {"med_r1": _med_r1, "medvlm_r1": _medvlm_r1, "jsonl": _jsonl}


def _problem(question: str, options: tuple[str, ...]) -> str:
    return "\n".join([question, *(f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))])


def _check(record: Record) -> None:
    """Raise for what no reader may let through, whatever the file's format."""
    if not record.question:
        raise DataError("field 'question': expected text before the options, got nothing")
    if record.options and not 2 <= len(record.options) <= len(LETTERS):
        raise DataError(f"field 'options': expected 2 to {len(LETTERS)} options, got {len(record.options)}")
    empty = [letter for letter, text in zip(record.letters, record.options, strict=True) if not text.strip()]
    if empty:
        raise DataError(f"field 'options': expected text, got nothing for {', '.join(empty)}")
    if record.options and (len(record.answer) != 1 or record.answer not in record.letters):
        raise DataError(f"field 'answer': expected a letter of {record.letters}, got {record.answer[:80]!r}")


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {name!r}: expected text, got {_show(value) if name in row else 'no such field'}")
    return value


def _texts_of(row: dict[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"field {name!r}: expected a list of texts, got {_show(value)}")
    return tuple(value)


def _images(row: dict[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name) or []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.strip() for path in paths):
        raise DataError(f"field {name!r}: expected a path or a list of paths, got {_show(value)}")
    return tuple(paths)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
