"""Seconds of decoding, next to transformers' ``generate``: same model folder, prompts, rows and number of tokens.

    python scripts/bench_decode.py --model small --tuning lora --generations 8 --new-tokens 64

Both draw G completions of exactly C tokens for each of P prompts, at temperature 1, with the same ids suppressed, in
one process, in turn: ours as a training step does it (``GRPOModule.sample``), ``generate`` as it comes (its default
cache, ``do_sample``) on a model of its own, which plain transformers and PEFT have loaded. On a GPU both run under
bfloat16 autocast, as training does.

Prefill is excluded by taking the time when the first and when the last token are there: our loop calls ``on_token``,
``generate`` a stopping criterion. The time between the two is that of C - 1 decoding steps on both sides; where our
loop reports several tokens at once, the time per token is taken from the first report to the last.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import bench_common as common


class Ticks:
    """When the first and the last token of one run were there; nothing waits for the GPU in between."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.seen: list[tuple[int, float]] = []

    def tick(self, num_tokens: int) -> None:
        """So many tokens of every row have been drawn."""
        if not self.seen or num_tokens == self.args.new_tokens:
            self.seen.append((num_tokens, common.now(self.args)))

    def seconds(self) -> float:
        """Of C - 1 decoding steps."""
        (first, start), (last, end) = self.seen[0], self.seen[-1]
        common.expect("tokens drawn", self.args.new_tokens, last)
        if first == last:
            raise RuntimeError(f"all {last} tokens were reported at once; raise --new-tokens")
        return (end - start) * (self.args.new_tokens - 1) / (last - first)


def load_ours(args: argparse.Namespace) -> Any:
    """A module as training has it, on the device."""
    import torch

    from medgrpo.module import GRPOModule
    from medgrpo.policy import Policy

    module = GRPOModule(
        Policy(**common.policy_options(args)),
        [common.hash_reward()],
        torch.optim.AdamW,
        num_generations=args.generations,
        max_completion_length=args.new_tokens,
        min_completion_length=args.new_tokens,
    )
    module.configure_model()
    return module.to(common.device_of(args))


def load_plain(args: argparse.Namespace) -> Any:
    """The same model in plain transformers, with the same adapter."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForImageTextToText

    dtype = getattr(torch, common.dtype_of(args))
    folder = common.model_folder(args)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    if args.tuning == "lora":
        model = get_peft_model(model, common.lora_config())
    return model.to(common.device_of(args)).eval()


def decode_ours(args: argparse.Namespace, module: Any, prefix: Any, seed: int) -> float:
    """Seconds of C - 1 steps of our loop on what ``prefix.encode`` made of the prompts."""
    import torch

    ticks = Ticks(args)
    module.on_rollout_token = lambda num_tokens, alive: ticks.tick(num_tokens)
    completions = module.sample(prefix, torch.Generator().manual_seed(seed))
    rows = args.prompts * args.generations
    common.expect("tokens of ours", rows * args.new_tokens, int(completions.mask.sum()))
    return ticks.seconds()


def decode_plain(args: argparse.Namespace, model: Any, inputs: dict[str, Any], suppressed: list[int]) -> float:
    """Seconds of C - 1 steps of ``generate``."""
    import torch
    from transformers import StoppingCriteria

    length, ticks = inputs["input_ids"].shape[1], Ticks(args)

    class Tick(StoppingCriteria):
        def __call__(self, input_ids, scores, **named):
            ticks.tick(input_ids.shape[1] - length)
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    ids = model.generate(
        **inputs,
        num_return_sequences=args.generations,
        min_new_tokens=args.new_tokens,
        max_new_tokens=args.new_tokens,
        suppress_tokens=suppressed,
        stopping_criteria=[Tick()],
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    common.expect("rows and tokens of generate", (args.prompts * args.generations, args.new_tokens + length), ids.shape)
    return ticks.seconds()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time both in turn, after one run of each that is not counted."""
    import torch

    from data_modules.collate import Collate
    from data_modules.formats import read_records
    from medgrpo.prefix import encode, prepare

    common.make_inputs(args, args.prompts)
    module, plain = load_ours(args), load_plain(args)
    device = torch.device(common.device_of(args))
    collate = Collate(processor=module.processor, prompt=common.PROMPT, image_root=str(args.folder))
    batch = collate(read_records(args.folder / "records.jsonl"))
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    inputs = {name: getattr(batch, name).to(device) for name in names}
    inputs["attention_mask"] = inputs["attention_mask"].long()
    suppressed = common.suppressed_ids(args)
    times: dict[str, list[float]] = {"ours": [], "generate": []}
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        network = module.policy.network
        prefix = encode(network, prepare(network, batch, device, frozen_vision=True))
        for repeat in range(args.repeats + 1):
            seconds = decode_ours(args, module, prefix, repeat), decode_plain(args, plain, inputs, suppressed)
            if repeat:
                times["ours"].append(seconds[0])
                times["generate"].append(seconds[1])
    read = (plain.get_base_model() if args.tuning == "lora" else plain).model.language_model
    settings = common.settings_of(args, {"prompt_tokens": int(batch.attention_mask.sum())} | common.machine(args))
    return figures(settings, times, sum(p.numel() * p.element_size() for p in read.parameters()))


def figures(settings: dict[str, Any], times: dict[str, list[float]], weight_bytes: int) -> dict[str, Any]:
    """Medians.

    Args:
        settings: for the JSON.
        times: seconds of every run, of C - 1 steps each.
        weight_bytes: of the language model, all of which every step reads: of the embedding a step reads a few rows,
            but all of the output layer, which is the same matrix or another of its size.

    Returns:
        ``weights_gib_per_s`` is the least bandwidth that our loop used.
    """
    ours, generate = (median(times[name]) for name in ("ours", "generate"))
    steps = settings["new_tokens"] - 1
    return {
        "settings": settings,
        "ours_s": ours,
        "generate_s": generate,
        "ratio": generate / ours,
        "runs_s": times,
        "weights_gib_per_s": weight_bytes * steps / ours / 2**30,
    }


def table(result: dict[str, Any]) -> str:
    """A line per loop."""
    steps = result["settings"]["new_tokens"] - 1
    lines = []
    for name in ("ours", "generate"):
        median_s, runs = result[f"{name}_s"], result["runs_s"][name]
        spread = f"{len(runs)} runs of {min(runs):.3f} to {max(runs):.3f} s"
        lines.append(f"{name:10}{median_s:8.3f} s {1000 * median_s / steps:8.2f} ms a step  ({spread})")
    lines.append(f"{'ratio':10}{result['ratio']:8.2f}   {result['weights_gib_per_s']:8.2f} GiB/s of weights (ours)")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    common.add_options(parser)
    parser.add_argument("--generations", type=int, default=8, help="G, completions per prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="C, tokens of every completion")
    parser.add_argument("--prompts", type=int, default=1, help="P")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each")
    args = parser.parse_args()
    if args.repeats < 5 or args.new_tokens < 2:
        parser.error("expected at least 5 counted runs and 2 tokens")
    return args


def main() -> None:
    """The benchmark, in this process."""
    args = parse()
    os.environ.update(common.environment(common.device_of(args)))  # before torch is imported
    with TemporaryDirectory(prefix="bench_") as folder:
        args.folder = Path(folder)
        result = run(args)
    common.report(args, result, table(result))


if __name__ == "__main__":
    main()
