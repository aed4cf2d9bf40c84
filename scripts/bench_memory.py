#!/usr/bin/env python
"""Memory of training, step by step: how much it takes, and whether it grows.

    python scripts/bench_memory.py --model tiny --steps 200
    python scripts/bench_memory.py --model 7b --tuning lora --quantize nf4 --steps 5
    python scripts/bench_memory.py --model small --tuning lora --strategy fsdp2 --steps 200

Completions end where the model ends them, so that no two steps are of one size. Random weights, images of noise.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench_common as common

STRATEGIES = {"single": "auto", "ddp": "ddp", "fsdp2": "FSDP2Strategy", "fsdp1": "FSDP1Strategy"}


def parse() -> argparse.Namespace:
    """Options of this run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--settled", type=int, default=20, help="step from which growth counts")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128, help="at most")
    parser.add_argument("--quantize", choices=["nf4"])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="single", help="with one process")
    return parser.parse_args()


def in_use(on_gpu: bool) -> float:
    """GiB now: of the GPU, or resident on the host."""
    import torch

    if on_gpu:
        return torch.cuda.memory_allocated() / 2**30
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train; memory in use after each step, and the peak of all, in GiB."""
    import lightning
    import torch

    from data_modules import MedicalVQADataModule
    from medgrpo import sharding
    from medgrpo.metrics import peak_memory_gib
    from medgrpo.module import GRPOModule
    from medgrpo.policy import Policy

    on_gpu = common.device_of(args) == "cuda"
    used: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            used.append(in_use(on_gpu))

    common.make_inputs(args, num_records=4 * args.prompts)
    torch.manual_seed(0)
    options = common.policy_options(args) | {"quantize": args.quantize, "use_peft": args.tuning == "lora"}
    module = GRPOModule(
        Policy(**options, gradient_checkpointing=args.gradient_checkpointing),
        [common.hash_reward()],
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        num_generations=args.generations,
        max_completion_length=args.new_tokens,
    )
    data = MedicalVQADataModule(
        train=str(args.folder / "records.jsonl"),
        image_root=str(args.folder),
        prompt=common.PROMPT,
        prompts_per_batch=args.prompts,
        max_prompt_length=None,
    )
    name = STRATEGIES[args.strategy]
    strategy = getattr(sharding, name)() if name.endswith("Strategy") else name
    trainer = lightning.Trainer(
        max_steps=args.steps, strategy=strategy, callbacks=[Watch()], **common.lightning_options(args)
    )
    trainer.fit(module, datamodule=data)
    return {"used": used, "peak": peak_memory_gib()}


def main() -> None:
    """Train and say what it took."""
    args = parse()
    if args.quantize and args.tuning != "lora":
        sys.exit("--quantize trains an adapter: add --tuning lora")
    os.environ |= common.environment(common.device_of(args))
    with TemporaryDirectory(prefix="bench_") as folder:
        args.folder = Path(folder)
        result = run(args)
    used = result["used"]
    settled = min(args.settled, len(used)) - 1
    text = (
        f"{len(used)} steps, peak {result['peak']:.3f} GiB; in use after step {settled + 1}: {used[settled]:.3f}, "
        f"after the last: {used[-1]:.3f}, most in between: {max(used[settled:]):.3f} GiB"
    )
    del args.folder
    common.report(args, common.settings_of(args, common.machine(args)) | result, text)


if __name__ == "__main__":
    main()
