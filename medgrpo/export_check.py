"""Whether two policies answer alike: a few questions, greedy answers, and the log-probabilities of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medgrpo.policy import Policy
from medgrpo.prefix import encode, prepare, score
from medgrpo.prompts import messages
from medgrpo.rollout import sample
from medgrpo.types import PromptBatch, Record, SettingsError

TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.5}
"""Largest difference of log-probabilities of a token that rounding the merged weights may make, in nats."""

NUM_TOKENS = 24
"""Of each answer that is compared."""


@dataclass(frozen=True)
class Answers:
    """What a policy says to a few questions, greedily."""

    ids: Tensor
    """[N, C] int64, right-padded."""
    mask: Tensor
    """[N, C] bool"""


def comparison_prompts(processor: Any) -> PromptBatch:
    """Two questions without and two with an image, which is drawn."""
    y, x = np.mgrid[:84, :112]
    disc = ((x - 60) ** 2 + (y - 40) ** 2 < 500)[..., None]
    drawn = np.where(disc, (200, 180, 160), np.stack([x * 2, y * 2, x + y], -1)).astype(np.uint8)
    images = [Image.fromarray(drawn), Image.fromarray(drawn[::-1].copy())]
    questions = (
        ("What does a bright disc in a fundus image show?", ("the optic nerve head", "a fracture"), ()),
        ("Which modality uses ionising radiation?", ("ultrasound", "CT", "MRI"), ()),
        ("What does this image show?", ("a disc", "nothing", "a square"), ("1.png",)),
        ("Is there a finding?", ("yes", "no"), ("2.png",)),
    )
    records = tuple(
        Record(id=str(i), problem=text, question=text, options=options, answer="A", images=names)
        for i, (text, options, names) in enumerate(questions)
    )
    texts = processor.apply_chat_template(
        [messages(record, "think") for record in records], add_generation_prompt=True, tokenize=False
    )
    encoded = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    return PromptBatch(
        records=records,
        texts=tuple(texts),
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"].bool(),
        mm_token_type_ids=(encoded["input_ids"] == processor.image_token_id).long(),
        pixel_values=encoded["pixel_values"],
        image_grid_thw=encoded["image_grid_thw"],
        images_per_prompt=tuple(len(record.images) for record in records),
    )


@torch.no_grad()
def answer(policy: Policy, processor: Any, prompts: PromptBatch) -> Answers:
    """Greedily, with which nothing is drawn."""
    device, tokenizer = policy.network.device, processor.tokenizer
    completions = policy(
        sample,
        policy(encode, policy(prepare, prompts, device, True)),
        num_generations=1,
        max_completion_length=NUM_TOKENS,
        temperature=0.0,
        stop_ids=torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id], device=device),
        suppressed=torch.tensor(policy.suppressed_ids(), device=device),
        pad_id=tokenizer.pad_token_id,
    )
    return Answers(completions.ids, completions.mask)


@torch.no_grad()
def score_answers(policy: Policy, prompts: PromptBatch, answers: Answers) -> Tensor:
    """[tokens] log-probabilities of the answers' tokens."""
    prefix = policy(encode, policy(prepare, prompts, policy.network.device, True))
    suppressed = torch.tensor(policy.suppressed_ids(), device=policy.network.device)
    return policy(score, prefix, answers.ids, answers.mask, 1.0, suppressed)[0][answers.mask].cpu()


def compare_answers(
    prompts: PromptBatch,
    processor: Any,
    before: Answers,
    after: Answers,
    expected: Tensor,
    got: Tensor,
    of_base: Tensor,
    tolerance: float,
) -> None:
    """Print answers and differences.

    Raises:
        SettingsError: the difference is larger than rounding makes it.
    """

    def texts(answers: Answers) -> list[str]:
        rows = [ids[mask] for ids, mask in zip(answers.ids.cpu(), answers.mask.cpu(), strict=True)]
        return processor.tokenizer.batch_decode(rows, skip_special_tokens=True)

    pairs = list(zip(texts(before), texts(after), strict=True))
    for record, (old, new) in zip(prompts.records, pairs, strict=True):
        same = "the same" if old == new else f"now {new!r}"
        print(f"{record.question} ({len(record.images)} images): {old!r}, {same}")
    difference = (got - expected).abs().max().item()
    effect = (of_base - expected).abs().max().item()
    print(
        f"answers: {sum(old == new for old, new in pairs)} of {len(pairs)} equal; log-probabilities of {len(expected)} "
        f"tokens differ by at most {difference:.2g} (allowed: {tolerance:g})"
        + (f"; the adapter moves them by up to {effect:.2g}" if effect else "")
    )
    if not difference <= tolerance:
        raise SettingsError(
            f"what was written does not answer as the checkpoint does: log-probabilities differ by {difference:.3g}, "
            f"and rounding explains {tolerance:g}; nothing was kept. Without --merge the adapter is written as it is"
        )
    if effect and (got - expected).abs().mean() > (of_base - expected).abs().mean() / 2:
        print("the merged weights are too coarse for what this adapter does: hand over the adapter, without --merge")
