"""Rows of image question files -> `Record`: one function per published format.

A reader gets one row and what the file's name tells. It returns a record, or several, whose ``id`` is the row's own and
empty when it has none. It raises `DataError` for a malformed row and `Unused` for one that is left out on purpose.
Fields that no other part of the record holds go to its metadata under their own names.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from data_modules.fields import Row, Unused, label, others, paths, show, text, texts, with_options
from data_modules.labels import modality_of, task_of
from data_modules.options import match_option, option_key, parse_gold, parse_options
from medgrpo.types import LETTERS, DataError, Record

MAX_TURNS = 100
"""Turns of one conversation; those of PubMedVision are few."""

_PREFIX = re.compile(r"^[A-D]\s*:\s*")
_MODALITY_TAG = re.compile(r"\s*<([A-Z][A-Z_-]*)>(?=\s*[^<\s])")


def med_r1(row: Row, modality: str, task: str) -> Record:
    """Med-R1: ``image, problem`` with inline options, ``solution`` in tags; and MediX-R1: ``<CT_SCAN>solution``."""
    problem, solution = text(row, "problem"), text(row, "solution")
    images = paths(row, "image")
    question, options = parse_options(problem)
    extra = others(row, "image", "problem", "solution")
    if tag := _MODALITY_TAG.match(solution):
        solution, extra["modality"] = solution[tag.end() :], tag[1].replace("_", " ")
        modality = _modality(extra, "modality", extra) or modality
    answer = parse_gold(solution, options)
    parts = images[0].split("/") if images else ()
    dataset = parts[1] if len(parts) > 2 and parts[0] == "Images" else ""
    closed = not options and _is_yes_no(answer)
    return Record("", problem, question, options, answer, images, modality, task, dataset, closed, extra)


def medvlm_r1(row: Row, modality: str, task: str) -> Record:
    """MedVLM-R1, and Medical_Multimodal_Evaluation_Data, which has no ``problem`` and no ``solution``."""
    question = text(row, "question")
    options = texts(row, "options")
    if "solution" in row:
        answer = parse_gold(text(row, "solution"), options)
    else:
        answer = match_option(text(row, "answer"), options, "answer") if options else text(row, "answer")
    if options and "answer" in row and option_key(text(row, "answer")) != option_key(options[LETTERS.index(answer)]):
        gold = options[LETTERS.index(answer)]
        raise DataError(f"field 'answer': expected {gold!r}, the text of option {answer}, got {show(row['answer'])}")
    extra = others(row, "image", "problem", "solution", "question", "options", "answer", "dataset")
    return Record(
        id="",
        problem=text(row, "problem") if "problem" in row else with_options(question, options),
        question=question,
        options=options,
        answer=answer,
        images=paths(row, "image"),
        modality=_modality(row, "subset", extra) or modality,
        task=task,
        dataset=label(row, "dataset"),
        closed=not options and _is_yes_no(answer),
        metadata=extra,
    )


def omnimedvqa(row: Row, modality: str, task: str) -> Record:
    """OmniMedVQA's QA_information, open and restricted: ``gt_answer`` is the text of one of ``option_A`` and so on.

    A record of Chest CT Scan says ``modality`` where all others say ``modality_type``.
    """
    question, options = text(row, "question"), _lettered(row, "option_")
    name = "modality_type" if "modality_type" in row else "modality"
    listed = [f"option_{letter}" for letter in string.ascii_uppercase]
    extra = others(row, "question", "gt_answer", "image_path", "question_id", "question_type", "dataset", *listed)
    kind = label(row, "question_type")
    return Record(
        id=label(row, "question_id"),
        problem=with_options(question, options),
        question=question,
        options=options,
        answer=match_option(text(row, "gt_answer"), options, "gt_answer"),
        images=paths(row, "image_path"),
        modality=_modality(row, name, extra) if name in row else modality,
        task=task_of(kind) or kind or task,
        dataset=label(row, "dataset"),
        metadata=extra,
    )


def pubmedvision(row: Row, modality: str, task: str) -> list[Record]:
    """PubMedVision: one record per question and answer of its ``conversations``.

    A later question may lean on what was said before it, so ``problem`` is the conversation up to it, one turn per
    paragraph, while ``question`` is the question alone; metadata counts the turns from 1.
    """
    turns = _turns(row)
    extra = others(row, "image", "conversations", "id")
    images, own = paths(row, "image"), label(row, "id")
    modality = _modality(row, "modality", extra) if "modality" in row else modality
    records = []
    for number in range(0, len(turns), 2):
        question, answer = turns[number : number + 2]
        several = {"turn": str(number // 2 + 1)} if len(turns) > 2 else {}
        records.append(
            Record(
                id=f"{own}-{number // 2}" if own and several else own,
                problem="\n\n".join(turns[: number + 1]),
                question=question,
                options=(),
                answer=answer,
                images=images,
                modality=modality,
                task=task,
                dataset="PubMedVision",
                closed=_is_yes_no(answer),
                metadata=extra | several,
            )
        )
    return records


def _turns(row: Row) -> list[str]:
    """Questions and answers of ``conversations`` in turn, without the marks that say where an image stands."""
    turns = row.get("conversations")
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"field 'conversations': expected a list of turns with 'from' and 'value', got {show(turns)}")
    if len(turns) > MAX_TURNS:
        raise DataError(f"field 'conversations': expected at most {MAX_TURNS} turns, got {len(turns)}")
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        raise DataError(f"field 'conversations': expected human and gpt in turn, got {show(speakers)}")
    return [text({"value": text(turn, "value").replace("<image>", "").strip()}, "value") for turn in turns]


def vqa_rad(row: Row, modality: str, task: str) -> Record:
    """VQA-RAD as its authors published it, and MEVF's files, which have fewer of the fields.

    Answers may be numbers. Paraphrases share ``qid_linked_id`` and ``image_name``.
    """
    question = text(row, "question")
    return Record(
        id=_numbered(row, "qid", "vqa_rad"),
        problem=question,
        question=question,
        options=(),
        answer=_answer(row, "answer"),
        images=paths(row, "image_name"),
        modality=modality,
        task=task,
        dataset="VQA-RAD",
        closed=_is_closed(row),
        metadata=others(row, "qid", "question", "answer", "answer_type", "image_name"),
    )


def image_question_answer(row: Row, modality: str, task: str) -> Record:
    """The hub's VQA-RAD and PathVQA: ``image, question, answer``, and nothing that tells closed questions from open."""
    question, answer = text(row, "question"), _answer(row, "answer")
    extra = others(row, "image", "question", "answer")
    closed = _is_yes_no(answer)
    return Record("", question, question, (), answer, paths(row, "image"), modality, task, "", closed, extra)


def adaptllm(row: Row, modality: str, task: str) -> Record:
    """AdaptLLM's biomed-VQA-benchmark: ``image, input, label``, with ``answer_type``, or options A to D for PMC-VQA."""
    question, options = text({"input": text(row, "input").replace("<image>", "").strip()}, "input"), _lettered(row, "")
    answer = _answer(row, "label")
    return Record(
        id="",
        problem=with_options(question, options),
        question=question,
        options=options,
        answer=parse_gold(answer, options, "label") if options else answer,
        images=paths(row, "image"),
        modality=modality,
        task=task,
        closed=not options and (_is_closed(row) if "answer_type" in row else _is_yes_no(answer)),
        metadata=others(row, "image", "input", "label", "answer_type", *string.ascii_uppercase),
    )


def slake(row: Row, modality: str, task: str) -> Record:
    """SLAKE, English."""
    return _slake(row, modality, task, "en")


def slake_zh(row: Row, modality: str, task: str) -> Record:
    """SLAKE, Chinese."""
    return _slake(row, modality, task, "zh")


def slake_all(row: Row, modality: str, task: str) -> Record:
    """SLAKE, both languages."""
    return _slake(row, modality, task, text(row, "q_lang"))


def _slake(row: Row, modality: str, task: str, wanted: str) -> Record:
    """Images lie in ``imgs``, which ``img_name`` leaves out."""
    language = text(row, "q_lang")
    if language != wanted:
        raise Unused(f"language {language[:20]}")
    question, name = text(row, "question"), text(row, "img_name")
    used = ("img_name", "question", "answer", "q_lang", "answer_type", "content_type", "qid")
    extra = {"language": language} | others(row, *used)
    return Record(
        id=_numbered(row, "qid", "slake"),
        problem=question,
        question=question,
        options=(),
        answer=_answer(row, "answer"),
        images=(name if name.startswith("imgs/") else f"imgs/{name}",),
        modality=_modality(row, "modality", extra) if "modality" in row else modality,
        task=label(row, "content_type") or task,
        dataset="SLAKE",
        closed=_is_closed(row),
        metadata=extra,
    )


def pmc_vqa(row: Row, modality: str, task: str) -> Record:
    """PMC-VQA, both schemas: ``Answer`` is a text and ``Answer_label`` its letter, or ``Answer`` is the letter.

    A choice loses the letter before it, right or wrong: its column tells which one it is.
    """
    names = [f"Choice {letter}" for letter in "ABCD"]
    if label(row, "Choice E"):
        raise DataError(f"field 'Choice E': expected four choices, got {show(row['Choice E'])}")
    question = _unquoted(text(row, "Question"))
    options = tuple(_choice(text(row, name)) for name in names)
    return Record(
        id="",
        problem=with_options(question, options),
        question=question,
        options=options,
        answer=_pmc_answer(row, options),
        images=paths(row, "Figure_path"),
        modality=modality,
        task=task,
        dataset="PMC-VQA",
        metadata=others(row, "Figure_path", "Question", "Answer", "Answer_label", *names),
    )


def _pmc_answer(row: Row, options: tuple[str, ...]) -> str:
    answer, letters = _choice(text(row, "Answer")), tuple("ABCD")
    named = label(row, "Answer_label").strip("'\" ") if "Answer_label" in row else answer
    if named not in letters:  # some labels are a lone quote
        return match_option(answer, options, "Answer", "" if "Answer_label" in row else "a letter of ABCD or ")
    gold = options[LETTERS.index(named)]
    if answer != named and option_key(answer) != option_key(gold):
        raise DataError(f"field 'Answer': expected {gold[:80]!r}, the text of option {named}, got {show(answer)}")
    return named


def _choice(value: str) -> str:
    return _unquoted(_PREFIX.sub("", _unquoted(value)))


def _unquoted(value: str) -> str:
    """Without space, a pair of quotes around it all, or a stray one at either end."""
    value = value.strip()
    if value.count('"') == 1 or (value.count('"') == 2 and value[0] == value[-1] == '"'):
        return value.strip('"').strip()
    return value


def _lettered(row: Row, prefix: str) -> tuple[str, ...]:
    """Options in fields such as ``option_A``, up to the last that holds any."""
    found = [label(row, prefix + letter) for letter in string.ascii_uppercase]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def _modality(row: Row, name: str, extra: dict[str, str]) -> str:
    """The modality that a field names; one that is not among ours is empty, and stays in ``extra``."""
    found = modality_of(label(row, name))
    if found:
        extra.pop(name, None)
    return found


def _answer(row: Row, name: str) -> str:
    """A text, without the space around it, or a number."""
    return (label(row, name) or text(row, name)).strip()


def _numbered(row: Row, name: str, prefix: str) -> str:
    own = label(row, name)
    return f"{prefix}-{own}" if own else ""


def _is_closed(row: Row) -> bool:
    kind = text(row, "answer_type").strip().upper()
    if kind not in ("OPEN", "CLOSED"):
        raise DataError(f"field 'answer_type': expected OPEN or CLOSED, got {show(row['answer_type'])}")
    return kind == "CLOSED"


def _is_yes_no(answer: str) -> bool:
    return option_key(answer) in ("yes", "no")


_Reader = Callable[[Row, str, str], Record | list[Record]]

FORMATS: dict[str, tuple[frozenset[str], _Reader]] = {
    "med_r1": (frozenset({"problem", "solution"}), med_r1),
    "medvlm_r1": (frozenset({"question", "options", "solution"}), medvlm_r1),
    "medical_multimodal_evaluation": (frozenset({"image", "question", "options", "answer"}), medvlm_r1),
    "omnimedvqa": (frozenset({"question", "gt_answer", "option_A", "option_B"}), omnimedvqa),
    "pubmedvision": (frozenset({"conversations"}), pubmedvision),
    "vqa_rad": (frozenset({"image_name", "question", "answer", "answer_type"}), vqa_rad),
    "vqa_rad_hub": (frozenset({"image", "question", "answer"}), image_question_answer),
    "path_vqa": (frozenset({"image", "question", "answer"}), image_question_answer),
    "adaptllm": (frozenset({"image", "input", "label"}), adaptllm),
    "slake": (frozenset({"img_name", "q_lang", "question", "answer"}), slake),
    "slake_zh": (frozenset({"img_name", "q_lang", "question", "answer"}), slake_zh),
    "slake_all": (frozenset({"img_name", "q_lang", "question", "answer"}), slake_all),
    "pmc_vqa": (frozenset({"Figure_path", "Question", "Answer", "Choice A"}), pmc_vqa),
}
"""Name of a format -> fields that tell its rows, and its reader. Where several have the same fields, the first is meant
unless another one is named."""
