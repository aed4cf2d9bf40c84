"""Kill training runs at random moments, damage their checkpoints, go on, and compare with runs left in peace.

    python scripts/chaos.py --rounds 30 --seed 0

Each round is a real ``medgrpo fit`` of a tiny model in a process group of its own, one process for each rank. It is
killed at a random moment, by SIGKILL or by SIGTERM to the group or to one rank; in a third of the rounds a random byte
of the newest checkpoint is changed then; and the same command with ``--ckpt_path last`` goes on, perhaps to be killed
again. At the end weights, optimizer, scheduler, counts and every logged metric but timings have to be bit for bit those
of an undisturbed run. A round in which a sound checkpoint was there and training did not go on from the newest of them,
or in which a run told to stop left a step unsaved, is counted as ``lost``. Every run is forked from this process, which
has loaded the libraries. Exit status 1 unless all is as it has to be.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_modules.formats import write_jsonl
from data_modules.phantom import phantom
from medgrpo.checkpoint_file import damage
from medgrpo.demo.model import save_tiny
from medgrpo.rewards import Reward
from medgrpo.trainer_cli import main as medgrpo
from medgrpo.types import Record

STEPS = 6
TIMINGS = re.compile(r"timing_s/|perf/|step_time$")
"""Metrics that say how fast, and so differ from run to run."""
CONFIGURATIONS = [
    {"mu": 1, "accumulate": 1, "workers": 0, "lora": True, "ranks": 1},
    {"mu": 2, "accumulate": 4, "workers": 2, "lora": True, "ranks": 1},
    {"mu": 2, "accumulate": 1, "workers": 0, "lora": False, "ranks": 1},
    {"mu": 2, "accumulate": 2, "workers": 0, "lora": True, "ranks": 2},
    {"mu": 1, "accumulate": 4, "workers": 2, "lora": False, "ranks": 1},
    {"mu": 1, "accumulate": 2, "workers": 2, "lora": True, "ranks": 2},
]
TIMEOUT = 120.0
"""Seconds after which a run counts as hanging."""
PATIENCE = 10.0
"""Seconds that other ranks run on when a signal has ended one."""


class LettersReward(Reward):
    """Pays for the number of different characters: a random model gets many values."""

    name = "letters_reward"

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        """One score per completion."""
        return [len(set(text)) / 10 for text in completions]


def make_files(folder: Path, number: int = 8) -> None:
    """A tiny model, images and questions."""
    save_tiny(folder / "model", num_layers=2)
    records = []
    for record, image in phantom(seed=0, number=number):
        path = folder / record.images[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        records.append(record)
    write_jsonl(folder / "train.jsonl", records)


def write_config(
    folder: Path, name: str, *, mu: int, accumulate: int, workers: int, lora: bool, ranks: int
) -> list[str]:
    """Arguments of ``medgrpo`` for a run whose folder is ``folder/name``."""
    config = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": ranks,
            "strategy": "ddp" if ranks > 1 else "auto",
            "max_steps": STEPS,
            "accumulate_grad_batches": accumulate,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder), "name": "", "version": name},
            },
        },
        "model": {
            "policy": {"model_name_or_path": str(folder / "model"), "max_pixels": 6000, "use_peft": lora},
            "rewards": [{"class_path": f"{__spec__.name if __spec__ else 'chaos'}.LettersReward"}],
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.LinearLR",
                "init_args": {"start_factor": 1.0, "end_factor": 0.1, "total_iters": STEPS},
            },
            "num_generations": 3,
            "max_completion_length": 8,
            "num_iterations": mu,
            "epsilon": 0.05,
            "beta": 0.04,
        },
        "data": {
            "class_path": "data_modules.MedicalVQADataModule",
            "init_args": {
                "train": str(folder / "train.jsonl"),
                "val": str(folder / "train.jsonl"),
                "limit_eval_records": 4,
                "image_root": str(folder),
                "prompts_per_batch": 4 // ranks,
                "num_workers": workers,
            },
        },
        "checkpoint": {"every_n_train_steps": 1, "save_top_k": -1},
        "memory_probe": {"enabled": False},
    }
    file = folder / f"{name}.json"  # JSON is YAML
    file.write_text(json.dumps(config))
    return ["fit", "--config", str(file)]


@dataclass
class Run:
    """A command in processes of its own, one for each rank."""

    args: list[str]
    ranks: int
    log: Path
    pids: list[int] = field(default_factory=list)
    ended: dict[int, int] = field(default_factory=dict)
    """Process -> exit status."""
    killed: bool = False
    """Whether a signal has ended a rank."""
    alone_since: float | None = None

    def start(self, before: Callable[[int], None] = lambda rank: None) -> Run:
        """Fork the ranks; ``before`` runs in each of them first, with its rank."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.ranks):
            sys.stdout.flush()
            if pid := os.fork():
                self.pids.append(pid)
                os.setpgid(pid, self.pids[0])
                continue
            os.setpgid(0, self.pids[0] if self.pids else 0)
            self._be(rank, port, before)
        return self

    def _be(self, rank: int, port: int, before: Callable[[int], None]) -> None:
        status: Any = 1
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
            for name in list(logging.root.manager.loggerDict):  # made before, for another stream
                for handler in logging.getLogger(name).handlers:
                    if isinstance(handler, logging.StreamHandler):
                        handler.setStream(sys.stderr)
            if self.ranks > 1:
                there = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": self.ranks, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in there.items()}, MASTER_ADDR="127.0.0.1")
            os.chdir(self.log.parent)
            sys.argv = ["medgrpo", *self.args]
            before(rank)
            medgrpo()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code)
        except BaseException:
            traceback.print_exc()
        finally:
            for worker in torch.multiprocessing.active_children():
                worker.terminate()
            os._exit(status)

    def kill(self, signum: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to the process group: ranks and their workers."""
        try:
            os.kill(self.pids[rank], signum) if rank is not None else os.killpg(self.pids[0], signum)
        except ProcessLookupError:  # it has ended
            return

    def wait(self, timeout: float = TIMEOUT) -> list[int] | None:
        """Exit status of each rank, -N where signal N has ended it; None when some run on after ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while len(self.ended) < len(self.pids):
            for pid in set(self.pids) - self.ended.keys():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.ended[pid] = os.waitstatus_to_exitcode(status)
                    self.killed |= self.ended[pid] < 0
            if self.killed and self.alone_since is None:
                self.alone_since = time.monotonic()
            if self.alone_since is not None and time.monotonic() > self.alone_since + PATIENCE:
                self.kill(signal.SIGKILL)  # as a launcher does when a rank is gone before it could tell the others
            if time.monotonic() > until:
                return None
            time.sleep(0.01)
        return [self.ended[pid] for pid in self.pids]

    def finish(self, timeout: float = TIMEOUT) -> list[int] | None:
        """Wait; what hangs, or is left of the group, is killed."""
        statuses = self.wait(timeout)
        self.kill(signal.SIGKILL)
        if statuses is None:
            self.wait(10)
        return statuses


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has come to: its newest checkpoint and all that it has logged, timings aside."""
    state = torch.load(max(checkpoints(folder))[1], weights_only=True)
    kept = {name: state[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "grpo", "global_step")}
    kept["callbacks"] = {name: part for name, part in state["callbacks"].items() if not name.startswith("Checkpoint")}
    metrics: dict[str, dict[int, set[float]]] = {}
    for file in sorted(folder.glob("events.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not TIMINGS.match(tag):
                for event in events.Scalars(tag):
                    metrics.setdefault(tag, {}).setdefault(event.step, set()).add(event.value)
    return kept | {"metrics": metrics}


def difference(got: Any, expected: Any, where: str = "") -> str:
    """Where two outcomes part first; empty when they are the same bit for bit."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(got, torch.Tensor) and got.dtype == expected.dtype and torch.equal(got, expected)
        return "" if same else where
    if isinstance(expected, dict) and isinstance(got, dict):
        if got.keys() != expected.keys():
            return f"{where}: {sorted(map(str, got.keys() ^ expected.keys()))[:4]}"
        parts = (difference(got[key], expected[key], f"{where}/{key}") for key in expected)
    elif isinstance(expected, list) and isinstance(got, list) and len(got) == len(expected):
        parts = (difference(*pair, f"{where}/{i}") for i, pair in enumerate(zip(got, expected, strict=True)))
    else:
        return "" if repr(got) == repr(expected) else f"{where}: {got} is not {expected}"  # repr: NaN is NaN
    return next((part for part in parts if part), "")


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of a run's sound checkpoints."""
    files = {path.resolve() for path in (folder / "checkpoints").glob("*.ckpt") if path.is_file()}
    return [(int(re.findall(r"step(\d+)", path.name)[0]), path) for path in files if not damage(path)]


def flip(path: Path, rng: random.Random) -> None:
    """Change one random bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def disturbed(folder: Path, name: str, setting: dict[str, Any], seconds: float, rng: random.Random, hurt: bool) -> str:
    """Run to the end through kills.

    Returns:
        What was lost on the way; empty when nothing was.
    """
    args = [*write_config(folder, name, **setting), "--ckpt_path", "last"]
    run_folder, log, lost, story = folder / name, folder / f"{name}.log", "", []
    for kill in range(rng.choice((1, 1, 2, 3)) + 1):
        newest = max(checkpoints(run_folder), default=(0, None))[0]
        begun = log.stat().st_size if log.exists() else 0
        run = Run(args, setting["ranks"], log).start()
        if (kill == 0 or rng.random() < 0.8) and run.wait(rng.uniform(0.2, 0.9) * seconds) is None:
            how = rng.choice(("kill -9", "SIGTERM", "SIGTERM to one"))
            story.append(how)
            one = rng.randrange(setting["ranks"]) if how == "SIGTERM to one" else None
            run.kill(signal.SIGKILL if how == "kill -9" else signal.SIGTERM, one)
        statuses = run.finish()
        if statuses is None:
            return f"it hangs after {', '.join(story) or 'no signal'} (statuses {run.ended})"
        said = log.read_bytes()[begun:].decode(errors="replace")
        from_step = re.search(r"going on from \S*step(\d+)", said)
        if from_step and int(from_step[1]) != newest:
            lost = f"step {newest} was there, went on from {from_step[1]}"
        if newest and "starting anew" in said:
            lost = f"step {newest} was there, started anew"
        steps = checkpoints(run_folder)
        if statuses[0] == 143 and (last := re.findall(r"after step (\d+)", said)) and not steps:
            lost = f"stopped after step {last[-1]}, and nothing is there"
        elif statuses[0] == 143 and last and max(steps)[0] != int(last[-1]):
            lost = f"stopped after step {last[-1]}, and {max(steps)[0]} is there"
        if newest and not steps:
            lost = f"step {newest} was there before the run"
        if statuses[0] == 0:
            break
        if hurt and steps:
            flip(max(steps)[1], rng)
            story.append(f"step {max(steps)[0]} damaged")
            hurt = False
    else:
        statuses = Run(args, setting["ranks"], log).start().finish()
    print("  " + ", ".join(story or ["too late to kill"]), flush=True)
    return lost or ("" if statuses and set(statuses) == {0} else f"it ended with {statuses}")


def main() -> None:
    """Run the rounds, tell each, and the sum of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="leave the runs' folders in place")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    make_files(folder)
    undisturbed: dict[int, tuple[dict[str, Any], float]] = {}
    identical = lost = 0
    for number in range(args.rounds):
        started = time.monotonic()
        index = number % len(CONFIGURATIONS)
        setting = CONFIGURATIONS[index]
        if index not in undisturbed:
            name = f"peace{index}"
            log = folder / f"{name}.log"
            run = Run(write_config(folder, name, **setting), setting["ranks"], log).start()
            if run.finish() != [0] * setting["ranks"]:
                sys.exit(f"an undisturbed run failed:\n{log.read_text()[-3000:]}")
            seconds = time.monotonic() - started
            undisturbed[index] = outcome(folder / name), seconds
        expected, seconds = undisturbed[index]
        name = f"round{number}"
        trouble = disturbed(folder, name, setting, seconds, rng, hurt=(number + number // len(CONFIGURATIONS)) % 3 == 2)
        apart = "" if trouble else difference(outcome(folder / name), expected)
        identical += not (trouble or apart)
        lost += bool(trouble)
        told = f"lost: {trouble}" if trouble else f"differs at {apart}" if apart else "identical"
        print(f"round {number} {setting}: {told} ({time.monotonic() - started:.0f} s)", flush=True)
        if not (args.keep or trouble or apart):
            shutil.rmtree(folder / name)
    print(f"runs are in {folder}" if args.keep or identical < args.rounds else "", end="\n")
    if not args.keep and identical == args.rounds:
        shutil.rmtree(folder)
    print(f"rounds={args.rounds} identical={identical} lost={lost}")
    sys.exit(identical < args.rounds)


if __name__ == "__main__":
    main()
