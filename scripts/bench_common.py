"""What the benchmarks share: their options, the inputs of both systems, one process per system and run.

Both systems load one folder: a model with random weights (or a given one), records as JSONL, and PNGs of random noise.
The weights of ``3b`` and ``7b`` (7 and 16 GiB in bfloat16) are drawn on the device and saved there too, so the folder
for temporary files (``TMPDIR``) must have room for them. Their tokenizer is the built-in small one: most of the
vocabulary belongs to no token, which costs the same to compute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# The process that starts the others imports nothing heavy: Linux passes its peak of memory on to its children.

MADE = ("tiny", "small", "3b", "7b")
SYSTEMS = ("ours", "trl")
HIDDEN = ("json", "system", "folder")
PROMPT = "{Question}\nThink step by step, then give the letter of the correct option inside the answer tags."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark."""
    parser.add_argument("--model", default="small", help="tiny, small, 3b, 7b (random weights) or a model folder")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda for 3b and 7b")
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--image-size", type=int, default=384, help="pixels per side")
    parser.add_argument(
        "--linear", choices=["auto", "torch", "onednn"], default="auto", help="ours: linear_implementation of Policy"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that run each system in a process of its own."""
    parser.add_argument("--only", choices=SYSTEMS, help="run this system alone; the other's figures are null")
    parser.add_argument("--system", choices=["inputs", *SYSTEMS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def device_of(args: argparse.Namespace) -> str:
    """``cpu`` or ``cuda``."""
    if args.device != "auto":
        return args.device
    return "cuda" if args.model in ("3b", "7b") else "cpu"


def environment(device: str) -> dict[str, str]:
    """One device for all: a GPU would be used by one system and not by the other, several by TRL alone."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if device == "cuda" else ""
    return os.environ | {"CUDA_VISIBLE_DEVICES": gpu, "TOKENIZERS_PARALLELISM": "false"}


def pay(text: str, row: int) -> float:
    """A reward in [0, 1) that differs from text to text and from row to row."""
    return int.from_bytes(hashlib.sha256(f"{row} {text}".encode()).digest()[:4]) / 2**32


def expect(what: str, expected: Any, got: Any) -> None:
    """Stop when the two systems would not do the same work."""
    if expected != got:
        raise RuntimeError(f"{what}: expected {expected}, got {got}; the comparison would not be fair")


def model_folder(args: argparse.Namespace) -> str:
    """The folder that both systems load."""
    return str(args.folder / "model") if args.model in MADE else args.model


def make_inputs(args: argparse.Namespace, num_records: int) -> None:
    """Write model, images and records to ``args.folder``."""
    import numpy as np
    import torch
    from PIL import Image

    from data_modules.formats import write_jsonl
    from medgrpo.types import Record

    if device_of(args) == "cuda" and not torch.cuda.is_available():
        sys.exit(f"--model {args.model} --device {args.device}: expected a GPU, found none; set --device cpu")
    if args.model in MADE:
        make_model(args.model, args.folder / "model", device_of(args))
    noise = np.random.default_rng(0)
    options = ("normal", "cyst", "mass", "fracture")
    stem = "What does this image show? Which disease is seen?"
    records = []
    for index in range(num_records):
        name = f"{index:04d}.png"
        pixels = noise.integers(0, 256, (args.image_size, args.image_size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(args.folder / name)
        question = f"Question {index:04d}: {stem}"
        records.append(Record(name, question, question, options, "A", (name,), modality="ct"))
    write_jsonl(args.folder / "records.jsonl", records)


def make_model(name: str, folder: Path, device: str) -> None:
    """Write one of ``MADE``, with random weights that depend on the device alone."""
    import torch

    from medgrpo.demo import model

    if name in ("tiny", "small"):
        model.save_tiny(folder, **(model.SMALL if name == "small" else {}))
        return
    tokenizer = model.build_tokenizer()
    config = model.real_config(tokenizer, **(model.QWEN2_5_VL_3B if name == "3b" else model.QWEN2_5_VL_7B))
    with torch.device(device):
        network = model.build_model(config, tokenizer, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    model.build_processor(config.model_type, tokenizer).save_pretrained(folder)


def dtype_of(args: argparse.Namespace) -> str:
    """Of the base weights; LoRA weights are float32 on both sides, whatever this is."""
    return "bfloat16" if device_of(args) == "cuda" else "float32"


def policy_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of ``Policy``."""
    return {
        "model_name_or_path": model_folder(args),
        "dtype": dtype_of(args),
        "attn_implementation": "sdpa",
        "linear_implementation": args.linear,
        "use_peft": args.tuning == "lora",
        "freeze_vision": args.tuning == "lora",
    }


def lightning_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of Lightning's ``Trainer``: nothing on disk, nothing on screen; the precision of our recipes."""
    on_gpu = device_of(args) == "cuda"
    return {
        "accelerator": "gpu" if on_gpu else "cpu",
        "devices": 1,
        "precision": "bf16-mixed" if on_gpu else "32-true",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def trl_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of TRL's ``GRPOConfig`` that give it the same model, device, completions and silence."""
    on_gpu = device_of(args) == "cuda"
    return {
        "output_dir": str(args.folder / "trl"),
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "model_init_kwargs": {"dtype": dtype_of(args), "attn_implementation": "sdpa"},
        "max_completion_length": args.new_tokens,
        "generation_kwargs": {"min_new_tokens": args.new_tokens, "suppress_tokens": suppressed_ids(args)},
        "log_completions": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def suppressed_ids(args: argparse.Namespace) -> list[int]:
    """The ids that our policy never samples, for TRL and ``generate``."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder(args)).to_dict()
    return [config[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")]


def lora_config() -> Any:
    """The adapter that ``Policy`` makes by default."""
    from peft import LoraConfig

    from medgrpo.policy import LANGUAGE_LINEARS

    return LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=rf".*language_model\.layers\..*\.{LANGUAGE_LINEARS}",
        exclude_modules=r".*visual.*",
    )


def trl_dataset(args: argparse.Namespace) -> Any:
    """The records as TRL expects them."""
    from datasets import Dataset, Image

    from data_modules.formats import read_records
    from medgrpo.prompts import messages

    rows = [
        {
            # As a plain text: TRL puts the image before it, as our own prompts do.
            "prompt": [{"role": "user", "content": messages(record, PROMPT)[0]["content"][-1]["text"]}],
            "image": str(args.folder / record.images[0]),
        }
        for record in read_records(args.folder / "records.jsonl")
    ]
    return Dataset.from_list(rows).cast_column("image", Image())


def hash_reward() -> Any:
    """``pay`` as one of our rewards."""
    from medgrpo.rewards import Reward

    class HashReward(Reward):
        name = "hash_reward"

        def __call__(self, completions, records):
            return [pay(text, row) for row, text in enumerate(completions)]

    return HashReward()


def trl_hash_reward(completions, **_) -> list[float]:
    """``pay`` as one of TRL's rewards."""
    return [pay(completion[0]["content"], row) for row, completion in enumerate(completions)]


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    from importlib.metadata import version
    from importlib.util import find_spec
    from platform import python_version

    import torch

    device = torch.cuda.get_device_name() if device_of(args) == "cuda" else "cpu"
    names = ("torch", "transformers", "lightning", "peft", "trl")  # trl is not needed with --only ours
    libraries = {name: version(name) for name in names if find_spec(name)}
    return {
        "device_name": device,
        "threads": torch.get_num_threads(),
        "versions": {"python": python_version()} | libraries,
    }


def now(args: argparse.Namespace) -> float:
    """Seconds; waits for the GPU."""
    import time

    import torch

    if device_of(args) == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def systems_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The systems to run."""
    return (args.only,) if args.only else SYSTEMS


def run_processes(args: argparse.Namespace, script: str, runs: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Make the inputs, then run each system ``runs`` times in turn, every time in a process of its own.

    Returns:
        What each process of a system wrote to ``args.folder / SYSTEM.json``, by system.
    """
    results = defaultdict(list)
    with TemporaryDirectory(prefix="bench_") as folder:
        command = [sys.executable, script, *sys.argv[1:], "--folder", folder, "--system"]
        _run([*command, "inputs"], device_of(args))
        for _ in range(runs):
            for system in systems_of(args):
                _run([*command, system], device_of(args))
                results[system].append(json.loads((Path(folder) / f"{system}.json").read_text()))
    first = next(iter(results.values()))[0]["same"]
    for system in results:
        for result in results[system]:
            expect(f"work of {system}", first, result["same"])
    return dict(results)


def _run(command: list[str], device: str) -> None:
    code = subprocess.run(command, env=environment(device), stdout=sys.stderr).returncode
    if code:
        sys.exit(code)  # it has said why


def settings_of(args: argparse.Namespace, same: dict[str, Any]) -> dict[str, Any]:
    """Options and circumstances of a run, for its JSON."""
    return {name: value for name, value in vars(args).items() if name not in HIDDEN} | same


def factor(a: float | None, b: float | None) -> float | None:
    """``b / a``, None where that says nothing: a system that did not run, or a phase that it does not have."""
    return b / a if a and b is not None else None


def cell(value: float | None, digits: int = 2) -> str:
    """A figure of a table, empty when there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def report(args: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    """Print the table and write the JSON."""
    print(text)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
