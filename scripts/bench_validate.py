"""Seconds of a validation, next to TRL's evaluation loop with its defaults: same model folder, records and images.

    python scripts/bench_validate.py --model small --records 200 --new-tokens 64

Each system runs in a process of its own. Ours is ``Trainer.validate`` of a ``GRPOModule`` with the data module's
defaults: one greedy completion per record, read and judged. TRL's is ``GRPOTrainer.evaluate`` with its defaults, which
differ in kind: it samples ``num_generations_eval`` completions per record (8 unless set here), 8 rows at a time, and
computes a loss on them. Completions run to C tokens: TRL is held to it, ours end earlier where a random model happens
to choose a stop token. The tokens that both drew are counted and printed, so that the reader can tell how much of the
factor is a smaller task (with ``--num-generations-eval 1``, none of it).

Loading and checks before the first batch are not counted. A warm-up is excluded by validating ``--warmup`` records
first, in the same process. Needs ``medgrpo[bench]``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import bench_common as common
from bench_common import expect


def run_ours(args: argparse.Namespace) -> dict[str, Any]:
    """``Trainer.validate``, timed from the first batch to the last metric."""
    import lightning
    import torch

    from data_modules import MedicalVQADataModule
    from medgrpo.module import GRPOModule
    from medgrpo.policy import Policy

    class CountingModule(GRPOModule):
        """Does what its parent does, and counts."""

        def decode(self, completions):
            drawn["tokens"] += int(completions.mask.sum())
            drawn["completions"] += len(completions.mask)
            return super().decode(completions)

    class Stopwatch(lightning.Callback):
        def on_validation_start(self, trainer, module):
            self.start = common.now(args)

        def on_validation_end(self, trainer, module):
            self.seconds = common.now(args) - self.start

    module = CountingModule(
        Policy(**common.policy_options(args)),
        [common.hash_reward()],
        torch.optim.AdamW,
        max_completion_length=args.new_tokens,
    )
    for limit in (args.warmup, args.records):
        drawn = {"tokens": 0, "completions": 0}
        watch = Stopwatch()
        data = MedicalVQADataModule(
            val=str(args.folder / "records.jsonl"),
            image_root=str(args.folder),
            prompt=common.PROMPT,
            max_prompt_length=None,
            limit_eval_records=limit,
        )
        trainer = lightning.Trainer(callbacks=[watch], **common.lightning_options(args))
        trainer.validate(module, datamodule=data, verbose=False)
    expect("completions of ours", args.records, drawn["completions"])
    return summary(args, watch.seconds, drawn)


def run_trl(args: argparse.Namespace) -> dict[str, Any]:
    """``GRPOTrainer.evaluate``."""
    from trl import GRPOConfig, GRPOTrainer

    drawn = {"tokens": 0, "completions": 0}

    class CountingTrainer(GRPOTrainer):
        """Does what its parent does, and counts."""

        def _generate_single_turn(self, *positional, **named):
            completion_ids, logprobs = super()._generate_single_turn(*positional, **named)
            drawn["tokens"] += sum(len(ids) for ids in completion_ids)
            drawn["completions"] += len(completion_ids)
            return completion_ids, logprobs

    dataset = common.trl_dataset(args)
    trainer = CountingTrainer(
        common.model_folder(args),
        reward_funcs=common.trl_hash_reward,
        args=GRPOConfig(num_generations_eval=args.num_generations_eval, **common.trl_options(args)),
        train_dataset=dataset,  # demanded, not used
        eval_dataset=dataset,
        peft_config=common.lora_config() if args.tuning == "lora" else None,
    )
    for limit in (args.warmup, args.records):
        drawn.update(tokens=0, completions=0)
        start = common.now(args)
        trainer.evaluate(dataset.select(range(limit)))
        seconds = common.now(args) - start
    expect("completions of TRL", args.records * trainer.num_generations_eval, drawn["completions"])
    expect("tokens of TRL", drawn["completions"] * args.new_tokens, drawn["tokens"])
    return summary(args, seconds, drawn)


def summary(args: argparse.Namespace, seconds: float, drawn: dict[str, int]) -> dict[str, Any]:
    """The figures of one system, and what must be the same for the other."""
    from medgrpo.metrics import peak_memory_gib

    figures = {"seconds": seconds, "records_per_s": args.records / seconds} | drawn | {"peak_gib": peak_memory_gib()}
    return {"figures": figures, "same": common.machine(args)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run each system once."""
    results = common.run_processes(args, __file__)
    ours, trl = (results[system][0]["figures"] if system in results else None for system in common.SYSTEMS)
    return {
        "settings": common.settings_of(args, next(iter(results.values()))[0]["same"]),
        "ours": ours,
        "trl": trl,
        "ratio": ratios(ours, trl) if ours and trl else None,
    }


def ratios(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    """How many times as much TRL needs, or as many records we validate: above 1 is in our favour."""
    return {
        "seconds": common.factor(ours["seconds"], trl["seconds"]),
        "records_per_s": common.factor(trl["records_per_s"], ours["records_per_s"]),
        "tokens": common.factor(ours["tokens"], trl["tokens"]),
        "peak_gib": common.factor(ours["peak_gib"], trl["peak_gib"]),
    }


def table(result: dict[str, Any]) -> str:
    """One line per figure of what was run."""
    names = {
        "seconds": "seconds",
        "records_per_s": "records/s",
        "completions": "completions",
        "tokens": "tokens drawn",
        "peak_gib": "peak memory (GiB)",
    }
    ours, trl, ratio = (result[part] or {} for part in ("ours", "trl", "ratio"))
    lines = [f"{'':18}{'ours':>10}{'TRL':>10}{'factor':>8}"]
    for key, name in names.items():
        digits = 0 if key in ("completions", "tokens") else 2
        cells = common.cell(ours.get(key), digits), common.cell(trl.get(key), digits)
        lines.append(f"{name:18}{cells[0]:>10}{cells[1]:>10}{common.cell(ratio.get(key), 1):>8}")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_options(parser)
    parser.add_argument("--records", type=int, default=200, help="records to validate")
    parser.add_argument("--warmup", type=int, default=1, help="records validated first, not counted")
    parser.add_argument("--new-tokens", type=int, default=64, help="C, most tokens of a completion")
    parser.add_argument("--num-generations-eval", type=int, help="TRL's option of that name; TRL's default is 8")
    common.add_process_options(parser)
    args = parser.parse_args()
    if not 1 <= args.warmup <= args.records:
        parser.error("expected at least 1 warm-up record and as many records")
    return args


def main() -> None:
    """One process of the benchmark."""
    args = parse()
    if args.system == "inputs":
        common.make_inputs(args, args.records)
    elif args.system:
        result = run_ours(args) if args.system == "ours" else run_trl(args)
        (args.folder / f"{args.system}.json").write_text(json.dumps(result))
    else:
        result = run(args)
        common.report(args, result, table(result))


if __name__ == "__main__":
    main()
