"""``--profile``: what it writes, and that it changes nothing."""

import gzip
import json
import time

import pytest
import torch
from test_cli import folder, scalars, write_config  # noqa: F401  (folder is a fixture)
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from medgrpo.metrics import Timer
from medgrpo.profiling import Operator, Phase, Profile, read, table
from medgrpo.trainer_cli import main


def sections(text: str) -> dict[str, list[list[str]]]:
    """Cells of the rows under each header of a table, by the header's first word."""
    parts = [part.splitlines() for part in text.split("\n\n")[1:]]
    return {header.split()[0]: [row.split() for row in rows] for header, *rows in parts}


def test_table_by_hand():
    phases = [Phase("rollout", 1.0, 3.0), Phase("train", 4.0, 9.0), Phase("rollout", 11.0, 13.0)]
    operators = [
        Operator("aten::mm", 1.0, 0.5, 0.0),
        Operator("aten::mm", 12.0, 0.5, 0.0),
        Operator("aten::add", 2.0, 1.5, 0.0),
        Operator("aten::mm", 4.0, 0.25, 4.0),  # most of the GPU's time comes first, whatever the CPU's
        Operator("aten::add", 5.0, 1.0, 0.5),
        Operator("aten::cat", 3.0, 0.125, 0.0),  # the end of a phase is outside it
        Operator("aten::cat", 0.5, 0.125, 0.0),
    ]
    text = table(phases, operators, seconds=16.0, steps=2)
    assert text.startswith("optimizer steps: 2, 8.0000 s each")
    got = sections(text)
    assert list(got) == ["phase", "other", "train", "rollout"]
    assert got["phase"] == [
        ["other", "3.5000", "43.8", "0.0000", "0.1250"],
        ["train", "2.5000", "31.2", "2.2500", "0.6250"],
        ["rollout", "2.0000", "25.0", "0.0000", "1.2500"],
    ]
    assert got["rollout"] == [["aten::add", "0.0000", "0.7500", "0.5"], ["aten::mm", "0.0000", "0.5000", "1.0"]]
    assert got["train"] == [["aten::mm", "2.0000", "0.1250", "0.5"], ["aten::add", "0.2500", "0.5000", "0.5"]]
    assert got["other"] == [["aten::cat", "0.0000", "0.1250", "1.0"]]


def test_only_the_longest_operators_are_shown():
    operators = [Operator(f"op{i}", 0.0, i, 0.0) for i in range(20)]
    shown = sections(table([], operators, seconds=200.0, steps=1))["other"]
    assert [row[0] for row in shown] == [f"op{i}" for i in range(19, 4, -1)]


def test_phases_and_operators_are_read_from_a_profiler():
    """Across a phase that is closed by another call, inside an annotation of torch's that ends before it."""
    timer, x = Timer(), torch.ones(8, 8, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with timer("rollout"), timer("reward"), torch.no_grad():  # a phase inside a phase counts once
            x.exp()
        with record_function("Optimizer.step#AdamW.step"):
            timer.start("train")
            loss = (x @ x).sum()
        loss.backward()
        timer.stop("train")
        next(iter(torch.utils.data.DataLoader([1, 2])))
        x.cos()
    phases, operators = read(profiler.events())
    assert [phase.name for phase in phases] == ["rollout", "train", "loading"]
    rollout, train, loading = phases
    assert rollout.start < rollout.end <= train.start < train.end <= loading.start < loading.end
    at = {operator.name: operator.start for operator in operators}
    assert rollout.start <= at["aten::exp"] < rollout.end
    assert train.start <= at["aten::sum"] < at["MmBackward0"] < train.end
    assert at["aten::cos"] >= loading.end
    assert "Optimizer.step#AdamW.step" not in at
    assert 0 < sum(o.cpu for o in operators if train.start <= o.start < train.end) <= train.end - train.start


def test_kernels_count_where_they_are_launched():
    def event(name, start_us, end_us, **more):
        return FunctionEvent(id=0, name=name, thread=1, start_us=start_us, end_us=end_us, use_device="cuda", **more)

    launch = event("aten::mm", 10.0, 14.0)
    launch.append_kernel("gemm", 0, 500_000.0)
    launch.append_kernel("reduce", 0, 250_000.0)
    kernel = event("gemm", 12.0, 500_012.0, device_type=DeviceType.CUDA)
    on_gpu = event("phase: train", 12.0, 750_000.0, device_type=DeviceType.CUDA, is_user_annotation=True)
    train = event("phase: train", 0.0, 1_000_000.0, is_user_annotation=True)
    phases, operators = read([train, launch, kernel, on_gpu])
    assert phases == [Phase("train", 0.0, 1.0)]
    assert operators == [Operator("aten::mm", 1e-5, pytest.approx(4e-6), 0.75)]


def test_a_run_that_fails_leaves_no_profiler_running():
    callback = Profile(steps=1)
    callback.on_exception(None, None, KeyboardInterrupt())
    callback.profiler = profile(activities=[ProfilerActivity.CPU])
    callback.profiler.start()
    assert torch.autograd._profiler_enabled()
    callback.on_exception(None, None, KeyboardInterrupt())
    assert not torch.autograd._profiler_enabled()


def test_a_run_is_profiled_and_stays_the_same(folder, capsys):  # noqa: F811
    settings = {"trainer__max_steps": 3, "trainer__accumulate_grad_batches": 2, "model__num_iterations": 2}
    config = write_config(folder, **settings, checkpoint__every_n_train_steps=4)
    main(["fit", "--config", config, "--trainer.logger.init_args.version", "plain"])
    assert not (folder / "runs/plain/profile").exists()

    began = time.perf_counter()
    main(["fit", "--config", config, "--profile", "2"])
    wall = time.perf_counter() - began
    path = folder / "runs/run/profile/table.txt"
    assert f"profile: {path}" in capsys.readouterr().out
    text = path.read_text()
    assert text.startswith("optimizer steps: 2, ")
    got = sections(text)
    names = {"rollout", "reward", "reference", "train", "loading", "other"}
    assert {row[0] for row in got["phase"]} == names
    assert sum(float(row[2]) for row in got["phase"]) == pytest.approx(100, abs=0.5)
    seconds = {row[0]: float(row[1]) for row in got["phase"]}
    assert 0 < 2 * sum(seconds.values()) < wall
    assert all(float(row[4]) <= float(row[1]) for row in got["phase"]), "operators take longer than their phase"
    assert any("Backward" in row[0] or row[0] == "aten::mm" for row in got["train"])

    logged = {name: scalars(folder / "runs" / name) for name in ("plain", "run")}
    timed = [event.value for event in logged["run"].Scalars("timing_s/rollout")]
    assert seconds["rollout"] == pytest.approx(timed[-1] / 2, rel=0.2, abs=2e-3)  # the third step's, over two steps

    with gzip.open(path.with_name("trace.json.gz")) as file:
        trace = {event["name"] for event in json.load(file)["traceEvents"] if "name" in event}
    assert {"phase: rollout", "phase: reward", "phase: reference", "phase: train", "aten::mm"} <= trace

    for name in ("loss", "grad_norm", "kl", "reward"):
        plain, profiled = ([event.value for event in logged[run].Scalars(name)] for run in ("plain", "run"))
        assert len(plain) == 3
        assert plain == profiled, name


def test_a_run_that_ends_early_writes_what_there_is(folder, capsys):  # noqa: F811
    main(["fit", "--config", write_config(folder, trainer__max_steps=2, profile=5)])
    assert (folder / "runs/run/profile/table.txt").read_text().startswith("optimizer steps: 1, ")
    capsys.readouterr()
    short = write_config(folder, trainer__max_steps=1, profile=5)
    main(["fit", "--config", short, "--trainer.logger.init_args.version", "short"])
    assert "profile: nothing to write: training ended before its second" in capsys.readouterr().out
    assert not (folder / "runs/short/profile").exists()
    main(["validate", "--config", short])  # the same file serves the other commands
    assert "profile:" not in capsys.readouterr().out


def test_a_negative_number_of_steps_is_refused(folder, capsys):  # noqa: F811
    with pytest.raises(SystemExit):
        main(["fit", "--config", write_config(folder), "--profile", "-1"])
    assert "profile" in capsys.readouterr().err
