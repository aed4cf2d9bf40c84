"""Seconds per GRPO step, next to TRL's ``GRPOTrainer``: same model, records, images and settings.

    python scripts/bench_vs_trl.py --model small --generations 8 --tuning lora --beta 0.04 --json lora.json

Each system runs in a process of its own, one after the other, on one set of inputs (see ``bench_common``): on a CPU in
float32, on a GPU with bfloat16 weights, float32 LoRA weights and bfloat16 autocast. What is done to make the two do
the same work:

- P prompts and G completions of exactly C tokens per prompt in each optimizer step, all drawn at once, trained on in
  ``--micro-batches`` equal parts;
- all prompts have the same number of tokens, the same on both sides (checked), and every forward of TRL's loss gets its
  pixels (checked);
- rewards are a hash of text and row, so no group has equal rewards and nothing is skipped (checked);
- full fine-tuning trains the vision tower on both sides; LoRA trains the same layers and leaves the tower frozen;
- the same attention (sdpa), gradient checkpointing, fused AdamW, learning rate, clipping, loss (dapo), beta, suppressed
  tokens, loader workers and threads; no logging of completions, no evaluation, no checkpoints.

A step lasts from the end of the step before to its own end, waiting for data included; its phases are

- images: waiting for the loader; for TRL also the processor, which it runs in the training process, and the rewards;
- rollout: drawing the completions, the vision tower's work for them included;
- reference: the reference policy's pass (``--beta`` above 0);
- train: loss, backward, clipping and optimizer.

The machine must be quiet: on a CPU the CPU time of a step should be near its wall time times the threads. Threads are
those of ``OMP_NUM_THREADS``. Peak memory is that of the training process, not of the loader's workers; on a GPU it is
what torch allocated there. Needs ``medgrpo[bench]``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import bench_common as common
from bench_common import expect

PHASES = ("images", "rollout", "reference", "train")
SHARES = ("perf/mfu", "perf/mfu_train", "perf/decode_bandwidth")
LEARNING_RATE = 1e-6
GRADIENT_CLIP = 1.0


class Clock:
    """Seconds of each step, and of phases within it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.steps: list[dict[str, float]] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.ended = common.now(args)
        self.cpu_ended = time.process_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = common.now(self.args)
        yield
        self.seconds[name] += common.now(self.args) - start

    def begin_step(self) -> None:
        """The batch is there: all time since the last step was spent waiting for it."""
        self.seconds["wait"] = common.now(self.args) - self.ended

    def end_step(self) -> None:
        """All time since the last step belongs to this one."""
        now, cpu_now = common.now(self.args), time.process_time()
        self.steps.append(dict(self.seconds) | {"step": now - self.ended, "cpu": cpu_now - self.cpu_ended})
        self.seconds.clear()
        self.ended, self.cpu_ended = now, cpu_now


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """``GRPOModule`` under Lightning's ``Trainer`` with the real data module."""
    import lightning
    import torch

    from data_modules import MedicalVQADataModule
    from medgrpo.module import GRPOModule
    from medgrpo.policy import Policy

    class StepClock(lightning.Callback):
        """What the module logs of a step is there when the next one begins."""

        def __init__(self) -> None:
            self.clock = Clock(args)
            self.prompt_tokens = 0

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx % args.micro_batches:
                return
            self.clock.begin_step()
            self.read(trainer)
            expect("images of ours", args.prompts, 0 if batch.pixel_values is None else len(batch.image_grid_thw))
            self.prompt_tokens = int(batch.attention_mask.sum())

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (batch_idx + 1) % args.micro_batches == 0:
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
            } | {name: logged[name] for name in SHARES}

    torch.manual_seed(0)
    policy = Policy(**common.policy_options(args), gradient_checkpointing=args.gradient_checkpointing)
    module = GRPOModule(
        policy,
        [common.hash_reward()],
        lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        num_generations=args.generations,
        max_completion_length=args.new_tokens,
        min_completion_length=args.new_tokens,
        max_tokens_per_pass=args.max_tokens_per_pass,
        beta=args.beta,
        loss_type="dapo",
    )
    data = MedicalVQADataModule(
        train=str(args.folder / "records.jsonl"),
        image_root=str(args.folder),
        prompt=common.PROMPT,
        prompts_per_batch=args.prompts,
        max_prompt_length=None,
        num_workers=args.num_workers,
    )
    steps = StepClock()
    trainer = lightning.Trainer(
        max_steps=args.warmup + args.steps,
        accumulate_grad_batches=args.micro_batches,
        gradient_clip_val=GRADIENT_CLIP,
        callbacks=[steps],
        **common.lightning_options(args),
    )
    trainer.fit(module, datamodule=data)
    return summary(args, steps.clock, policy, steps.prompt_tokens)


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """TRL's ``GRPOTrainer`` with ``generate`` of transformers."""
    import torch
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock(args)
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
            rows = args.prompts * args.generations // args.micro_batches
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

    trainer = TimedTrainer(
        common.model_folder(args),
        reward_funcs=common.trl_hash_reward,
        args=GRPOConfig(
            per_device_train_batch_size=args.prompts * args.generations // args.micro_batches,
            gradient_accumulation_steps=args.micro_batches,
            num_generations=args.generations,
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
            **common.trl_options(args),
        ),
        train_dataset=common.trl_dataset(args),
        peft_config=common.lora_config() if args.tuning == "lora" else None,
        callbacks=[StepClock()],
    )
    trainer.train()
    return summary(args, clock, trainer.model, prompt_tokens[-1])


def summary(args: argparse.Namespace, clock: Clock, model: Any, prompt_tokens: int) -> dict[str, Any]:
    """The counted steps of one run, and what tells whether the other run did the same work."""
    from medgrpo.metrics import peak_memory_gib

    expect("steps", args.warmup + args.steps, len(clock.steps))
    return {
        "steps": clock.steps[args.warmup :],
        "peak_gib": peak_memory_gib(),
        "same": {
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "prompt_tokens": prompt_tokens,
        }
        | common.machine(args),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything, each system ``args.runs`` times in turn."""
    results = common.run_processes(args, __file__, args.runs)
    same = next(iter(results.values()))[0]["same"]
    ours, trl = (figures(args, results[system]) if system in results else None for system in common.SYSTEMS)
    return {
        "settings": common.settings_of(args, same),
        "ours": ours,
        "trl": trl,
        "ratio": ratios(ours, trl) if ours and trl else None,
    }


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
        # Of the device's measured limits, which only our side logs.
        "shares": {name: median(step[name] for step in steps) for name in SHARES if name in steps[0]},
    }


def ratios(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    """How many times as much TRL needs, or as many completions we make: above 1 is in our favour."""
    return {
        "step_s": common.factor(ours["step_s"], trl["step_s"]),
        "phases_s": {phase: common.factor(ours["phases_s"][phase], trl["phases_s"][phase]) for phase in PHASES},
        "completions_per_s": common.factor(trl["completions_per_s"], ours["completions_per_s"]),
        "peak_gib": common.factor(ours["peak_gib"], trl["peak_gib"]),
    }


def table(result: dict[str, Any]) -> str:
    """One line per figure of what was run; a factor above 1 is in our favour."""
    names = {"step_s": "step (s)"} | {f"phases_s/{phase}": f"  {phase}" for phase in PHASES}
    names |= {"cpu_s": "CPU time (s)", "peak_gib": "peak memory (GiB)", "completions_per_s": "completions/s"}
    ours, trl, ratio = (_flat(result[part]) for part in ("ours", "trl", "ratio"))
    lines = [f"{'':18}{'ours':>8}{'TRL':>8}{'factor':>8}"]
    for key, name in names.items():
        cells = common.cell(ours.get(key)), common.cell(trl.get(key)), common.cell(ratio.get(key), 1)
        lines.append(f"{name:18}" + "".join(f"{text:>8}" for text in cells))
    for name, part in (("ours", result["ours"]), ("TRL", result["trl"])):
        if part:
            steps = part["steps_s"]
            lines.append(f"{name}: {len(steps)} steps of {min(steps):.2f} to {max(steps):.2f} s")
            lines += [f"{share:22}{value:>8.2f}" for share, value in part["shares"].items()]
    return "\n".join(lines)


def _flat(part: dict[str, Any] | None) -> dict[str, Any]:
    part = part or {}
    return part | {f"phases_s/{phase}": value for phase, value in part.get("phases_s", {}).items()}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_options(parser)
    parser.add_argument("--generations", type=int, default=8, help="G, completions per prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="C, tokens of every completion")
    parser.add_argument("--prompts", type=int, default=1, help="P, prompts per optimizer step")
    parser.add_argument("--micro-batches", type=int, default=1, help="A, parts that a step is trained in; divides P")
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=3, help="counted steps per run")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--runs", type=int, default=1, help="processes per system, in turn")
    parser.add_argument("--num-workers", type=int, default=1, help="loader processes")
    parser.add_argument("--max-tokens-per-pass", type=int, help="ours: max_tokens_per_pass of GRPOModule")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    common.add_process_options(parser)
    args = parser.parse_args()
    if args.steps < 3 or args.warmup < 1 or args.num_workers < 1:
        parser.error("expected at least 3 counted steps, 1 warm-up step and 1 worker")
    if args.micro_batches < 1 or args.prompts % args.micro_batches:
        parser.error(f"--micro-batches: expected a divisor of {args.prompts} prompts, got {args.micro_batches}")
    return args


def main() -> None:
    """One process of the benchmark."""
    args = parse()
    if args.system == "inputs":
        # Enough records that the loader's workers never run out of work.
        common.make_inputs(args, args.prompts * (args.warmup + args.steps + 2 * args.num_workers + 1))
    elif args.system:
        result = run_ours(args) if args.system == "ours" else run_trl(args)
        (args.folder / f"{args.system}.json").write_text(json.dumps(result))
    else:
        result = run(args)
        common.report(args, result, table(result))


if __name__ == "__main__":
    main()
