"""Seconds to evaluate demo records: ``Trainer.test``, next to one ``generate`` call per batch of repeated prompts.

    python scripts/bench_evaluate.py --records 1000 --samples 8

Both draw k samples of every question from the demo's base model, in batches of as many questions, and grade them. Ours
is all of a test: records are read, images opened and processed, answers written to disk as they come, tables made. The
other repeats each prompt and its image k times, gives them to the processor and to ``generate`` of plain transformers,
and grades the texts; the time of ``generate`` alone is shown apart, as a reader may do better at the rest. Loading the
model and a batch to warm up are not counted. One process, one after the other; the tokens that both drew are counted.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer
from PIL import Image

from data_modules import MedicalVQADataModule
from data_modules.formats import read_records, write_jsonl
from data_modules.phantom import phantom
from medgrpo.answers import verdict
from medgrpo.demo.model import BASE_FOLDER
from medgrpo.module import GRPOModule
from medgrpo.policy import Policy
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.prompts import messages
from medgrpo.rewards import AccuracyReward

PROMPT = "{Question}\nLook, then name it."
"""Of ``configs/demo.yaml``."""


def main() -> None:
    """Time both, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=8, help="k, completions per question; 1 is greedy")
    parser.add_argument("--batch", type=int, default=50, help="questions at once")
    parser.add_argument("--new-tokens", type=int, default=16, help="most tokens of a completion")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_records(folder, args.records)
        figures = {"ours": run_ours(args, folder), "generate": run_generate(args, folder)}
    report = {
        "settings": {"records": args.records, "samples": args.samples, "batch": args.batch, "threads": threads()},
        **figures,
        "ratio": figures["generate"]["seconds"] / figures["ours"]["seconds"],
        "ratio_without_processor": figures["generate"]["generate_seconds"] / figures["ours"]["seconds"],
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def threads() -> int:
    """Threads of one operator."""
    return torch.get_num_threads()


def make_records(folder: Path, number: int) -> None:
    """Draw the demo's test questions."""
    records = []
    for record, image in phantom(seed=1, number=number, name="test"):
        path = folder / record.images[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        records.append(record)
    write_jsonl(folder / "test.jsonl", records)
    write_jsonl(folder / "warmup.jsonl", records[:8])


def run_ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A whole test with the data module, the writer of predictions and its tables."""
    module = GRPOModule(
        Policy(str(BASE_FOLDER), use_peft=False),
        [AccuracyReward()],
        torch.optim.AdamW,
        max_completion_length=args.new_tokens,
        num_generations_eval=args.samples,
    )
    for split in ("warmup", "test"):
        data = MedicalVQADataModule(
            test=str(folder / f"{split}.jsonl"), image_root=str(folder), prompt=PROMPT, eval_batch_size=args.batch
        )
        writer = PredictionWriter(str(folder / split))
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=[writer],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        start = time.perf_counter()
        trainer.test(module, datamodule=data, verbose=False)
        seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in (folder / "test/predictions.jsonl").read_text().splitlines()]
    samples = [sample for row in rows for sample in row.get("samples", [row])]
    overall = json.loads((folder / "test/metrics.json").read_text())["overall"]
    return {
        "seconds": seconds,
        "completions": len(samples),
        "tokens": sum(sample["num_tokens"] for sample in samples),
        "strict_accuracy": overall["strict"],
    }


def run_generate(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The plain way: every prompt and image k times through processor and ``generate``."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(BASE_FOLDER)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    draw = (
        {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if args.samples > 1 else {"do_sample": False}
    )
    for split in ("warmup", "test"):
        records = read_records(folder / f"{split}.jsonl")
        right = completions = tokens = 0
        generate_seconds, start = 0.0, time.perf_counter()
        for first in range(0, len(records), args.batch):
            batch = [record for record in records[first : first + args.batch] for _ in range(args.samples)]
            chats = [messages(record, PROMPT) for record in batch]
            texts = [processor.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
            images = [Image.open(folder / record.images[0]) for record in batch]
            inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
            begun = time.perf_counter()
            with torch.no_grad():
                drawn = model.generate(**inputs, max_new_tokens=args.new_tokens, **draw)
            generate_seconds += time.perf_counter() - begun
            ids = drawn[:, inputs["input_ids"].shape[1] :]
            said = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
            right += sum(verdict(record, text) == "right" for record, text in zip(batch, said, strict=True))
            completions += len(said)
            tokens += int((ids != processor.tokenizer.pad_token_id).sum())
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "generate_seconds": generate_seconds,
        "completions": completions,
        "tokens": tokens,
        "strict_accuracy": right / completions,
    }


if __name__ == "__main__":
    main()
