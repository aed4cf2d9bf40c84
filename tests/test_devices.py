"""Two gloo processes under DDP, FSDP2 and FSDP1: the gradients, weights and tables of one process."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from test_cli import write_config, write_data
from test_module import G, assert_same, gradient, make_module
from tiny import FAMILIES, prompt_batch, tiny_folder, tiny_policy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from medgrpo.policy import Policy
from medgrpo.sharding import FSDP1Strategy, FSDP2Strategy, check_strategy, clean_names, clip_by_norm, shard, whole
from medgrpo.trainer_cli import main
from medgrpo.types import SettingsError

HERE = Path(__file__).parent
CPU = torch.device("cpu")
FULL = {"use_peft": False, "freeze_vision": False}
CASES = [  # strategy, family, images of the four prompts, options of the policy, groups without a gradient
    ("ddp", "qwen2_5_vl", (1, 0, 2, 1), {}, (0, 1)),
    ("ddp", "qwen2_5_vl", (0, 0, 2, 1), FULL, ()),
    ("fsdp2", "qwen2_5_vl", (1, 0, 2, 1), {"gradient_checkpointing": True}, (0, 1)),
    *(("fsdp2", family, (0, 0, 2, 1), FULL, (1,)) for family in FAMILIES),
    ("fsdp1", "qwen2_5_vl", (1, 0, 2, 1), {}, (0, 1)),
    ("fsdp1", "qwen2_5_vl", (0, 0, 2, 1), FULL, (1,)),
]


def one_case(case: int, rank: int | None):
    """Draw and go back, on all four prompts or on the two of a rank, whose completions differ in length."""
    strategy, family, images, options, idle = CASES[case]
    double = strategy != "fsdp1"  # whose norms are float32
    policy = tiny_policy(family, double=double, **options)
    world_size = 1 if rank is None else 2
    module = make_module(policy=policy, world_size=world_size, rank=rank or 0, scale_rewards="batch", beta=0.05)
    prompts = prompt_batch(family, images, dtype=torch.float64 if double else torch.float32)
    if rank is None:
        rollouts = module.collect(prompts, 0)
        rollouts.active = [p not in idle for p in range(4)]
        return gradient(module, rollouts), rollouts.completions

    def all_gather(rows):
        gathered = [torch.empty_like(rows) for _ in range(2)]
        torch.distributed.all_gather(gathered, rows)
        return torch.stack(gathered)

    module.all_gather = all_gather
    mine = [2 * rank, 2 * rank + 1]
    prompts = prompts.select(mine)
    if strategy == "fsdp1":
        return one_case_of_fsdp1(module, prompts, [p not in idle for p in mine], rank)
    if strategy == "ddp":
        module.forward = lambda rollouts: module.micro_loss(rollouts, 0, 1) * 2
        run = torch.nn.parallel.DistributedDataParallel(module)
    else:
        policy.sharded = True
        shard(policy, init_device_mesh("cpu", (2,)))
        run = lambda rollouts: module.micro_loss(rollouts, 0, 1) * 2  # noqa: E731
    rollouts = module.collect(prompts, 0)
    rollouts.active = [p not in idle for p in mine]
    run(rollouts).backward()
    grads = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
    whole_grads = {n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in grads.items()}
    norm = clip_by_norm(SimpleNamespace(strategy=None), policy, 0.01)
    clipped = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}
    return whole_grads, rollouts.completions, norm, clipped


def one_case_of_fsdp1(module, prompts, active: list[bool], rank: int):
    """As under Lightning: rollout and loss are inside of the root's forward. PyTorch is told to run it on a CPU."""

    def step():
        module.rollouts = module.collect(prompts, 0)
        module.rollouts.active = active
        return module.micro_loss(module.rollouts, 0, 1) * 2

    init = FullyShardedDataParallel.__init__
    module.policy.sharded, module.forward = True, step
    strategy = FSDP1Strategy()
    strategy.parallel_devices, strategy.cluster_environment = [CPU, CPU], SimpleNamespace(local_rank=lambda: rank)
    try:
        FullyShardedDataParallel.__init__ = lambda self, *a, **k: init(self, *a, **k | {"device_id": CPU})
        strategy.model = strategy._setup_model(module)
    finally:
        FullyShardedDataParallel.__init__ = init

    def gradients():
        with FullyShardedDataParallel.summon_full_params(strategy.model, with_grads=True):
            return {n: p.grad.clone() for n, p in clean_names(module.policy) if p.requires_grad}

    strategy.model().backward()
    grads = gradients()
    norm = clip_by_norm(SimpleNamespace(strategy=strategy), module.policy, 0.01)
    return grads, module.rollouts.completions, norm, gradients()


def one_rank(rank: int, port: int, folder: str) -> None:
    """All cases, on one rank."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for case in range(len(CASES)):
        torch.save(one_case(case, rank), Path(folder) / f"{case}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes computed, by case and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    for family in FAMILIES:
        tiny_folder(family)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(one_rank, (port, str(folder)), nprocs=2)
    return lambda case: [torch.load(folder / f"{case}-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{c[0]}-{c[1]}-{len(c[3])}" for c in CASES])
def test_two_processes_have_the_gradient_of_one(ranks, case):
    (grads, first, norm, clipped), (others, second, other_norm, _) = ranks(case)
    expected, drawn = one_case(case, None)
    for name, grad in grads.items():
        assert torch.equal(grad, others[name])
    rows = [row[m] for done in (first, second) for row, m in zip(done.ids, done.mask, strict=True)]
    assert len(rows) == 4 * G
    for row, ids, mask in zip(rows, drawn.ids, drawn.mask, strict=True):
        assert torch.equal(row, ids[mask]), "several ranks draw what one would"
    assert_same(grads, expected, 1e-6 if CASES[case][0] != "fsdp1" else 1e-4)
    total = torch.stack([g.norm() for g in expected.values()]).norm().item()
    assert norm == other_norm == pytest.approx(total, rel=1e-5)
    assert_same(clipped, {name: grad * 0.01 / total for name, grad in expected.items()}, 1e-4)


def command(name: str, *args: str, seconds: int | None = None) -> None:
    """Run ``medgrpo`` with two devices; its launcher starts the second process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "medgrpo.cli", name, *args],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def main_with(name: str, *args: str) -> None:
    """The same in this process, on one device."""
    main([name, *args])


def test_fit_and_test_agree_under_every_strategy(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data, 9)
    settings = {
        "trainer__max_steps": 3,
        "trainer__val_check_interval": 2,
        "checkpoint__every_n_train_steps": 100,
        "model__optimizer__init_args__lr": 1e-3,
    }
    config = Path(write_config(data, **settings))
    strategies = HERE.parent / "configs" / "strategy"
    saved, tables = {}, {}
    for name, prompts in (("single", 4), ("ddp", 2), ("fsdp2", 2)):
        run = ["--config", str(config), "--config", str(strategies / f"{name}.yaml")]
        run += ["--trainer.devices", "1" if name == "single" else "2"]
        where = tmp_path / name
        batch = ["--data.init_args.prompts_per_batch", str(prompts), "--checkpoint.dirpath", str(where)]
        start = main_with if name == "single" else command
        start("fit", *run, *batch)
        saved[name] = torch.load(where / "last.ckpt", weights_only=True)
        ask = ["--data.init_args.eval_batch_size", "3", "--data.init_args.eval_views", "[wrong_image]"]
        ask += ["--ckpt_path", str(tmp_path / "single" / "last.ckpt"), "--predictions.dirpath"]
        start("test", *run, *ask, str(tmp_path / f"table-{name}"))
        tables[name] = {f.name: f.read_bytes() for f in (tmp_path / f"table-{name}").iterdir() if f.name != "run.json"}
        if name != "single":  # one answer is left, for one of the ranks
            file = tmp_path / f"table-{name}" / "predictions.jsonl"
            lines = tables[name][file.name].splitlines(keepends=True)
            file.write_bytes(b"".join(lines[:-1]) + lines[-1].rstrip())
            command("test", *run, *ask, str(file.parent), seconds=120)
            assert file.read_bytes() == tables[name][file.name]
    for name in ("ddp", "fsdp2"):
        assert tables[name] == tables["single"]
        assert saved[name]["state_dict"].keys() == saved["single"]["state_dict"].keys()
        for key, value in saved["single"]["state_dict"].items():
            assert (saved[name]["state_dict"][key] - value).abs().max() < 1e-5, key
        ours, single = (saved[n]["optimizer_states"][0]["state"] for n in (name, "single"))
        for index, state in single.items():
            for key, value in state.items():
                assert (ours[index][key] - value).abs().max() < 1e-5, (index, key)
    assert json.loads(tables["single"]["metrics.json"])["overall"]["n"] == 9

    # Training goes on from one strategy under another.
    goes_on = {}
    for name, last, prompts in (("single", "fsdp2", 4), ("fsdp2", "single", 2)):
        where = tmp_path / f"{last}-{name}"
        run = ["--config", str(config), "--config", str(strategies / f"{name}.yaml"), "--trainer.max_steps", "4"]
        run += ["--trainer.devices", "1" if name == "single" else "2", "--checkpoint.dirpath", str(where)]
        run += ["--data.init_args.prompts_per_batch", str(prompts)]
        (main_with if name == "single" else command)("fit", *run, "--ckpt_path", str(tmp_path / last / "last.ckpt"))
        goes_on[name] = torch.load(where / "last.ckpt", weights_only=True)["state_dict"]
    for key, value in goes_on["single"].items():
        assert (goes_on["fsdp2"][key] - value).abs().max() < 1e-5, key


def trainer(strategy, precision="32-true", fn="fit"):
    return SimpleNamespace(strategy=strategy, precision=precision, state=SimpleNamespace(fn=fn))


@pytest.mark.parametrize(
    ("strategy", "options", "precision", "match"),
    [
        (FSDP2Strategy, {"quantize": "nf4"}, "bf16-mixed", "quantize=nf4 .*ddp.yaml"),
        (FSDP2Strategy, {"decode_implementation": "static"}, "bf16-mixed", "decode_implementation"),
        (FSDP2Strategy, {"linear_implementation": "onednn"}, "32-true", "linear_implementation"),
        (FSDP2Strategy, {}, "bf16-true", "bf16-mixed keeps"),
        (partial(DDPStrategy, start_method="spawn"), {}, "32-true", "ddp_spawn.*ddp.yaml"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(strategy, options, precision, match):
    with pytest.raises(SettingsError, match=match):
        check_strategy(trainer(strategy(), precision), Policy("x", **options), None)


def test_strategies_that_are_not_set_up_are_refused():
    from lightning.pytorch.strategies import ModelParallelStrategy

    with pytest.raises(SettingsError, match="fsdp2.yaml"):
        check_strategy(trainer(ModelParallelStrategy()), Policy("x"), None)
    with pytest.raises(SettingsError, match="max_tokens_per_pass.*\n?.*accumulate_grad_batches"):
        check_strategy(trainer(FSDP2Strategy()), Policy("x"), 100)
    fsdp1 = FSDP1Strategy()
    fsdp1.parallel_devices, fsdp1.cluster_environment = [torch.device("cpu")], SimpleNamespace(local_rank=lambda: 0)
    with pytest.raises(SettingsError, match="needs GPUs"):
        check_strategy(trainer(fsdp1), Policy("x"), None)


def test_fsdp1_moves_the_frozen_tower_that_it_does_not_shard(monkeypatch):
    monkeypatch.setattr(FSDP1Strategy, "root_device", torch.device("meta"))
    monkeypatch.setattr("lightning.pytorch.strategies.FSDPStrategy._setup_model", lambda self, model: model)
    policy = tiny_policy()
    FSDP1Strategy()._setup_model(SimpleNamespace(policy=policy))
    assert {p.device.type for p in policy.network.model.visual.parameters()} == {"meta"}


def test_whole_leaves_a_policy_alone_that_is_not_sharded():
    policy = tiny_policy()
    before = {name: p for name, p in policy.named_parameters()}
    with whole(policy):
        assert all(p is before[name] for name, p in policy.named_parameters())
