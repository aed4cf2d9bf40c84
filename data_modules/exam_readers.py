"""Rows of exams -> `Record`: one function per published format; the contract is that of `data_modules.readers`.

What no other part of the record holds goes to its metadata, under the published name; an explanation always under
``explanation``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from data_modules.fields import Row, Unused, label, others, show, text, texts, with_options
from data_modules.options import option_key, parse_options
from medgrpo.types import LETTERS, DataError, Record

MMMU_SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
"""Subjects of MMMU that are medical."""

MAX_LITERAL = 20_000
"""Characters of a list in Python syntax that are parsed: nesting without end can crash the parser."""

HIDDEN = "answer is not published"
"""Why a row of a test split gives no record."""

_CHOICES = re.compile(r"Answer Choices:\s*(?=\(A\))")


def medxpertqa(row: Row, modality: str, task: str) -> Record:
    """MedXpertQA Text and MM from the hub or the repository, and the repository's inputs that have no ``options``."""
    problem, question, options = _listed(row) if row.get("options") is None else _given(row, "options")
    answer, images = _letter(row, "label", options), _images(row, "images")
    extra = others(row, "id", "question", "options", "label", "images", "medical_task")
    kind, dataset = label(row, "medical_task") or task, "MedXpertQA" if "medical_task" in row else ""
    return _record(
        _id(row, "id", "medxpertqa"), question, options, answer, modality, kind, dataset, extra, images, problem
    )


def mmmu(row: Row, modality: str, task: str) -> Record:
    """MMMU's medical subjects; ``<image N>``, where N counts from 1, stays in question and options.

    An open question may accept several answers: the first is the gold answer, metadata has the list.
    """
    names = [f"image_{number}" for number in range(1, 8)]
    subject = re.fullmatch(r"[a-z]+_(\w+)_[0-9]+", text(row, "id"))
    if not subject:
        raise DataError(f"field 'id': expected SPLIT_SUBJECT_NUMBER, got {show(row['id'])}")
    if subject[1] not in MMMU_SUBJECTS:
        raise Unused(f"subject {subject[1]}")
    if isinstance(row.get("answer"), str) and row["answer"].strip() in ("", "?"):
        raise Unused(HIDDEN)
    extra = others(row, "id", "question", "options", "answer", *names)
    options, answer = _literal_options(row, "options"), text(row, "answer")
    if options:
        answer = _letter(row, "answer", options)
    elif label(row, "question_type") == "multiple-choice":
        raise DataError("field 'options': expected options, as 'question_type' is multiple-choice, got none")
    elif accepted := _literal_list(answer):
        answer, extra["answers"] = _option({"answer": accepted[0]}, "answer"), answer
    present = [name for name in names if row.get(name) not in (None, "")]
    if present != names[: len(present)]:
        extra["image_fields"] = " ".join(present)  # <image N> is not the N-th image then
    return _record(
        id=row["id"],
        question=text(row, "question"),
        options=options,
        answer=answer,
        images=tuple(text(row, name) for name in present),
        modality=modality,
        task=subject[1].replace("_", " "),
        dataset="MMMU",
        extra=extra,
    )


def medqa(row: Row, modality: str, task: str) -> Record:
    """MedQA-USMLE with 4 or 5 options, its ``-hf`` variant (``sent1, ending0 ..., label``), and HuatuoGPT-o1's demo.

    ``metamap_phrases``, the words of the question once more, are left out.
    """
    if "ending0" in row:
        found = [name for name in row if isinstance(name, str) and re.fullmatch(r"ending[0-9]", name)]
        endings = [f"ending{number}" for number in range(len(found))]
        question = "\n".join(filter(None, [text(row, "sent1"), _optional(row, "sent2")]))
        options = tuple(_option(row, name) for name in endings)
        answer = LETTERS[_index(row, "label", range(len(options)))]
        extra = others(row, "id", "sent1", "sent2", "label", *endings)
    else:
        question, options = text(row, "question"), _choices(row, "options")
        answer = _letter(row, "answer_idx", options)
        _check_text(row, "answer", options, answer)
        extra = others(row, "id", "question", "options", "answer", "answer_idx", "metamap_phrases")
    dataset = "HuatuoGPT-o1" if "Open-ended Verifiable Question" in row else "MedQA"
    return _record(_id(row, "id", "medqa"), question, options, answer, modality, task, dataset, extra)


def medmcqa(row: Row, modality: str, task: str) -> Record:
    """MedMCQA when the row alone must tell whether ``cop`` counts from 0 or from 1; `medmcqa_base` reads a file."""
    return _medmcqa(row, modality, task, first=0 if medmcqa_base([row]) == "medmcqa_0" else 1)


def medmcqa_0(row: Row, modality: str, task: str) -> Record:
    """MedMCQA as the hub has it: ``cop`` 0 is A, and -1 hides the answer."""
    return _medmcqa(row, modality, task, first=0)


def medmcqa_1(row: Row, modality: str, task: str) -> Record:
    """MedMCQA as its authors published it: ``cop`` 1 is A."""
    return _medmcqa(row, modality, task, first=1)


def medmcqa_base(rows: Iterable[Any]) -> str:
    """``medmcqa_0`` or ``medmcqa_1``: what ``cop`` counts from in a whole file.

    A file without any answer is ``medmcqa_0``: nothing depends on it then. What is no object is passed over.

    Raises:
        DataError: the file says neither or both.
    """
    cops = [row.get("cop") for row in rows if isinstance(row, dict)]
    found = {n for n in range(5) if any(cop == str(n) or (type(cop) is int and cop == n) for cop in cops)}
    if {0, 4} <= found:
        raise DataError("field 'cop': expected 0 to 3, or 1 to 4, in the whole file, got both 0 and 4")
    if found and not found & {0, 4}:
        raise DataError(
            f"field 'cop': expected a 0 or a 4 in the file, which tells what it counts from, got only {sorted(found)}; "
            "name the format: medmcqa_0 for files from the hub, medmcqa_1 for the authors' own"
        )
    return "medmcqa_1" if 4 in found else "medmcqa_0"


def _medmcqa(row: Row, modality: str, task: str, first: int) -> Record:
    # A choice_type of "multi" means options that combine statements: still one of them is right.
    names = ("opa", "opb", "opc", "opd")
    question, options = text(row, "question"), tuple(_option(row, name) for name in names)
    cop = _index(row, "cop", (*range(first, first + 4), -1)) if "cop" in row else -1
    if cop == -1:
        raise Unused(HIDDEN)
    extra = others(row, "id", "question", "cop", "exp", "subject_name", *names)
    if explanation := _optional(row, "exp"):
        extra["explanation"] = explanation
    subject = label(row, "subject_name") or task
    answer = LETTERS[cop - first]
    return _record(_id(row, "id", "medmcqa"), question, options, answer, modality, subject, "MedMCQA", extra)


def pubmedqa(row: Row, modality: str, task: str) -> Record:
    """PubMedQA: ``ori_pqal.json`` with its key as ``pubid``, the hub's ``pqa_labeled``, and the one with ``data``.

    The abstract stands before the question: without it there is nothing to answer from.
    """
    if "data" in row:
        data = _object(row, "data")
        question, options = _after_context(data, "Context", text(data, "Question")), _choices(data, "Options")
        answer = _letter(data, "Correct Option", options)
        _check_text(data, "Correct Answer", options, answer)
        extra = others(data, "Question", "Options", "Context", "Correct Option", "Correct Answer")
        extra |= others(row, "id", "data")
        return _record(_id(row, "id", "pubmedqa"), question, options, answer, modality, task, "PubMedQA", extra)
    if "QUESTION" in row:  # ori_pqal.json, where nothing is nested
        question = _after_context(row, "CONTEXTS", text(row, "QUESTION"))
        extra = others(row, "pubid", "QUESTION", "CONTEXTS", "final_decision")
    else:
        context = _object(row, "context")
        question = _after_context(context, "contexts", text(row, "question"))
        extra = others(row, "pubid", "question", "context", "final_decision") | others(context, "contexts")
    options, decision = ("yes", "no", "maybe"), text(row, "final_decision").strip().lower()
    if decision not in options:
        raise DataError(f"field 'final_decision': expected yes, no or maybe, got {show(row['final_decision'])}")
    answer = LETTERS[options.index(decision)]
    return _record(_id(row, "pubid", "pubmedqa"), question, options, answer, modality, task, "PubMedQA", extra)


def mmlu_pro(row: Row, modality: str, task: str) -> Record:
    """MMLU-Pro, category health: up to ten options, among them ``N/A`` where published."""
    if text(row, "category") != "health":
        raise Unused(f"category {row['category']}")
    question, options = text(row, "question"), _choices(row, "options")
    answer = _letter(row, "answer", options)
    index = _index(row, "answer_index", range(len(options)))
    if LETTERS[index] != answer:
        raise DataError(f"field 'answer_index': expected that of {answer}, which 'answer' names, got {index}")
    extra = others(row, "question_id", "question", "options", "answer", "answer_index")
    return _record(_id(row, "question_id", "mmlu_pro"), question, options, answer, modality, task, "MMLU-Pro", extra)


def gpqa(row: Row, modality: str, task: str) -> Record:
    """GPQA, domain Biology. The right answer has its own field, so the options are put in an order of their own."""
    if text(row, "High-level domain") != "Biology":
        raise Unused(f"domain {row['High-level domain']}")
    question = text(row, "Question")
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    right, *wrong = (_option(row, name).strip() for name in names)  # a final newline would give an option away
    for name, option in zip(names[1:], wrong, strict=True):
        if option_key(option) == option_key(right):
            raise DataError(f"field {name!r}: expected another text than in 'Correct Answer', got {show(option)}")
    # By a hash of question and option: the same on every machine and in every run, whatever the order in the file.
    options = tuple(sorted((right, *wrong), key=lambda option: _digest(f"{question.strip()}\n{option}")))
    extra = others(row, "Record ID", "Question", "Subdomain", "Explanation", *names)
    if explanation := _optional(row, "Explanation"):
        extra["explanation"] = explanation
    answer, subdomain = LETTERS[options.index(right)], label(row, "Subdomain") or task
    return _record(_id(row, "Record ID", "gpqa"), question, options, answer, modality, subdomain, "GPQA", extra)


def medvlthinker(row: Row, modality: str, task: str) -> Record:
    """MedVLThinker's unified rows; ``dataset_index`` counts within a split of its data set, so it is no id."""
    question, options = text(row, "question"), _choices(row, "options")
    answer = _letter(row, "answer_label", options)
    _check_text(row, "answer", options, answer)
    extra = others(row, "images", "question", "options", "answer_label", "answer", "dataset_name")
    dataset = label(row, "dataset_name")
    return _record("", question, options, answer, modality, task, dataset, extra, images=_images(row, "images"))


def open_medical_r1(row: Row, modality: str, task: str) -> Record:
    """Open-Medical-R1: ``answer`` is a letter, ``option`` its text, or all options by letter as for MedXpertQA.

    The options are those of ``option``, else those that the question lists. A question that does not list the text of
    ``option`` gives an open record: the gold answer is that text, and the letter, which names nothing then, goes to the
    metadata.
    """
    extra, row_id = others(row, "id", "question", "answer", "option"), _id(row, "id", "open_medical_r1")
    option, published = row.get("option"), text(row, "question")
    if isinstance(option, dict | list):
        problem, question, options = _given(row, "option")
    else:
        option = option_key(_option(row, "option"))
        if _stem(published) == published and option not in map(option_key, parse_options(published)[1]):
            extra |= {"letter": text(row, "answer")}
            return _record(row_id, published, (), _option(row, "option"), modality, task, "", extra)
        problem, question, options = _listed(row)
        _check_text(row, "option", options, _letter(row, "answer", options))
    answer = _letter(row, "answer", options)
    return _record(row_id, question, options, answer, modality, task, "", extra, problem=problem)


def _record(
    id: str,
    question: str,
    options: tuple[str, ...],
    answer: str,
    modality: str,
    task: str,
    dataset: str,
    extra: dict[str, str],
    images: tuple[str, ...] = (),
    problem: str = "",
) -> Record:
    """A record whose problem is the question with its options unless given."""
    problem = problem or with_options(question, options)
    return Record(id, problem, question, options, answer, images, modality, task, dataset, metadata=extra)


def _id(row: Row, name: str, prefix: str) -> str:
    """The row's own id, with a prefix when it is a bare number; empty when it has none."""
    own = label(row, name)
    return f"{prefix}-{own}" if own.isdecimal() else own


def _optional(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if isinstance(value, str) and not value.strip() else label(row, name)


def _option(row: Row, name: str) -> str:
    value = _optional(row, name)
    if not value:
        raise DataError(f"field {name!r}: expected the text of an option, got {show(row.get(name))}")
    return value


def _object(row: Row, name: str) -> Row:
    value = row.get(name)
    if not isinstance(value, dict):
        raise DataError(f"field {name!r}: expected an object with fields, got {show(value)}")
    return value


def _images(row: Row, name: str) -> tuple[str, ...]:
    """A field that may be missing, and else holds a list of paths or of ``{image_path}``."""
    value = row.get(name)
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise DataError(f"field {name!r}: expected a list of images, got {show(value)}")
    return tuple(text({name: item.get("image_path") if isinstance(item, dict) else item}, name) for item in items)


def _choices(row: Row, name: str) -> tuple[str, ...]:
    """Options: a list of texts, an object by letter, a list of ``{letter, content}``, or one of these as text."""
    value = row.get(name)
    if isinstance(value, str):
        value = _parsed(text(row, name), name)
    if isinstance(value, dict):
        # Parquet gives each row the letters of all rows, and null for those that it has not.
        pairs = [(letter, option) for letter, option in value.items() if option is not None]
    elif isinstance(value, list | tuple) and all(isinstance(item, dict) for item in value):
        pairs = [(item.get("letter", item.get("key")), item.get("content", item.get("value"))) for item in value]
    elif isinstance(value, list | tuple):
        pairs = list(zip(LETTERS, value, strict=False)) if len(value) <= len(LETTERS) else value
    else:
        raise DataError(f"field {name!r}: expected options by letter or in a list, got {show(value)}")
    if not 2 <= len(pairs) <= len(LETTERS):
        raise DataError(f"field {name!r}: expected 2 to {len(LETTERS)} options, got {len(pairs)}")
    pairs.sort(key=lambda pair: str(pair[0]))
    if [letter for letter, _ in pairs] != list(LETTERS[: len(pairs)]):
        letters = [letter for letter, _ in pairs]
        raise DataError(f"field {name!r}: expected the letters {LETTERS[: len(pairs)]}, got {show(letters)}")
    return tuple(_option({name: option}, name) for _, option in pairs)


def _parsed(value: str, name: str) -> Any:
    """Options in JSON, or as one line ``A. text`` each."""
    if value.lstrip()[0] not in "{[":
        return parse_options(value)[1]
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"field {name!r}: expected options as JSON, got {show(value)}") from error


def _literal_options(row: Row, name: str) -> tuple[str, ...]:
    """Options as a list, or as Python writes one; an open question has none."""
    value = _literal_list(text(row, name)) if isinstance(row.get(name), str) else row.get(name)
    if not isinstance(value, list | tuple):
        raise DataError(f"field {name!r}: expected a list of options, got {show(row.get(name))}")
    return _choices({name: value}, name) if value else ()


def _literal_list(value: str) -> list | None:
    """The list that a text is in Python, or None."""
    if len(value) > MAX_LITERAL or not value.lstrip().startswith("["):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # a lone backslash of a formula stands for itself
            found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    simple = isinstance(found, list) and all(
        type(item) in (str, float) or (type(item) is int and abs(item) < 10**15) for item in found
    )
    return [str(item) for item in found] if simple else None


def _letter(row: Row, name: str, options: tuple[str, ...]) -> str:
    """Gold: a letter of the options, alone or in a list of one."""
    value, letters = row.get(name), LETTERS[: len(options)]
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or value.strip() not in tuple(letters):
        raise DataError(f"field {name!r}: expected a letter of {letters}, got {show(row.get(name))}")
    return value.strip()


def _index(row: Row, name: str, allowed: Sequence[int]) -> int:
    """A field that holds one of these numbers, as a number or as text."""
    value = row.get(name)
    for number in allowed:
        if value == str(number) or (type(value) is int and value == number):
            return number
    raise DataError(f"field {name!r}: expected one of {', '.join(map(str, allowed))}, got {show(value)}")


def _check_text(row: Row, name: str, options: tuple[str, ...], letter: str) -> None:
    """Raise if the text of the gold answer is given and is not that of its letter."""
    gold, value = options[LETTERS.index(letter)], _optional(row, name)
    if value and option_key(value) != option_key(gold):
        raise DataError(f"field {name!r}: expected {show(gold)}, the text of option {letter}, got {show(value)}")


def _after_context(row: Row, contexts: str, question: str) -> str:
    return "\n\n".join([*filter(str.strip, texts(row, contexts)), question])


def _given(row: Row, name: str) -> tuple[str, str, tuple[str, ...]]:
    """Problem, stem and options of a row whose field ``name`` has the options.

    The question may list them too: the stem does not, and the problem is the question as published when it lists the
    same ones, whatever the punctuation.
    """
    published, options = text(row, "question"), _choices(row, name)
    question = _stem(published)
    listing = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=False))
    same = _key(published[len(question) :]) == _key(f"Answer Choices {listing}")
    return published if same else with_options(question, options), question, options


def _listed(row: Row) -> tuple[str, str, tuple[str, ...]]:
    """Problem, stem and options of a row whose question lists the options."""
    published = text(row, "question")
    question = _stem(published)
    if question == published:
        question, options = parse_options(published)
    else:
        options = parse_options(published[len(question) :])[1]
    if not options or (len(options) == len(LETTERS) and "(K)" in options[-1]):
        got = f"more than {len(LETTERS)}" if options else "none"
        raise DataError(f"field 'question': expected options as in 'Answer Choices: (A) ... (B) ...', got {got}")
    return published, question, options


def _stem(question: str) -> str:
    """A question without its last ``Answer Choices: (A) ...``."""
    marks = list(_CHOICES.finditer(question))
    return text({"question": question[: marks[-1].start()].rstrip()}, "question") if marks else question


def _key(listed: str) -> str:
    """What lists of options are compared by: letters and digits alone."""
    return "".join(filter(str.isalnum, listed)).casefold()


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


FORMATS: dict[str, tuple[frozenset[str], Callable[[Row, str, str], Record]]] = {
    "gpqa": (frozenset({"Question", "Correct Answer", "Incorrect Answer 1", "High-level domain"}), gpqa),
    "mmlu_pro": (frozenset({"question", "options", "answer", "answer_index", "category"}), mmlu_pro),
    "mmmu": (frozenset({"id", "question", "options", "answer", "image_1"}), mmmu),
    "medvlthinker": (frozenset({"images", "question", "options", "answer_label"}), medvlthinker),
    "medmcqa": (frozenset({"question", "opa", "opb", "opc", "opd"}), medmcqa),
    "medmcqa_0": (frozenset({"question", "opa", "opb", "opc", "opd"}), medmcqa_0),
    "medmcqa_1": (frozenset({"question", "opa", "opb", "opc", "opd"}), medmcqa_1),
    "medqa": (frozenset({"question", "options", "answer_idx"}), medqa),
    "medqa_hf": (frozenset({"sent1", "ending0", "ending1", "label"}), medqa),
    "pubmedqa": (frozenset({"QUESTION", "CONTEXTS", "final_decision"}), pubmedqa),
    "pubmedqa_hub": (frozenset({"question", "context", "final_decision"}), pubmedqa),
    "pubmedqa_data": (frozenset({"id", "data", "subject_name"}), pubmedqa),
    "open_medical_r1": (frozenset({"question", "answer", "option"}), open_medical_r1),
    "medxpertqa": (frozenset({"question", "label"}), medxpertqa),
}
"""Name of a format -> fields that tell its rows, and its reader. A format with several layouts has a name for each, and
its reader takes all of them. No row has the fields of two, but for MedMCQA's, where `medmcqa_base` decides."""
