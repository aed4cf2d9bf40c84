"""What only a GPU can show. ``scripts/bench_gpu.sh`` runs these; elsewhere they are not collected."""

import pytest
import torch
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
