"""Make the demo's base model: ``python scripts/make_demo_model.py medgrpo/demo/weights`` (5 minutes on one core).

A supervised warm start from random weights, on reports of synthetic images: what is seen, and what that is called. All
findings are shown equally often and described faithfully, so the model's eyes are good. The names are those of hasty
readers: the first finding of each modality is always called by its name, the others by that of the finding before them
in the list in 35 to 80 of 100 reports (``RIGHT_NAME``). The model learns to doubt as much as its readers disagree. What
is left to GRPO is to find out, from right and wrong answers alone, what those findings are called, and to name nothing
that is not offered.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from data_modules.collate import Collate
from data_modules.phantom import FINDINGS, SIGNS, phantom
from medgrpo.demo.model import build_model, build_processor, build_tokenizer, tiny_config
from medgrpo.prefix import encode, prepare, score
from medgrpo.prompts import messages
from medgrpo.types import Record

PROMPT = "{Question}\nLook, then name it."
"""The demo's prompt, also in ``configs/demo.yaml``."""

DOUBTED = [(modality, finding) for modality, findings in FINDINGS.items() for finding in findings[1:]]
RIGHT_NAME = dict(
    zip(DOUBTED, np.random.default_rng(0).permutation(np.linspace(0.2, 0.65, len(DOUBTED))).tolist(), strict=True)
)
"""How often reports give a finding its own name."""


def truth_of(record: Record) -> str:
    """The text of the right option."""
    return record.options[record.letters.index(record.answer)]


def report(record: Record, rng: np.random.Generator) -> str:
    """What the warm start teaches the model to say."""
    truth = truth_of(record)
    if record.task == "Modality Recognition":
        return f"<think>{truth} picture</think><answer>{truth}</answer><|im_end|>"
    findings = FINDINGS[record.modality]
    name = truth
    if rng.random() > RIGHT_NAME.get((record.modality, truth), 1.0):
        name = findings[findings.index(truth) - 1]
    return f"<think>{SIGNS[record.modality][findings.index(truth)]}</think><answer>{name}</answer><|im_end|>"


def main() -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--records", type=int, default=12000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)

    with tempfile.TemporaryDirectory() as root:
        records = []
        for record, image in phantom(args.seed, args.records):
            path = Path(root, record.images[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            records.append(record)
        corpus = [messages(record, PROMPT)[0]["content"][-1]["text"] for record in records[:2000]]
        corpus += [report(record, rng) for record in records[:2000]]
        tokenizer = build_tokenizer(corpus)
        processor = build_processor("qwen2_5_vl", tokenizer)
        sizes = {"hidden_size": 128, "num_layers": 3, "vision_hidden_size": 128, "vision_layers": 3}
        model = build_model(tiny_config("qwen2_5_vl", tokenizer, **sizes), tokenizer, args.seed)
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
        train(model, processor, records, Collate(processor, PROMPT, root), args, rng)
    model.half().save_pretrained(args.folder)
    processor.save_pretrained(args.folder)


def train(model, processor, records, collate, args, rng) -> None:
    """Next-token training on reports; the rate falls to 0."""
    suppressed = torch.tensor([processor.image_token_id])
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.05)
    losses, start = [], time.monotonic()
    for step in range(1, args.steps + 1):
        batch = [records[i] for i in rng.integers(len(records), size=args.batch)]
        prompts = prepare(model, collate(batch), torch.device("cpu"), frozen_vision=False)
        said = [torch.tensor(processor.tokenizer(report(record, rng)).input_ids) for record in batch]
        ids = pad_sequence(said, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in said])[:, None]
        logps, _ = score(model, encode(model, prompts), ids, mask, 1.0, suppressed)
        loss = -logps.sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}: loss {np.mean(losses[-100:]):.3f}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
