"""Rows of exams -> `Record`: one function per published format; the contract is that of `data_modules.readers`.

What no other part of the record holds goes to its metadata, under the published name; an explanation always under
``explanation``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

from data_modules.exam_fields import (
    check_gold_text,
    choices,
    fields_of,
    given_options,
    gold_letter,
    images_of,
    index_of,
    listed_options,
    literal_list,
    literal_options,
    option_text,
    optional,
    own_id,
    stem_of,
)
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

HIDDEN = "answer is not published"
"""Why a row of a test split gives no record."""


def medxpertqa(row: Row, modality: str, task: str) -> Record:
    """MedXpertQA Text and MM from the hub or the repository, and the repository's inputs that have no ``options``."""
    problem, question, options = listed_options(row) if row.get("options") is None else given_options(row, "options")
    answer, images = gold_letter(row, "label", options), images_of(row, "images")
    extra = others(row, "id", "question", "options", "label", "images", "medical_task")
    kind, dataset = label(row, "medical_task") or task, "MedXpertQA" if "medical_task" in row else ""
    return _record(
        own_id(row, "id", "medxpertqa"), question, options, answer, modality, kind, dataset, extra, images, problem
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
    options, answer = literal_options(row, "options"), text(row, "answer")
    if options:
        answer = gold_letter(row, "answer", options)
    elif label(row, "question_type") == "multiple-choice":
        raise DataError("field 'options': expected options, as 'question_type' is multiple-choice, got none")
    elif accepted := literal_list(answer):
        answer, extra["answers"] = option_text({"answer": accepted[0]}, "answer"), answer
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
        found = [name for name in row if isinstance(name, str) and re.fullmatch(r"ending[0-9]{1,2}", name)]
        endings = [f"ending{number}" for number in range(len(found))]
        question = "\n".join(filter(None, [text(row, "sent1"), optional(row, "sent2")]))
        options = tuple(option_text(row, name) for name in endings)
        answer = LETTERS[index_of(row, "label", range(len(options)))]
        extra = others(row, "id", "sent1", "sent2", "label", *endings)
    else:
        question, options = text(row, "question"), choices(row, "options")
        answer = gold_letter(row, "answer_idx", options)
        check_gold_text(row, "answer", options, answer)
        extra = others(row, "id", "question", "options", "answer", "answer_idx", "metamap_phrases")
    dataset = "HuatuoGPT-o1" if "Open-ended Verifiable Question" in row else "MedQA"
    return _record(own_id(row, "id", "medqa"), question, options, answer, modality, task, dataset, extra)


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
    question, options = text(row, "question"), tuple(option_text(row, name) for name in names)
    cop = index_of(row, "cop", (*range(first, first + 4), -1)) if "cop" in row else -1
    if cop == -1:
        raise Unused(HIDDEN)
    extra = others(row, "id", "question", "cop", "exp", "subject_name", *names)
    if explanation := optional(row, "exp"):
        extra["explanation"] = explanation
    subject = label(row, "subject_name") or task
    answer = LETTERS[cop - first]
    return _record(own_id(row, "id", "medmcqa"), question, options, answer, modality, subject, "MedMCQA", extra)


def pubmedqa(row: Row, modality: str, task: str) -> Record:
    """PubMedQA: ``ori_pqal.json`` with its key as ``pubid``, the hub's ``pqa_labeled``, and the one with ``data``.

    The abstract stands before the question: without it there is nothing to answer from.
    """
    if "data" in row:
        data = fields_of(row, "data")
        question, options = _after_context(data, "Context", text(data, "Question")), choices(data, "Options")
        answer = gold_letter(data, "Correct Option", options)
        check_gold_text(data, "Correct Answer", options, answer)
        extra = others(data, "Question", "Options", "Context", "Correct Option", "Correct Answer")
        extra |= others(row, "id", "data")
        return _record(own_id(row, "id", "pubmedqa"), question, options, answer, modality, task, "PubMedQA", extra)
    if "QUESTION" in row:  # ori_pqal.json, where nothing is nested
        question = _after_context(row, "CONTEXTS", text(row, "QUESTION"))
        extra = others(row, "pubid", "QUESTION", "CONTEXTS", "final_decision")
    else:
        context = fields_of(row, "context")
        question = _after_context(context, "contexts", text(row, "question"))
        extra = others(row, "pubid", "question", "context", "final_decision") | others(context, "contexts")
    options, decision = ("yes", "no", "maybe"), text(row, "final_decision").strip().lower()
    if decision not in options:
        raise DataError(f"field 'final_decision': expected yes, no or maybe, got {show(row['final_decision'])}")
    answer = LETTERS[options.index(decision)]
    return _record(own_id(row, "pubid", "pubmedqa"), question, options, answer, modality, task, "PubMedQA", extra)


def mmlu_pro(row: Row, modality: str, task: str) -> Record:
    """MMLU-Pro, category health: up to ten options, among them ``N/A`` where published."""
    if text(row, "category") != "health":
        raise Unused(f"category {row['category']}")
    question, options = text(row, "question"), choices(row, "options")
    answer = gold_letter(row, "answer", options)
    index = index_of(row, "answer_index", range(len(options)))
    if LETTERS[index] != answer:
        raise DataError(f"field 'answer_index': expected that of {answer}, which 'answer' names, got {index}")
    extra = others(row, "question_id", "question", "options", "answer", "answer_index")
    return _record(own_id(row, "question_id", "mmlu_pro"), question, options, answer, modality, task, "MMLU-Pro", extra)


def gpqa(row: Row, modality: str, task: str) -> Record:
    """GPQA, domain Biology. The right answer has its own field, so the options are put in an order of their own."""
    if text(row, "High-level domain") != "Biology":
        raise Unused(f"domain {row['High-level domain']}")
    question = text(row, "Question")
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    right, *wrong = (option_text(row, name).strip() for name in names)  # a final newline would give an option away
    for name, option in zip(names[1:], wrong, strict=True):
        if option_key(option) == option_key(right):
            raise DataError(f"field {name!r}: expected another text than in 'Correct Answer', got {show(option)}")
    # By a hash of question and option: the same on every machine and in every run, whatever the order in the file.
    options = tuple(sorted((right, *wrong), key=lambda option: _digest(f"{question.strip()}\n{option}")))
    extra = others(row, "Record ID", "Question", "Subdomain", "Explanation", *names)
    if explanation := optional(row, "Explanation"):
        extra["explanation"] = explanation
    answer, subdomain = LETTERS[options.index(right)], label(row, "Subdomain") or task
    return _record(own_id(row, "Record ID", "gpqa"), question, options, answer, modality, subdomain, "GPQA", extra)


def medvlthinker(row: Row, modality: str, task: str) -> Record:
    """MedVLThinker's unified rows; ``dataset_index`` counts within a split of its data set, so it is no id."""
    question, options = text(row, "question"), choices(row, "options")
    answer = gold_letter(row, "answer_label", options)
    check_gold_text(row, "answer", options, answer)
    extra = others(row, "images", "question", "options", "answer_label", "answer", "dataset_name")
    dataset = label(row, "dataset_name")
    return _record("", question, options, answer, modality, task, dataset, extra, images=images_of(row, "images"))


def open_medical_r1(row: Row, modality: str, task: str) -> Record:
    """Open-Medical-R1: ``answer`` is a letter, ``option`` its text, or all options by letter as for MedXpertQA.

    The options are those of ``option``, else those that the question lists. A question that does not list the text of
    ``option`` gives an open record: the gold answer is that text, and the letter, which names nothing then, goes to the
    metadata.
    """
    extra, row_id = others(row, "id", "question", "answer", "option"), own_id(row, "id", "open_medical_r1")
    option, published = row.get("option"), text(row, "question")
    if isinstance(option, dict | list):
        problem, question, options = given_options(row, "option")
    else:
        option = option_key(option_text(row, "option"))
        if stem_of(published) == published and option not in map(option_key, parse_options(published)[1]):
            extra |= {"letter": text(row, "answer")}
            return _record(row_id, published, (), option_text(row, "option"), modality, task, "", extra)
        problem, question, options = listed_options(row)
        check_gold_text(row, "option", options, gold_letter(row, "answer", options))
    answer = gold_letter(row, "answer", options)
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


def _after_context(row: Row, contexts: str, question: str) -> str:
    return "\n\n".join([*filter(str.strip, texts(row, contexts)), question])


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
