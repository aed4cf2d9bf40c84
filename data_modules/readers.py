"""Rows of image question files -> `Record`: one function per published format.

A reader gets one row and what the file's name tells. It returns a record, or several, whose ``id`` is the row's own and
empty when it has none. It raises `DataError` for a malformed row and `Unused` for one that is left out on purpose.
"""

from __future__ import annotations

from pathlib import Path

from data_modules.fields import Row, label, paths, show, text, texts, with_options
from data_modules.labels import modality_of
from data_modules.options import option_key, parse_gold, parse_options
from medgrpo.types import LETTERS, DataError, Record


def med_r1(row: Row, modality: str, task: str) -> Record:
    """Med-R1: ``image, problem`` with inline options, ``solution`` in tags."""
    problem = text(row, "problem")
    images = paths(row, "image")
    question, options = parse_options(problem)
    answer = parse_gold(text(row, "solution"), options)
    parts = Path(images[0]).parts if images else ()
    dataset = parts[1] if len(parts) > 2 and parts[0] == "Images" else ""
    return Record("", problem, question, options, answer, images, modality, task, dataset)


def medvlm_r1(row: Row, modality: str, task: str) -> Record:
    """MedVLM-R1, and Medical_Multimodal_Evaluation_Data, which has no ``problem`` and no ``solution``."""
    question = text(row, "question")
    options = texts(row, "options")
    problem = text(row, "problem") if "problem" in row else with_options(question, options)
    answer = parse_gold(text(row, "solution" if "solution" in row else "answer"), options)
    if options and "answer" in row and option_key(text(row, "answer")) != option_key(options[LETTERS.index(answer)]):
        gold = options[LETTERS.index(answer)]
        raise DataError(f"field 'answer': expected {gold!r}, the text of option {answer}, got {show(row['answer'])}")
    subset = modality_of(label(row, "subset")) or modality
    return Record("", problem, question, options, answer, paths(row, "image"), subset, task, label(row, "dataset"))
