"""Training goes on bit for bit: weights, optimizer, scheduler, counts and logged metrics, however a run has ended."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import chaos

from data_modules.base import MedicalVQADataModule
from medgrpo import checkpoint_file
from medgrpo.module import GRPOModule

ONE = {"mu": 2, "accumulate": 4, "workers": 2, "lora": True, "ranks": 1}
TWO = {"mu": 2, "accumulate": 2, "workers": 0, "lora": True, "ranks": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("training")
    chaos.make_files(folder)
    return folder


@pytest.fixture(scope="module")
def peace(place) -> Callable[[dict], dict]:
    """What an undisturbed run comes to."""
    known = {}

    def come_to(setting: dict) -> dict:
        key = str(setting)
        if key not in known:
            name = f"peace{len(known)}"
            assert run(place, name, setting) == [0] * setting["ranks"], said(place, name)
            known[key] = chaos.outcome(place / name)
            steps = known[key]["metrics"]["reward"]
            assert len(steps) == chaos.STEPS
            assert len({value for values in steps.values() for value in values}) > 1
        return known[key]

    return come_to


def run(place: Path, name: str, setting: dict, *more: str, before=lambda rank: None) -> list[int]:
    args = [*chaos.write_config(place, name, **setting), "--ckpt_path", "last", *more]
    return chaos.Run(args, setting["ranks"], place / f"{name}.log").start(before).finish(120)


def said(place: Path, name: str) -> str:
    return (place / f"{name}.log").read_text()


def saved(place: Path, name: str) -> list[int]:
    return sorted(step for step, _ in chaos.checkpoints(place / name))


def go_on(place: Path, name: str, setting: dict, step: int, peace) -> None:
    """From ``step``, and to what an undisturbed run comes to."""
    assert run(place, name, setting) == [0] * setting["ranks"], said(place, name)
    assert re.search(rf"going on from \S+/step{step}\.ckpt", said(place, name)), said(place, name)
    assert chaos.difference(chaos.outcome(place / name), peace(setting)) == ""


def strike(rank: int, *, method: str, call: int, blow: Callable[[], None], on: int = 0, of: type = GRPOModule) -> None:
    """In a forked run: do something in the ``call``-th call of a method, on one rank."""
    original, calls = getattr(of, method), iter(range(1, 10**6))

    def struck(self, *args, **kwargs):
        if next(calls) == call and rank == on:
            blow()
        return original(self, *args, **kwargs)

    setattr(of, method, struck)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def fail(error: BaseException) -> None:
    raise error


# Four micro-batches make a step: the tenth is in step 3, the first of two on its rollout batch; the 14th in step 4.
ENDS = {
    "SIGTERM": (partial(strike, method="micro_loss", call=10, blow=partial(send, signal.SIGTERM)), 143, 3),
    "kill": (partial(strike, method="micro_loss", call=14, blow=partial(send, signal.SIGKILL)), -signal.SIGKILL, 3),
    "error": (partial(strike, method="micro_loss", call=14, blow=partial(fail, RuntimeError("no"))), 1, 3),
    "validation": (
        partial(strike, method="validation_step", call=1, blow=partial(send, signal.SIGTERM)),
        143,
        4,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_going_on_is_as_if_never_ended(place, peace, end):
    before, status, step = ENDS[end]
    scarce = () if end == "kill" else ("--checkpoint.every_n_train_steps", "100")  # all but a kill is saved in the end
    assert run(place, end, ONE, *scarce, before=before) == [status], said(place, end)
    assert saved(place, end)[-1] == step
    assert end == "kill" or "--ckpt_path last" in said(place, end)
    go_on(place, end, ONE, step, peace)


def test_two_ranks_stop_together_when_one_is_told_to(place, peace):
    told = partial(strike, method="micro_loss", call=5, blow=partial(send, signal.SIGTERM), on=1)
    assert run(place, "two", TWO, before=told) == [143, 0], said(place, "two")
    assert saved(place, "two")[-1] == 3
    state = torch.load(place / "two/checkpoints/step3.ckpt", weights_only=True)
    assert len({tuple(part["unfinished"]["ids"]) for part in state["grpo"]}) == 2
    go_on(place, "two", TWO, 3, peace)


@pytest.mark.parametrize("on", [0, 1])
def test_one_rank_told_before_training_begins_makes_none_wait(place, on):
    """Between the Trainer's setting of its handlers and the first hook; Lightning's handler would hang here."""
    blow = partial(send, signal.SIGTERM)
    told = partial(strike, of=MedicalVQADataModule, method="train_dataloader", call=1, blow=blow, on=on)
    name = f"early{on}"
    assert run(place, name, TWO, before=told) == [143, 0], said(place, name)
    assert saved(place, name) == [1]


def test_rank_0_saves_alone_when_an_error_ends_the_run_between_rollout_batches(place):
    scarce = ("--checkpoint.every_n_train_steps", "100")
    error = partial(strike, method="collect", call=2, blow=partial(fail, RuntimeError("no")), on=1)
    statuses = run(place, "alone", TWO, *scarce, before=error)
    assert 0 not in statuses
    assert saved(place, "alone") == [2]
    assert "step2.ckpt is whole" in said(place, "alone")


def test_a_full_disk_leaves_the_earlier_checkpoint(place, peace):
    def full(rank):
        signs, original = iter(range(1, 100)), checkpoint_file._sign

        def sign(file, step):
            if next(signs) == 4:
                fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            original(file, step)

        checkpoint_file._sign = sign

    assert run(place, "full", ONE, before=full) == [1]
    assert re.search(r"medgrpo: .*step4.ckpt could not be written .*No space.*step3.ckpt is whole", said(place, "full"))
    there = {path.name for path in (place / "full/checkpoints").iterdir()}
    assert there == {"last", "last.ckpt"} | {f"step{i}{end}" for i in (1, 2, 3) for end in ("", ".ckpt")}
    go_on(place, "full", ONE, 3, peace)


def test_a_damaged_checkpoint_is_left_out_and_what_was_being_written_removed(place, peace):
    assert run(place, "damaged", ONE, "--trainer.max_steps", "3") == [0]
    folder = place / "damaged/checkpoints"
    data = bytearray((folder / "step3.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "step3.ckpt").write_bytes(data)
    (folder / "step4.ckpt.partial").write_bytes(b"half")
    (folder / "step4.partial").mkdir()
    args = chaos.write_config(place, "other", **ONE)
    refused = chaos.Run([*args, "--ckpt_path", str(folder / "step3.ckpt")], 1, place / "refused.log").start()
    assert refused.finish() == [1]
    assert re.search(r"step3.ckpt: .*altered.*--ckpt_path \S+/step2.ckpt", said(place, "refused"))
    assert not (place / "other/checkpoints").exists()
    go_on(place, "damaged", ONE, 2, peace)
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob("*-v*"))
