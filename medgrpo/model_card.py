"""The README.md of an exported model: what it is, what it learned from, how well it answers, and what it is not for.

Everything that a file says is shown as code, where Markdown and HTML mean nothing; the front matter is written by YAML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import yaml

from medgrpo.runs import TrainedOn

LICENCES = {
    "Qwen/Qwen2-VL-2B-Instruct": "Apache-2.0",
    "Qwen/Qwen2-VL-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen2-VL-72B-Instruct": "Tongyi Qianwen licence",
    "Qwen/Qwen2.5-VL-3B-Instruct": "Qwen Research licence (no commercial use)",
    "Qwen/Qwen2.5-VL-7B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-VL-32B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-VL-72B-Instruct": "Qwen licence",
    "Qwen/Qwen3-VL-2B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-VL-4B-Instruct": "Apache-2.0",
    "Qwen/Qwen3-VL-8B-Instruct": "Apache-2.0",
}
"""As the models' pages say; to be checked there."""

SETTINGS = ("model.", "trainer.", "data.", "seed_everything")
"""Settings of a run that the card shows begin with one of these."""

HIDDEN = re.compile(
    r"model\.policy\.(init_args\.)?(model_name_or_path|adapter)$"
    r"|trainer\.(logger|callbacks|default_root_dir|plugins|profiler|enable_|barebones|fast_dev_run|limit_(v|te|p))"
    r"|trainer\.(log_every_n_steps|num_sanity_val_steps|detect_anomaly|overfit_batches|inference_mode|use_distributed)"
    r"|data\.(init_args\.)?(train|val|test|predict|image_root|image_cache|difficulty|num_workers|eval_)"
)
"""But for these: places on a machine, and what changes no weight."""

COLUMNS = {
    "accuracy": "accuracy",
    "chance": "chance",
    "majority": "majority",
    "option_prior": "lookup of options",
    "blank": "grey image",
    "wrong_image": "wrong image",
    "strict": "strict",
    "unparsed": "unparsed",
    "truncated": "truncated",
}
"""Of the evaluation: names of ``metrics.json`` and the headings of the card."""

MAX_LENGTH = 300
"""Characters of one value."""


@dataclass(frozen=True)
class Evaluation:
    """One test."""

    name: str
    """Of its folder."""
    metrics: Mapping[str, Any]
    """``metrics.json``"""
    of_this_model: bool
    """Whether its answers are those of the weights that the card is about."""
    note: str = ""
    """What else answered: the base model, or other weights."""


@dataclass(frozen=True)
class Card:
    """What is known."""

    name: str
    kind: Literal["adapter", "merged", "whole"]
    base: str
    """Hub id or last name; empty when unknown."""
    dtype: str
    """Of the weights in the folder."""
    trained_on: TrainedOn | None
    settings: Mapping[str, Any]
    """Of the run, by dotted name; empty when unknown."""
    evaluations: Sequence[Evaluation]
    trained_with: Mapping[str, Any]
    """Versions of the tools that trained; empty when unknown."""
    exported_with: Mapping[str, Any]
    notes: Sequence[str] = ()
    """Sentences of ours."""


def model_card(card: Card) -> str:
    """The text of README.md."""
    front: dict[str, Any] = {"library_name": "peft" if card.kind == "adapter" else "transformers"}
    front["pipeline_tag"] = "image-text-to-text"
    front["tags"] = ["medical", "visual-question-answering", "grpo", "medgrpo"]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.base, flags=re.ASCII):
        front["base_model"] = card.base
        front["base_model_relation"] = "adapter" if card.kind == "adapter" else "finetune"
    what = {
        "adapter": "A LoRA adapter, to be loaded with PEFT on top of its base model.",
        "merged": "A whole model: the base model with a LoRA adapter merged into its weights.",
        "whole": "A whole model, all weights of which were trained, but for those that the settings froze.",
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {code(card.name)}",
        f"{what[card.kind]} Trained with medgrpo (GRPO on medical visual question answering). Base model: "
        f"{code(card.base) if card.base else 'not recorded'}. Weights: {code(card.dtype)}, safetensors.",
        *card.notes,
        "**Not for clinical use.** This is a research model. It is no medical device, no authority has examined it, "
        "and it must not diagnose or treat anyone. It answers when it does not know, and its reasoning may be written "
        "after the fact.",
        "## Training data",
        _training_data(card.trained_on),
        "## Evaluation",
        _evaluations(card.evaluations),
        "## Licences",
        _licences(card.base, card.trained_on),
        "## Settings",
        _table(("setting", "value"), [(code(k), code(v)) for k, v in card.settings.items()])
        if card.settings
        else "The run's config.yaml was not found beside the checkpoint.",
        "## Versions",
        _table(
            ("", "trained with", "exported with"),
            [
                (code(name), code(card.trained_with.get(name, "not recorded")), code(card.exported_with.get(name, "")))
                for name in dict.fromkeys((*card.trained_with, *card.exported_with))
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def code(value: Any) -> str:
    """A value as a code span that can stand in a table: nothing in it is Markdown, HTML, or a line of its own."""
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value))
    text = " ".join(text.split()).replace("`", "'").replace("|", "\N{BROKEN BAR}")
    return f"`{text[:MAX_LENGTH] + '...' * (len(text) > MAX_LENGTH)}`" if text else ""


def shown_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that a card shows, by dotted name and without places on a machine.

    Args:
        config: ``config.yaml`` of the run, as YAML reads it.
    """
    flat = _flat("", config)
    return {
        name: _without_path(value)
        for name, value in flat.items()
        if value not in (None, [], {}, "") and name.startswith(SETTINGS) and not HIDDEN.match(name)
    }


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            k: v for key, part in value.items() for k, v in _flat(f"{name}.{key}" if name else str(key), part).items()
        }
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return {k: v for i, part in enumerate(value) for k, v in _flat(f"{name}.{i}", part).items()}
    return {name: value}


def _without_path(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_path(part) for part in value]
    if isinstance(value, str) and "{Question}" not in value and re.search(r"[/\\]", value):
        return PurePath(value.replace("\\", "/")).name
    return value


def _training_data(known: TrainedOn | None) -> str:
    if known is None:
        return "Not recorded."
    rows = [
        ("datasets", known.datasets),
        ("modalities", known.modalities),
        ("question types", known.tasks),
        ("questions of the last run", known.num_records),
        ("optimizer steps of the last run", known.step),
        ("prompt", known.prompt),
    ]
    return _table(("", ""), [(name, code(", ".join(v) if isinstance(v, tuple) else v)) for name, v in rows])


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "None was given to `medgrpo export --evaluation`: how well this model answers is not known."
    rows = []
    for evaluation in evaluations:
        whose = "this model" if evaluation.of_this_model else evaluation.note
        groups = evaluation.metrics.get("groups", {}).get("modality", {})
        for group, figures in ({"all": evaluation.metrics["overall"]} | dict(sorted(groups.items()))).items():
            interval = f"{_percent(figures.get('low'))} to {_percent(figures.get('high'))}"
            shares = [_percent(figures.get(name)) for name in COLUMNS]
            cells = (
                code(evaluation.name),
                whose,
                code(group),
                code(figures.get("n")),
                shares[0],
                interval,
                *shares[1:],
            )
            rows.append(cells)
    headings = list(COLUMNS.values())
    return (
        "In percent. The interval is Wilson's at 95 %. Beside the accuracy stands what needs no image: chance, the "
        "most frequent letter, a lookup of option texts learned on the training data, and the answers with a grey or a "
        "wrong image. An accuracy near these says nothing about seeing.\n\n"
    ) + _table(("test", "answers of", "group", "n", headings[0], "interval", *headings[1:]), rows)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"


def _licences(base: str, known: TrainedOn | None) -> str:
    licence = LICENCES.get(base)
    of_base = f"{licence}, as far as known; " if licence else "not known here; "
    data = ", ".join(code(name) for name in known.datasets) if known and known.datasets else "not recorded"
    return (
        f"- Base model: {of_base}check its page. Its terms hold for these weights as well.\n"
        f"- Training data ({data}): check the terms of each data set; medical ones often forbid commercial use, "
        "passing on, or both, and that may extend to models.\n"
        "- These weights: no licence has been chosen yet."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
