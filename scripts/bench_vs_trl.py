"""Seconds per GRPO step, next to TRL's ``GRPOTrainer``: same model, records, images and settings, on CPU in float32.

Each system runs in a process of its own, one after the other, on one set of inputs: a model folder with random weights
(or a given one), records as JSONL, and PNGs of random noise. What is done to make the two do the same work:

- P prompts and G completions of exactly C tokens per prompt in each optimizer step, in one micro-batch;
- all prompts have the same number of tokens, the same on both sides (checked), and every forward of TRL's loss gets its
  pixels (checked);
- rewards are a hash of the text, so no group has equal rewards and nothing is skipped (checked);
- full fine-tuning trains the vision tower on both sides; LoRA trains the same layers and leaves the tower frozen;
- the same attention (sdpa), gradient checkpointing, fused AdamW, learning rate, clipping, loss (dapo), beta, suppressed
  tokens, loader workers and threads; no logging of completions, no evaluation, no checkpoints.

A step lasts from the end of the step before to its own end, waiting for data included; its phases are

- images: waiting for the loader; for TRL also the processor, which it runs in the training process, and the rewards;
- rollout: drawing the completions, the vision tower's work for them included;
- reference: the reference policy's pass (``--beta`` above 0);
- train: loss, backward, clipping and optimizer.

The machine must be quiet: the CPU time of a step should be near its wall time times the threads. Threads are those of
``OMP_NUM_THREADS``. Peak memory is that of the training process, not of the loader's workers. Needs ``medgrpo[bench]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

# The process that starts the others imports nothing heavy: Linux passes its peak of memory on to its children.

SYSTEMS = ("ours", "trl")
PROMPT = "{Question}\nThink step by step, then give the letter of the correct option inside the answer tags."
PHASES = ("images", "rollout", "reference", "train")
LEARNING_RATE = 1e-6
GRADIENT_CLIP = 1.0


class Clock:
    """Seconds of each step, and of phases within it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended = time.perf_counter()
        self.cpu_ended = time.process_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def begin_step(self) -> None:
        """The batch is there: all time since the last step was spent waiting for it."""
        self.seconds["wait"] = time.perf_counter() - self.ended

    def end_step(self) -> None:
        """All time since the last step belongs to this one."""
        now, cpu_now = time.perf_counter(), time.process_time()
        self.steps.append(dict(self.seconds) | {"step": now - self.ended, "cpu": cpu_now - self.cpu_ended})
        self.seconds.clear()
        self.ended, self.cpu_ended = now, cpu_now


def pay(text: str) -> float:
    """A reward in [0, 1) that differs from text to text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32


def expect(what: str, expected: Any, got: Any) -> None:
    """Stop when the two systems would not do the same work."""
    if expected != got:
        raise RuntimeError(f"{what}: expected {expected}, got {got}; the comparison would not be fair")


def make_inputs(args: argparse.Namespace) -> None:
    """Write model, images and records; enough records that the loader's workers never run out of work."""
    import numpy as np
    from PIL import Image

    from data_modules.formats import write_jsonl
    from medgrpo.demo.model import SMALL, save_tiny
    from medgrpo.types import Record

    if args.model in ("tiny", "small"):
        save_tiny(args.folder / "model", **(SMALL if args.model == "small" else {}))
    noise = np.random.default_rng(0)
    options = ("normal", "cyst", "mass", "fracture")
    stem = "What does this image show? Which disease is seen?"
    records = []
    for index in range(args.prompts * (args.warmup + args.steps + 2 * args.num_workers + 1)):
        name = f"{index:04d}.png"
        pixels = noise.integers(0, 256, (args.image_size, args.image_size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(args.folder / name)
        question = f"Question {index:04d}: {stem}"
        records.append(Record(name, question, question, options, "A", (name,), modality="ct"))
    write_jsonl(args.folder / "records.jsonl", records)


def model_folder(args: argparse.Namespace) -> str:
    """The folder that both systems load."""
    return str(args.folder / "model") if args.model in ("tiny", "small") else args.model


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """``GRPOModule`` under Lightning's ``Trainer`` with the real data module."""
    import lightning
    import torch

    from data_modules import MedicalVQADataModule
    from medgrpo.module import GRPOModule
    from medgrpo.policy import Policy
    from medgrpo.rewards import Reward

    class HashReward(Reward):
        name = "hash_reward"

        def __call__(self, completions, records):
            return [pay(text) for text in completions]

    class StepClock(lightning.Callback):
        """What the module logs of a step is there when the next one begins."""

        def __init__(self) -> None:
            self.clock = Clock()
            self.prompt_tokens = 0

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.clock.begin_step()
            self.read(trainer)
            expect("images of ours", args.prompts, 0 if batch.pixel_values is None else len(batch.image_grid_thw))
            self.prompt_tokens = int(batch.attention_mask.sum())

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.clock.end_step()

        def on_train_end(self, trainer, module):
            self.read(trainer)

        def read(self, trainer):
            logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
            if not self.clock.steps or not logged:
                return
            expect("shortest completion of ours", args.new_tokens, logged["completions/min_length"])
            expect("longest completion of ours", args.new_tokens, logged["completions/max_length"])
            expect("groups of ours with equal rewards", 0, logged["frac_reward_zero_std"])
            self.clock.steps[-1] |= {
                "images": self.clock.steps[-1]["wait"],
                "rollout": logged["timing_s/rollout"],
                "reference": logged.get("timing_s/reference", 0.0),
                "train": logged["timing_s/train"],
            }

    torch.manual_seed(0)
    policy = Policy(
        model_folder(args),
        dtype="float32",
        attn_implementation="sdpa",
        use_peft=args.tuning == "lora",
        freeze_vision=args.tuning == "lora",
        gradient_checkpointing=args.gradient_checkpointing,
    )
    module = GRPOModule(
        policy,
        [HashReward()],
        lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        num_generations=args.generations,
        max_completion_length=args.new_tokens,
        min_completion_length=args.new_tokens,
        beta=args.beta,
        loss_type="dapo",
    )
    data = MedicalVQADataModule(
        train=str(args.folder / "records.jsonl"),
        image_root=str(args.folder),
        prompt=PROMPT,
        prompts_per_batch=args.prompts,
        num_workers=args.num_workers,
    )
    steps = StepClock()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=args.warmup + args.steps,
        gradient_clip_val=GRADIENT_CLIP,
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return summary(args, steps.clock, policy, steps.prompt_tokens)


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's ``GRPOTrainer`` with ``generate`` of transformers."""
    import torch
    from datasets import Dataset, Image
    from peft import LoraConfig
    from transformers import AutoConfig, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from data_modules.formats import read_records
    from medgrpo.policy import LANGUAGE_LINEARS
    from medgrpo.prompts import messages

    clock = Clock()
    prompt_tokens = []

    class TimedTrainer(GRPOTrainer):
        """Does what its parent does, and takes the time of it."""

        def _prepare_inputs(self, generation_batch):
            with clock.phase("prepare"):
                return super()._prepare_inputs(generation_batch)

        def _generate_single_turn(self, prompt_ids, *positional, **named):
            with clock.phase("rollout"):
                completion_ids, logprobs = super()._generate_single_turn(prompt_ids, *positional, **named)
            expect("completion lengths of TRL", {args.new_tokens}, {len(ids) for ids in completion_ids})
            prompt_tokens.append(sum(len(ids) for ids in prompt_ids) // args.generations)
            return completion_ids, logprobs

        def _get_per_token_logps_and_entropies(self, *positional, **named):
            if torch.is_grad_enabled():  # in the loss
                return super()._get_per_token_logps_and_entropies(*positional, **named)
            with clock.phase("reference"):
                return super()._get_per_token_logps_and_entropies(*positional, **named)

        def _compute_loss(self, model, inputs):
            rows = args.prompts * args.generations
            expect("completions of TRL in a micro-batch", rows, len(inputs["completion_ids"]))
            expect("images of TRL", rows, len(inputs["image_grid_thw"]))
            expect("patches of TRL", int(inputs["image_grid_thw"].prod(-1).sum()), len(inputs["pixel_values"]))
            expect("advantages of TRL that are 0", 0, int((inputs["advantages"] == 0).sum()))
            return super()._compute_loss(model, inputs)

    class StepClock(TrainerCallback):
        def on_step_begin(self, *positional, **named):
            clock.begin_step()

        def on_step_end(self, *positional, **named):
            clock.end_step()
            step = clock.steps[-1]
            step.setdefault("reference", 0.0)
            # Preparing is: processor, generate, processor again, reference, rewards.
            step["images"] = step["wait"] + step["prepare"] - step["rollout"] - step["reference"]
            step["train"] = step["step"] - step["wait"] - step["prepare"]

    def hash_reward(completions, **_):
        return [pay(completion[0]["content"]) for completion in completions]

    records = read_records(args.folder / "records.jsonl")
    rows = [
        {
            # As a plain text: TRL puts the image before it, as our own prompts do.
            "prompt": [{"role": "user", "content": messages(record, PROMPT)[0]["content"][-1]["text"]}],
            "image": str(args.folder / record.images[0]),
        }
        for record in records
    ]
    config = AutoConfig.from_pretrained(model_folder(args))
    suppressed = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=rf".*language_model\.layers\..*\.{LANGUAGE_LINEARS}",
        exclude_modules=r".*visual.*",
    )
    trainer = TimedTrainer(
        model_folder(args),
        reward_funcs=hash_reward,
        args=GRPOConfig(
            output_dir=str(args.folder / "trl"),
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
            per_device_train_batch_size=args.prompts * args.generations,
            gradient_accumulation_steps=1,
            num_generations=args.generations,
            max_completion_length=args.new_tokens,
            generation_kwargs={
                "min_new_tokens": args.new_tokens,
                "suppress_tokens": [config.to_dict()[name] for name in suppressed],
            },
            beta=args.beta,
            use_bias_correction_kl=False,
            loss_type="dapo",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            weight_decay=0.0,
            max_grad_norm=GRADIENT_CLIP,
            gradient_checkpointing=args.gradient_checkpointing,
            max_steps=args.warmup + args.steps,
            dataloader_num_workers=args.num_workers,
            logging_steps=1,
            log_completions=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows).cast_column("image", Image()),
        peft_config=lora if args.tuning == "lora" else None,
        callbacks=[StepClock()],
    )
    trainer.train()
    return summary(args, clock, trainer.model, prompt_tokens[-1])


def summary(args: argparse.Namespace, clock: Clock, model: Any, prompt_tokens: int) -> dict[str, Any]:
    """The counted steps of one run, and what tells whether the other run did the same work."""
    import torch

    from medgrpo.metrics import peak_memory_gib

    expect("steps", args.warmup + args.steps, len(clock.steps))
    return {
        "steps": clock.steps[args.warmup :],
        "peak_gib": peak_memory_gib(),
        "same": {
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "prompt_tokens": prompt_tokens,
            "threads": torch.get_num_threads(),
        },
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything, each system ``args.runs`` times in turn."""
    results = defaultdict(list)
    # One device for all: a GPU would be used by one system and not by the other.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    with TemporaryDirectory(prefix="bench_vs_trl_") as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--system"]
        subprocess.run([*command, "inputs"], check=True, env=environment, stdout=sys.stderr)
        for _ in range(args.runs):
            for system in SYSTEMS:
                subprocess.run([*command, system], check=True, env=environment, stdout=sys.stderr)
                results[system].append(json.loads((Path(folder) / f"{system}.json").read_text()))
    same = results["ours"][0]["same"]
    for system in SYSTEMS:
        for result in results[system]:
            expect(f"work of {system}", same, result["same"])
    ours, trl = (figures(args, results[system]) for system in SYSTEMS)
    hidden = ("json", "system", "folder")
    settings = {name: value for name, value in vars(args).items() if name not in hidden} | same
    return {"settings": settings, "ours": ours, "trl": trl, "ratio": trl["step_s"] / ours["step_s"]}


def figures(args: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the counted steps of all runs of one system."""
    steps = [step for result in results for step in result["steps"]]
    step_s = median(step["step"] for step in steps)
    return {
        "step_s": step_s,
        "steps_s": [step["step"] for step in steps],
        "cpu_s": median(step["cpu"] for step in steps),
        "phases_s": {phase: median(step[phase] for step in steps) for phase in PHASES},
        "completions_per_s": args.prompts * args.generations / step_s,
        "peak_gib": max(result["peak_gib"] for result in results),
    }


def table(result: dict[str, Any]) -> str:
    """One line per figure; a factor above 1 is in our favour."""
    ours, trl = result["ours"], result["trl"]
    rows = [("step (s)", ours["step_s"], trl["step_s"])]
    rows += [(f"  {phase}", ours["phases_s"][phase], trl["phases_s"][phase]) for phase in PHASES]
    rows += [("CPU time (s)", ours["cpu_s"], trl["cpu_s"]), ("peak memory (GiB)", ours["peak_gib"], trl["peak_gib"])]
    lines = [f"{'':18}{'ours':>8}{'TRL':>8}{'factor':>8}"]
    for name, a, b in rows:
        lines.append(f"{name:18}{a:>8.2f}{b:>8.2f}{f'{b / a:.1f}' if a else '':>8}")
    a, b = ours["completions_per_s"], trl["completions_per_s"]
    lines.append(f"{'completions/s':18}{a:>8.2f}{b:>8.2f}{a / b:>8.1f}")
    for name, steps in (("ours", ours["steps_s"]), ("TRL", trl["steps_s"])):
        lines.append(f"{name}: {len(steps)} steps of {min(steps):.2f} to {max(steps):.2f} s")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="small", help="tiny, small (random weights) or a model folder")
    parser.add_argument("--generations", type=int, default=8, help="G, completions per prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="C, tokens of every completion")
    parser.add_argument("--prompts", type=int, default=1, help="P, prompts per optimizer step")
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=3, help="counted steps per run")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--runs", type=int, default=1, help="processes per system, in turn")
    parser.add_argument("--image-size", type=int, default=384, help="pixels per side")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--system", choices=["inputs", *SYSTEMS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 3 or args.warmup < 1 or args.num_workers < 1:
        parser.error("expected at least 3 counted steps, 1 warm-up step and 1 worker")
    return args


def main() -> None:
    """One process of the benchmark."""
    args = parse()
    if args.system == "inputs":
        make_inputs(args)
    elif args.system:
        result = run_ours(args) if args.system == "ours" else run_trl(args)
        (args.folder / f"{args.system}.json").write_text(json.dumps(result))
    else:
        result = run(args)
        print(table(result))
        if args.json:
            args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
