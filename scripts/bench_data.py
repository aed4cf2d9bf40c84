"""Seconds and memory of the data tools on 100,000 records, and of a training run's start on them.

    python scripts/bench_data.py --json data.json

Records, images (all alike, small) and question files are made in a temporary folder. Each task runs in a process of its
own, in turn, ``--repeats`` times; the median counts. ``ratio`` is to ``json.loads`` on each line of the same JSONL
file, in the same run, so that figures of different machines can be compared. ``start`` is ``Trainer.fit`` from the call
to the first training step (reading, every check, the first batch) with a tokenizer and without a model: for text-only
records, for records with one image each, and for Med-R1's layout, whose options are parsed. Imports count in the peaks
of memory alone.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

TEXT = "what is the most likely finding in this image of the chest abdomen lesion does it show"


def make_inputs(folder: Path, num_records: int, num_images: int, pixels: int) -> None:
    """``text.jsonl``, ``images.jsonl``, ``med_r1.json`` and their images; ``hashed/`` with images worth hashing."""
    import numpy as np
    from PIL import Image

    rng, words = random.Random(0), TEXT.split()
    picture = io.BytesIO()
    Image.new("L", (224, 224), 100).save(picture, "PNG")
    med_r1 = []
    with (folder / "text.jsonl").open("w") as text, (folder / "images.jsonl").open("w") as images:
        for i in range(num_records):
            path = f"Images/set{i % 50}/{i}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(picture.getvalue())
            question = " ".join(rng.choices(words, k=rng.randint(8, 16))) + "?"
            options = [" ".join(rng.choices(words, k=rng.randint(1, 4))) + f" {j}" for j in range(4)]
            row = {
                "id": f"r{i}",
                "question": question,
                "options": options,
                "answer": rng.choice("ABCD"),
                "modality": "ct",
            }
            text.write(json.dumps(row) + "\n")
            images.write(json.dumps(row | {"images": [path]}) + "\n")
            listed = ", ".join(f"{letter}){option}" for letter, option in zip("ABCD", options, strict=True))
            solution = f"<answer> {row['answer']} </answer>"
            med_r1.append({"image": path, "problem": f"{question} {listed}", "solution": solution})
    (folder / "med_r1.json").write_text(json.dumps(med_r1))
    (folder / "hashed").mkdir()
    noise = np.random.default_rng(0)
    for i in range(num_images):
        small = Image.fromarray(noise.integers(0, 255, (16, 16), dtype=np.uint8))
        small.resize((pixels, pixels)).save(folder / "hashed" / f"{i}.png")


def parse(folder: Path) -> Callable[[], object]:
    """What the ratios are to."""
    return lambda: [json.loads(line) for line in (folder / "text.jsonl").open()]


def read(folder: Path) -> Callable[[], object]:
    """Our JSONL."""
    from data_modules.formats import read_records

    return lambda: read_records(folder / "text.jsonl")


def read_med_r1(folder: Path) -> Callable[[], object]:
    """Med-R1's layout."""
    from data_modules.formats import read_records

    return lambda: read_records(folder / "med_r1.json")


def audit(folder: Path) -> Callable[[], object]:
    """70,000 records to train on and 30,000 to test on, without images; reading is not counted."""
    from data_modules.audit import audit as run
    from data_modules.formats import Reading, scan

    records = scan(folder / "images.jsonl").records
    cut = len(records) * 7 // 10
    train, test = ([(name, Reading(part, [], []))] for name, part in (("a", records[:cut]), ("b", records[cut:])))
    return lambda: run(train, test).to_json()


def split(folder: Path) -> Callable[[], object]:
    """By image and file name, stratified."""
    from data_modules.formats import read_records
    from data_modules.split import split as run

    records = read_records(folder / "images.jsonl")
    return lambda: run(records, {"train": 0.8, "test": 0.2}, seed=0)


def debias(folder: Path) -> Callable[[], object]:
    """All steps."""
    from data_modules.debias import debias as run
    from data_modules.formats import read_records

    records = read_records(folder / "text.jsonl")
    return lambda: run(records, seed=0)


def convert(folder: Path) -> Callable[[], object]:
    """Med-R1's layout to records with ids; writing is not counted."""
    from data_modules.convert import convert as run

    return lambda: run([folder / "med_r1.json"])


def near(folder: Path) -> Callable[[], object]:
    """Perceptual hashes: 30,000 of test images against 70,000 of training images."""
    import numpy as np

    from data_modules.image_hashes import near_matches

    noise = np.random.default_rng(0)
    train, test = (noise.integers(0, 2**64, size, dtype=np.uint64) for size in (70_000, 30_000))
    return lambda: near_matches(train, test, 4)


def hashing(folder: Path) -> Callable[[], object]:
    """Images of ``hashed/`` by two processes."""
    from data_modules.image_hashes import hash_images
    from data_modules.image_root import ImageRoot

    names = [path.name for path in (folder / "hashed").iterdir()]
    return lambda: hash_images(names, ImageRoot(folder / "hashed"), None, num_workers=2, progress=False)


def start(folder: Path, file: str) -> Callable[[], object]:
    """``Trainer.fit`` up to the end of the first training step."""
    from types import SimpleNamespace

    import torch
    from lightning import LightningModule, Trainer
    from transformers import AutoProcessor

    from data_modules import MedicalVQADataModule

    processor = AutoProcessor.from_pretrained(ROOT / "medgrpo" / "demo" / "weights")
    processor.tokenizer("warm")

    class Stub(LightningModule):
        """Takes the first batch and does nothing with it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.processor, self.num_iterations = processor, 1
            self.policy = SimpleNamespace(min_pixels=3136, max_pixels=401408)

        def training_step(self, batch: object, batch_idx: int) -> torch.Tensor:
            return self.weight * 1.0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=1, accelerator="cpu", **quiet)
    data = MedicalVQADataModule(train=str(folder / file), image_root=str(folder))
    return lambda: trainer.fit(Stub(), data)


TASKS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "json.loads": parse,
    "read": read,
    "read med_r1": read_med_r1,
    "convert med_r1": convert,
    "audit": audit,
    "split": split,
    "debias": debias,
    "near duplicates": near,
    "hash images": hashing,
    "start, text": lambda folder: start(folder, "text.jsonl"),
    "start, images": lambda folder: start(folder, "images.jsonl"),
    "start, med_r1": lambda folder: start(folder, "med_r1.json"),
}


def measure(task: str, folder: Path) -> dict[str, float]:
    """In this process: seconds of the task, and of everything before it."""
    began = time.perf_counter()
    run = TASKS[task](folder)
    ready = time.perf_counter()
    run()
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": done - ready, "before": ready - began, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=2_000, help="to hash")
    parser.add_argument("--pixels", type=int, default=512, help="width and height of the images to hash")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(args.task, args.folder)))
        return
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), args.records, args.images, args.pixels)
        for task in TASKS:
            command = [sys.executable, __file__, "--task", task, "--folder", folder]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            runs = []
            for _ in range(args.repeats):
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{task}: {done.stderr[-3000:]}")
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            results[task] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            results[task]["ratio"] = results[task]["seconds"] / results["json.loads"]["seconds"]
            print(
                f"{task:16} {results[task]['seconds']:7.2f} s {results[task]['ratio']:7.1f} x json.loads "
                f"{results[task]['peak_gib']:6.2f} GiB",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args) | {"json": None}, "results": results}, indent=1))


if __name__ == "__main__":
    main()
