"""The shared prefix against plain per-row forwards in float64: same log-probabilities, same gradients."""

import pytest
import torch
from tiny import FAMILIES, prompt_batch, random_completions, row_logps, tiny_policy

from medgrpo.prefix import encode, prepare, score

G = 3
TEMPERATURE = 0.9


def shared(policy, prompts, ids, mask):
    suppressed = torch.tensor(policy.suppressed_ids())
    prompts = prepare(policy.network, prompts, torch.device("cpu"), frozen_vision=policy.freeze_vision)
    return score(policy.network, encode(policy.network, prompts), ids, mask, TEMPERATURE, suppressed)


def per_row(policy, prompts, ids, mask):
    rows = [row_logps(policy, prompts, i // G, ids[i][mask[i]], TEMPERATURE) for i in range(len(ids))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"use_peft": True}, id="lora"),
        pytest.param({"use_peft": True, "gradient_checkpointing": True}, id="lora-checkpointing"),
        pytest.param({"use_peft": True, "freeze_vision": False}, id="lora-vision"),
        pytest.param({"use_peft": False, "freeze_vision": False}, id="full-trainable-vision"),
        pytest.param(
            {"use_peft": False, "freeze_vision": False, "gradient_checkpointing": True}, id="full-checkpointing"
        ),
    ],
)
def test_same_log_probabilities_and_gradients_as_plain_rows(family, options):
    policy = tiny_policy(family, double=True, **options)
    prompts = prompt_batch(family, images=(1, 0, 2), dtype=torch.float64)
    ids, mask = random_completions(family, 3 * G)
    weights = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * mask

    logps, _ = shared(policy, prompts, ids, mask)
    (weights * logps).sum().backward()
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    ours = {n: p.grad.clone() for n, p in trained.items()}
    policy.zero_grad()
    expected = per_row(policy, prompts, ids, mask)
    (weights * expected).sum().backward()

    assert torch.allclose(logps, expected, rtol=0, atol=1e-6)
    for name, parameter in trained.items():
        scale = parameter.grad.norm()
        assert scale > 0, f"{name} gets no gradient"
        assert (ours[name] - parameter.grad).norm() <= 1e-5 * scale, name
