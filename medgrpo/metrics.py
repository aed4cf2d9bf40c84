"""What is logged of a rollout batch and of the passes over it, under TRL's names."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.profiler import record_function

PHASE = "phase: "
"""Begins the names of a `Timer`'s phases in a profiler's trace."""


def rollout_metrics(
    rewards: Tensor, names: list[str], total: Tensor, lengths: Tensor, finished: Tensor, num_generations: int
) -> dict[str, Tensor]:
    """Rewards and lengths of the whole rollout batch over all ranks.

    Args:
        rewards: [N, R] float32 unweighted rewards.
        names: [R] names of the rewards.
        total: [N] float32 weighted sums.
        lengths: [N] completion lengths in tokens.
        finished: [N] bool, False where the completion was truncated.
        num_generations: G.
    """
    finished = finished.bool()
    lengths = lengths.float()
    groups = total.view(-1, num_generations)
    values = {
        "reward": total.mean(),
        "reward_std": groups.std(1).mean(),
        "frac_reward_zero_std": (groups == groups[:, :1]).all(1).float().mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": (~finished).float().mean(),
    }
    if finished.any():
        ended = lengths[finished]
        values |= {
            "completions/mean_terminated_length": ended.mean(),
            "completions/min_terminated_length": ended.min(),
            "completions/max_terminated_length": ended.max(),
        }
    for name, column in zip(names, rewards.unbind(1), strict=True):
        values |= {f"rewards/{name}/mean": column.mean(), f"rewards/{name}/std": column.std()}
    return values


class PassStatistics:
    """Sums over the micro-batches of one optimizer step, so that the logged means do not depend on the cut."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor], maxima: dict[str, Tensor]) -> None:
        """Add sums over tokens (among them ``tokens``, their number) and take maxima."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        for name, value in maxima.items():
            self.maxima[name] = torch.maximum(self.maxima.get(name, value), value).detach()

    def pop(self) -> dict[str, Tensor]:
        """Means over tokens, and maxima; empty again afterwards."""
        sums, maxima, self.sums, self.maxima = self.sums, self.maxima, {}, {}
        tokens = sums.pop("tokens", torch.tensor(0.0)).clamp(min=1)
        return {name: value / tokens for name, value in sums.items()} | maxima


class Timer:
    """Seconds spent in each phase since the last ``pop``; waits for the accelerator at both ends.

    Each phase is also a range in the trace of a profiler, if one is running.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.started: dict[str, float] = {}
        self.ranges: dict[str, record_function] = {}
        self.since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        self.start(phase)
        yield
        self.stop(phase)

    def start(self, phase: str) -> None:
        """Begin a phase that ends elsewhere."""
        self.ranges[phase] = record_function(PHASE + phase)
        self.ranges[phase].__enter__()
        self.started[phase] = now()

    def stop(self, phase: str) -> None:
        """End a phase."""
        self.seconds[phase] += now() - self.started.pop(phase)
        self.ranges.pop(phase).__exit__(None, None, None)

    def pop(self) -> dict[str, float]:
        """``timing_s/PHASE`` and ``step_time`` in seconds; starts anew."""
        ended = now()
        values = {f"timing_s/{phase}": seconds for phase, seconds in self.seconds.items()}
        values["step_time"] = ended - self.since
        self.seconds.clear()
        self.since = ended
        return values


def now() -> float:
    """Seconds, once the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_gib() -> float:
    """Largest memory in use so far in GiB: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    per_gib = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_gib
