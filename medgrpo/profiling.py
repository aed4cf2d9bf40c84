"""``--profile N``: a trace of N optimizer steps, and a table of the phases and operators where their time goes."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lightning import Callback, LightningModule, Trainer
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from medgrpo.metrics import PHASE
from medgrpo.types import PromptBatch

LOADING = "enumerate(DataLoader)#"  # begins torch's own name for the wait for a batch
OPERATORS_SHOWN = 15


class Phase(NamedTuple):
    """One stretch of a named phase of the main thread, in seconds of the trace's clock."""

    name: str
    start: float
    end: float


class Operator(NamedTuple):
    """One call of an operator: when it began, seconds in it but not in those that it called, and in its kernels."""

    name: str
    start: float
    cpu: float
    gpu: float


class Profile(Callback):
    """Profiles the first rank, and writes ``profile/trace.json.gz`` and ``profile/table.txt`` in the run's folder.

    Writing takes about a minute and 6 GiB of memory per million calls: profile few steps and short completions.

    Args:
        steps: optimizer steps to record, a multiple of ``num_iterations`` lest rollouts count too much or too little.
            The run's first step is not recorded: it warms up kernels and allocators.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.profiler: profile | None = None  # while it runs
        self.done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where this run starts and writes; on all ranks, as ``log_dir`` is a broadcast."""
        self.first_step = trainer.global_step
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "profile"

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Start after one optimizer step; finish after ``steps`` more. No phase is open here."""
        steps = trainer.global_step - self.first_step
        if self.done or not trainer.is_global_zero or steps == 0:
            return
        if self.profiler is None:
            gpu = [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else []
            self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
            self.profiler.start()
            self.started = time.perf_counter()
        elif steps > self.steps:
            self._write(steps - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training may end with or before the last step to record."""
        steps = trainer.global_step - self.first_step - 1
        if self.profiler is not None and steps > 0:
            self._write(steps)
        elif trainer.is_global_zero and not self.done:
            print("profile: nothing to write: training ended before its second optimizer step did")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no profiler running."""
        if self.profiler is not None:
            self.profiler.stop()

    def _write(self, steps: int) -> None:
        seconds = time.perf_counter() - self.started
        profiler, self.profiler, self.done = self.profiler, None, True
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        phases, operators = read(profiler.events())
        (self.folder / "table.txt").write_text(table(phases, operators, seconds, steps), encoding="utf-8")
        print(f"profile: {self.folder / 'table.txt'}, and trace.json.gz beside it (open it in https://ui.perfetto.dev)")


def read(events: Iterable[FunctionEvent]) -> tuple[list[Phase], list[Operator]]:
    """Phases, none inside another, and calls of operators, from a profiler's events in the order of time."""
    phases: list[Phase] = []
    operators: list[Operator] = []
    for event in events:
        start, end = event.time_range.start / 1e6, event.time_range.end / 1e6
        if event.device_type != DeviceType.CPU:
            continue  # a kernel is counted where it is launched
        if not event.is_user_annotation:
            gpu = sum(kernel.duration for kernel in event.kernels) / 1e6
            operators.append(Operator(event.name, start, event.self_cpu_time_total / 1e6, gpu))
        elif event.name.startswith((PHASE, LOADING)) and (not phases or start >= phases[-1].end):
            name = "loading" if event.name.startswith(LOADING) else event.name.removeprefix(PHASE)
            phases.append(Phase(name, start, end))
    return phases, operators


def table(phases: list[Phase], operators: list[Operator], seconds: float, steps: int) -> str:
    """Phases with seconds per step and share of the whole, then the operators of each by self time.

    An operator belongs to the phase in which it begins, whatever its thread: the backward pass has its own on a GPU.
    ``seconds`` are those of all ``steps`` together; what is in no phase (validation, logging) is ``other``.
    """
    spent: Counter[str] = Counter()
    for name, start, end in phases:
        spent[name] += end - start
    spent["other"] = seconds - spent.total()
    starts = [phase.start for phase in phases]
    totals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0, 0]))
    for operator in operators:
        i = bisect_right(starts, operator.start) - 1
        name = phases[i].name if i >= 0 and operator.start < phases[i].end else "other"
        total = totals[name][operator.name]
        total[:] = total[0] + operator.gpu, total[1] + operator.cpu, total[2] + 1

    lines = [
        f"optimizer steps: {steps}, {seconds / steps:.4f} s each; all figures are per step",
        "gpu s: in kernels; cpu s: in operators, without the Python between them; recording slows each call down",
        "",
        f"{'phase':<14}{'s':>10}{'%':>7}{'gpu s':>10}{'cpu s':>10}",
    ]
    for name, value in spent.most_common():
        gpu, cpu = (sum(total[k] for total in totals[name].values()) / steps for k in (0, 1))
        lines.append(f"{name:<14}{value / steps:>10.4f}{100 * value / seconds:>7.1f}{gpu:>10.4f}{cpu:>10.4f}")
    for name, _ in spent.most_common():
        lines += ["", f"{name:<62}{'gpu s':>10}{'cpu s':>10}{'calls':>10}"]
        ranked = sorted(totals[name].items(), key=lambda item: item[1], reverse=True)
        for operator, (gpu, cpu, calls) in ranked[:OPERATORS_SHOWN]:
            lines.append(f"  {operator[:59]:<60}{gpu / steps:>10.4f}{cpu / steps:>10.4f}{calls / steps:>10.1f}")
    return "\n".join(lines) + "\n"
