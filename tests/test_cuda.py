"""What only a GPU can show. ``scripts/bench_gpu.sh`` runs these; elsewhere they are not collected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import write_config, write_data
from tiny import FAMILIES, prompt_batch, tiny_policy

from medgrpo.prefix import encode, prepare, score
from medgrpo.rollout import sample

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda")


def on_gpu(family, **options):
    policy = tiny_policy(family, **options).to(GPU)
    prompts = prepare(policy.network, prompt_batch(family), GPU, policy.freeze_vision)
    return policy, prompts


def draw(policy, prompts, **options):
    with torch.no_grad():
        return sample(
            policy.network,
            encode(policy.network, prompts),
            num_generations=4,
            max_completion_length=80,
            stop_ids=torch.arange(0, 280, 60, device=GPU),
            suppressed=torch.tensor(policy.suppressed_ids(), device=GPU),
            pad_id=0,
            generator=torch.Generator().manual_seed(0),
            **options,
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.9, "top_k": 50}], ids=str)
def test_the_cuda_graph_draws_what_eager_decoding_draws(family, options):
    policy, prompts = on_gpu(family, dtype="float32")
    eager, graph = (draw(policy, prompts, static=static, **options) for static in (False, True))
    same = (eager.ids[:, :8] == graph.ids[:, :8]).all(1).float().mean()
    assert same >= 0.9  # two near-equal probabilities may fall apart
    both = eager.mask[:, :8] & graph.mask[:, :8] & (eager.ids[:, :8] == graph.ids[:, :8]).all(1, keepdim=True)
    assert torch.allclose(eager.logps[:, :8][both], graph.logps[:, :8][both], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_graph_samples_what_the_scorer_scores(family, autocast):
    policy, prompts = on_gpu(family, dtype="float32")
    suppressed = torch.tensor(policy.suppressed_ids(), device=GPU)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        drawn = draw(policy, prompts, static=True)
        logps, _ = score(policy.network, encode(policy.network, prompts), drawn.ids, drawn.mask, 1.0, suppressed)
    assert torch.allclose(drawn.logps, logps, atol=0.1 if autocast else 1e-3)
    logps.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters() if p.requires_grad)


@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp1"])
def test_one_sharded_process_trains_as_one_that_is_not(strategy, tmp_path):
    write_data(tmp_path)
    config = write_config(
        tmp_path, trainer__accelerator="gpu", trainer__devices=1, model__optimizer__init_args__lr=1e-3
    )
    ends = {}
    for name in ("single", strategy):
        file = Path(__file__).parents[1] / "configs" / "strategy" / f"{name}.yaml"
        where = tmp_path / name
        args = ["--config", config, "--config", str(file), "--trainer.devices", "1", "--checkpoint.dirpath", str(where)]
        command = [sys.executable, "-m", "medgrpo.cli", "fit", *args, "--model.policy.dtype", "float32"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        ends[name] = torch.load(where / "last.ckpt", weights_only=True)
    for key, value in ends["single"]["state_dict"].items():
        assert (ends[strategy]["state_dict"][key] - value).abs().max() < 1e-4, key
    states = [end["optimizer_states"][0]["state"] for end in ends.values()]
    for index, state in states[0].items():
        for key, value in state.items():
            assert (states[1][index][key] - value).abs().max() < 1e-4, (index, key)


def test_a_second_rollout_sees_new_weights():
    policy, prompts = on_gpu("qwen2_5_vl", dtype="float32")
    draw(policy, prompts, static=True)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    drawn = draw(policy, prompts, static=True)
    suppressed = torch.tensor(policy.suppressed_ids(), device=GPU)
    with torch.no_grad():
        logps, _ = score(policy.network, encode(policy.network, prompts), drawn.ids, drawn.mask, 1.0, suppressed)
    assert torch.allclose(drawn.logps, logps, atol=1e-3)
