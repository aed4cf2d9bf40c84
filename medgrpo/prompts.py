"""Record -> chat messages.

A prompt is a preset of ``PRESETS`` or any text that contains ``{Question}``. The presets ``think``, ``nothink`` and
``think_after`` are ours; the others reproduce, byte for byte, what Med-R1, MedVLM-R1 and open-medical-r1 train or
evaluate with, odd blanks and spelling included, so that their models are asked what they were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from medgrpo.types import Record, SettingsError


@dataclass(frozen=True)
class Preset:
    """How one prompt is worded and laid out."""

    text: str
    """User text; ``{Question}`` marks where the question goes."""
    system: str = ""
    """System text; empty leaves the system turn to the chat template."""
    verbatim: bool = False
    """True inserts ``record.problem`` as published; False inserts the question and one ``A) text`` line per option."""
    text_first: bool = False
    """True puts the text before the images."""


_R1 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think><answer> answer here </answer>"
)

PRESETS: dict[str, Preset] = {
    "think": Preset(
        "{Question}\n\nReason step by step inside <think> </think>. Then give the answer inside <answer> </answer>: "
        "the letter of one option, or a few words when no options are listed. Write nothing else."
    ),
    "nothink": Preset(
        "{Question}\n\nGive the answer inside <answer> </answer>: the letter of one option, or a few words when no "
        "options are listed. Write nothing else."
    ),
    "think_after": Preset(
        "{Question}\n\nFirst give the answer inside <answer> </answer>: the letter of one option, or a few words when "
        "no options are listed. Then justify it inside <think> </think>. Write nothing else."
    ),
    "med_r1_think": Preset(
        "{Question} Your task: 1. Think through the question step by step, enclose your reasoning process in "
        "<think>...</think> tags. 2. Then provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 3. No extra information or text outside of these tags.",
        verbatim=True,
    ),
    "med_r1_nothink": Preset(
        "{Question} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) inside "
        "<answer>...</answer> tags. 2. No extra information or text outside of this tag.",
        verbatim=True,
    ),
    "med_r1_think_eval": Preset(
        "{Question} Think through the question step by step in <think>...</think> tags. Then provide the correct "
        "single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.",
        verbatim=True,
    ),
    "med_r1_nothink_eval": Preset(
        "{Question} Provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.",
        verbatim=True,
    ),
    "med_r1_zero_shot": Preset(
        "{Question} Provide the correct single-letter choice (A, B, C, D,...).",
        verbatim=True,
    ),
    "med_r1_readme": Preset(
        "{Question} First output the thinking process in <think> </think> and final choice (A, B, C, D ...) in "
        "<answer> </answer> tags.",
        verbatim=True,
    ),
    "med_r1_sft": Preset(
        "{Question}",
        system="Your task: Provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.",
        verbatim=True,
        text_first=True,
    ),
    # What both vision seeds send when a record has no image.
    "med_r1_text": Preset("{Question}", system=_R1, verbatim=True),
    "medvlm_r1_think": Preset(
        "\n        {Question} \n        Your task: \n        1. Think through the question step by step, enclose your "
        "reasoning process in <think>...</think> tags. \n        2. Then provide the correct single-letter choice "
        "(A, B, C, D,...) inside <answer>...</answer> tags.\n        3. No extra information or text outside of these "
        "tags.\n        ",
        verbatim=True,
    ),
    # The same words as medvlm_r1_think, indented by four blanks in place of eight.
    "medvlm_r1_think_eval": Preset(
        "\n    {Question} \n    Your task: \n    1. Think through the question step by step, enclose your reasoning "
        "process in <think>...</think> tags. \n    2. Then provide the correct single-letter choice (A, B, C, D,...) "
        "inside <answer>...</answer> tags.\n    3. No extra information or text outside of these tags.\n    ",
        verbatim=True,
    ),
    "medvlm_r1_simple_eval": Preset(
        "\n    {Question} \n    Your task: provide the correct single-letter choice (A, B, C, D,...).\n    ",
        verbatim=True,
    ),
    "medvlm_r1_number": Preset(
        "{Question}  Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> "
        "tags.",
        verbatim=True,
    ),
    "open_medical_r1": Preset(
        "{Question}",
        system=(
            "A conversation between user and assistant. The user asks a question, and the assistant solves it. The "
            "assistant first thinks about the reasoning process in the mind and then provides the user with the answer."
            "The reasoning process is to solve the problem step by step, so you will think about it sinceraly.The "
            "reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
            "respectively, i.e., <think> reasoning process here </think><answer> answer here </answer>"
        ),
        verbatim=True,
    ),
}
"""Prompts by name."""


def messages(record: Record, prompt: str) -> list[dict]:
    """Builds the chat messages of one record.

    Args:
        record: The question.
        prompt: A name in ``PRESETS``, or a text with ``{Question}``, which is laid out as our own presets are: the
            images, then the text with the question and one ``A) text`` line per option.

    Returns:
        An optional system turn and one user turn, both with a list of parts as content; the user turn holds one
        ``{"type": "image"}`` per image of the record.

    Raises:
        SettingsError: ``prompt`` is neither.
    """
    if prompt in PRESETS:
        preset = PRESETS[prompt]
    elif "{Question}" in prompt:
        preset = Preset(prompt)
    else:
        raise SettingsError(
            f"prompt: expected one of {', '.join(PRESETS)}, or a text that contains {{Question}}; got {prompt!r}"
        )
    question = record.problem if preset.verbatim else _listing(record)
    # str.format would choke on other braces in the text.
    parts = [{"type": "text", "text": preset.text.replace("{Question}", question)}]
    images = [{"type": "image"} for _ in record.images]
    user = {"role": "user", "content": parts + images if preset.text_first else images + parts}
    if not preset.system:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": preset.system}]}, user]


def _listing(record: Record) -> str:
    """The question and its options, one ``A) text`` line each."""
    options = zip(record.letters, record.options, strict=True)
    return "\n".join([record.question, *(f"{letter}) {text}" for letter, text in options)])
