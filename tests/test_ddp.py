"""Two gloo processes: real collectives, the same gradient as one process on the same completions."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from test_cli import write_config, write_data
from test_module import G, assert_same, batch, gradient, make_module
from tiny import tiny_folder, tiny_policy

from medgrpo.types import Completions

GROUPS = ([0, 1], [2, 3])


def one_rank(rank: int, port: int, folder: str) -> None:
    """Draw, exchange and backpropagate on one rank; rank 0 has an idle micro-batch that rank 1 has not."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)

    def all_gather(rows):
        gathered = [torch.empty_like(rows) for _ in range(2)]
        torch.distributed.all_gather(gathered, rows)
        return torch.stack(gathered)

    module = make_module(policy=tiny_policy(double=True), world_size=2, rank=rank, scale_rewards="batch")
    module.all_gather = all_gather
    module.forward = lambda rollouts: module.micro_loss(rollouts, 0, 1) * module.trainer.world_size
    parallel = torch.nn.parallel.DistributedDataParallel(module)
    rollouts = module.collect(batch().select(GROUPS[rank]), 0)
    if rank == 0:  # no gradient here: the other rank's exchange must not hang
        rollouts.active = [False, False]
    parallel(rollouts).backward()
    grads = {n: p.grad for n, p in module.policy.named_parameters() if p.requires_grad}
    done = rollouts.completions
    torch.save((grads, done.ids, done.mask, done.logps, done.finished), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_average_to_the_gradient_of_one(tmp_path, monkeypatch):
    tiny_folder()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_rank, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, grad in ranks[0][0].items():
        assert torch.equal(grad, ranks[1][0][name])

    length = max(ids.shape[1] for _, ids, *_ in ranks)
    padded = [[torch.nn.functional.pad(t, (0, length - t.shape[1])) for t in parts[1:4]] for parts in ranks]
    ids, mask, logps = (torch.cat(parts) for parts in zip(*padded, strict=True))
    drawn = Completions(ids, mask, logps, torch.cat([parts[4] for parts in ranks]))
    one = make_module(policy=tiny_policy(double=True), scale_rewards="batch")
    monkeypatch.setattr(one, "sample", lambda prompts, generator: drawn)
    rollouts = one.collect(batch(), 0)
    rollouts.active[0] = rollouts.active[1] = False
    assert rollouts.advantages[: 2 * G].abs().sum() > 0
    assert_same(ranks[0][0], gradient(one, rollouts))


def test_fit_and_test_under_ddp(tmp_path):
    write_data(tmp_path, 9)
    config = write_config(
        tmp_path,
        trainer__devices=2,
        trainer__strategy="ddp",
        trainer__max_steps=2,
        data__init_args__prompts_per_batch=2,
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "medgrpo.cli"]
    done = subprocess.run([*command, "fit", "--config", config], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    last = tmp_path / "runs/run/checkpoints/last.ckpt"
    test = [*command, "test", "--config", config, "--ckpt_path", str(last), "--data.init_args.eval_batch_size", "3"]
    test += ["--data.init_args.eval_views", "[wrong_image]", "--predictions.dirpath"]
    done = subprocess.run([*test, str(tmp_path / "two")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = [*test, str(tmp_path / "one"), "--trainer.devices", "1", "--trainer.strategy", "auto"]
    done = subprocess.run(alone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names - {"run.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert json.loads((tmp_path / "one" / "metrics.json").read_text())["overall"]["n"] == 9

    finished = (tmp_path / "two/predictions.jsonl").read_bytes()
    for kept in (-1, 1):  # one answer is left, for one of the ranks; then all but one
        lines = finished.splitlines(keepends=True)
        (tmp_path / "two/predictions.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept].rstrip())
        done = subprocess.run([*test, str(tmp_path / "two")], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / "two/predictions.jsonl").read_bytes() == finished
