"""Tiny models and prompts shared by the tests, and the plain per-row forward that everything is checked against."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medgrpo.demo.model import save_tiny
from medgrpo.policy import Policy
from medgrpo.types import PromptBatch, Record

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FOLDERS = Path(__file__).parent / ".tiny"


@cache
def tiny_folder(family: str = "qwen2_5_vl") -> str:
    """A complete model folder with random weights, made once."""
    folder = FOLDERS / family
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        save_tiny(folder, family, num_layers=3)  # the last layer's deepstack features reach no completion
    return str(folder)


def tiny_policy(family: str = "qwen2_5_vl", *, double: bool = False, perturb_lora: bool = True, **options) -> Policy:
    """A loaded policy; LoRA weights are made nonzero so that the adapter matters."""
    torch.manual_seed(1)
    policy = Policy(tiny_folder(family), **options)
    policy.load(with_reference=True)
    if policy.use_peft and perturb_lora:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return policy.double() if double else policy


@cache
def processor_of(family: str):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_folder(family))


def record(index: int, num_images: int = 0) -> Record:
    """A four-option question."""
    return Record(
        id=f"r{index}",
        problem=f"Question {index}? A) cyst B) mass",
        question="What is it" + " really" * index + "?",
        options=("cyst", "mass"),
        answer="AB"[index % 2],
        images=tuple(f"{index}_{i}.png" for i in range(num_images)),
        modality="ct",
    )


def prompt_batch(family: str, images: tuple[int, ...] = (1, 0, 2), dtype: torch.dtype = torch.float32) -> PromptBatch:
    """Prompts of different lengths; prompt p has ``images[p]`` images, each of its own size."""
    processor = processor_of(family)
    generator = np.random.default_rng(0)
    records = [record(i, n) for i, n in enumerate(images)]
    sizes = iter([(56, 84), (84, 56), (112, 56), (64, 96), (96, 64), (56, 56), (56, 112), (84, 84)])
    pictures = [
        [Image.fromarray(generator.integers(0, 255, (*next(sizes), 3), dtype=np.uint8)) for _ in r.images]
        for r in records
    ]
    texts = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [*({"type": "image"} for _ in r.images), {"type": "text", "text": r.question}],
                }
            ],
            add_generation_prompt=True,
            tokenize=False,
        )
        for r in records
    ]
    flat = [p for group in pictures for p in group]
    encoded = processor(text=texts, images=flat or None, padding=True, padding_side="left", return_tensors="pt")
    pixels = encoded.get("pixel_values")
    return PromptBatch(
        records=tuple(records),
        texts=tuple(texts),
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"].bool(),
        mm_token_type_ids=(encoded["input_ids"] == processor.image_token_id).long(),
        pixel_values=None if pixels is None else pixels.to(dtype),
        image_grid_thw=encoded.get("image_grid_thw"),
        images_per_prompt=images,
    )


def random_completions(family: str, num_rows: int, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Completions [N, C] of different lengths without special tokens, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 200, (num_rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (num_rows,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    return ids.masked_fill(~mask, processor_of(family).tokenizer.pad_token_id), mask


def row_logps(policy: Policy, prompts: PromptBatch, p: int, completion: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [c] of one unpadded row ``[prompt | completion]`` in one plain transformers forward."""
    one = prompts.select([p])
    ids = torch.cat([one.input_ids, completion[None]], 1)
    types = torch.cat([one.mm_token_type_ids, torch.zeros_like(completion)[None]], 1)
    network = policy.network
    network.model.rope_deltas = None
    logits = network(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=types,
        pixel_values=one.pixel_values,
        image_grid_thw=one.image_grid_thw,
        use_cache=False,
    ).logits[0, one.input_ids.shape[1] - 1 : -1]
    logits[:, policy.suppressed_ids()] = float("-inf")
    return (logits / temperature).log_softmax(-1).gather(-1, completion[:, None])[:, 0]
