"""Linear layers through oneDNN: the same values and gradients as torch's, up to rounding."""

import copy

import pytest
import torch
from tiny import prompt_batch, random_completions, tiny_policy
from torch import nn

from medgrpo.linear import Linear, is_available, packed_weights, product, use_onednn
from medgrpo.prefix import encode, prepare, score

pytestmark = pytest.mark.skipif(not is_available(), reason="this build of torch has no oneDNN")
SHAPE = (3, 100, 64)  # 3 * 100 * 64 * 128 multiply-adds: enough to leave torch's product


def layers(bias=True):
    torch.manual_seed(0)
    plain = nn.Linear(64, 128, bias=bias)
    ours = copy.deepcopy(plain)
    use_onednn(ours)
    return plain, ours


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_values_and_gradients_equal_those_in_float64(bias, frozen):
    plain, ours = layers(bias)
    assert type(ours) is Linear
    ours.requires_grad_(not frozen)
    x = torch.randn(SHAPE, requires_grad=True)
    upstream = torch.randn(3, 100, 128)
    ours(x).backward(upstream)
    plain, exact = plain.double(), x.detach().double().requires_grad_()
    plain(exact).backward(upstream.double())
    assert torch.allclose(ours(x).double(), plain(exact), atol=1e-5)
    assert torch.allclose(x.grad.double(), exact.grad, atol=1e-5)
    for parameter, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is None) == frozen
        assert frozen or torch.allclose(parameter.grad.double(), expected.grad, atol=1e-4)


def test_it_is_onednn_that_computes(monkeypatch):
    calls = []
    monkeypatch.setattr("medgrpo.linear.product", lambda *args: calls.append(1) or product(*args))
    _, ours = layers()
    ours(torch.randn(SHAPE))
    assert calls == [1]


@pytest.mark.parametrize("case", ["small", "double", "empty", "autocast"])
def test_what_it_cannot_do_better_stays_with_torch(case, monkeypatch):
    monkeypatch.setattr("medgrpo.linear.product", lambda *args: pytest.fail("oneDNN was called"))
    plain, ours = layers()
    x = torch.randn({"small": (2, 64), "empty": (0, 64)}.get(case, SHAPE))
    if case == "double":
        plain, ours, x = plain.double(), ours.double(), x.double()
    with torch.autocast("cpu", enabled=case == "autocast"):
        y = ours(x)
        assert torch.equal(y, plain(x))
    assert y.dtype == (torch.bfloat16 if case == "autocast" else x.dtype)


@pytest.mark.parametrize("rows", [1, 100, 300])
def test_packed_weights_give_the_same_product_and_are_gone_afterwards(rows, monkeypatch):
    monkeypatch.setattr("medgrpo.linear.SMALLEST", 1)
    plain, ours = layers()
    x = torch.randn(rows, 64)
    with packed_weights(ours, rows=100):
        packed = ours.packed
        assert packed is not None
        with torch.no_grad():
            assert torch.allclose(ours(x), plain(x), atol=1e-5)
        ours(x).sum().backward()  # with gradients the weight itself is used
    assert ours.packed is None
    assert torch.allclose(ours.weight.grad, x.sum(0).expand(128, -1), atol=1e-4)


def test_layers_that_stay_with_torch_are_not_packed():
    _, ours = layers()
    with packed_weights(ours, rows=1):
        assert ours.packed is None
    with packed_weights(ours.double(), rows=1000):
        assert ours.packed is None


@pytest.mark.parametrize("tuning", [{}, {"use_peft": False, "freeze_vision": False}], ids=["lora", "full"])
def test_the_policy_is_the_same_policy(tuning, monkeypatch):
    monkeypatch.setattr("medgrpo.linear.SMALLEST", 0)
    results = []
    for implementation in ("torch", "onednn"):
        policy = tiny_policy(linear_implementation=implementation, **tuning)
        assert any(type(m) is Linear for m in policy.modules()) == (implementation == "onednn")
        prompts = prepare(policy.network, prompt_batch("qwen2_5_vl"), torch.device("cpu"), policy.freeze_vision)
        ids, mask = random_completions("qwen2_5_vl", 6)
        logps, _ = score(policy.network, encode(policy.network, prompts), ids, mask, 1.0, torch.tensor([], dtype=int))
        logps.sum().backward()
        grads = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad and p.grad is not None}
        results.append((logps.detach(), grads, list(policy.state_dict())))
    (logps, grads, names), (ours, our_grads, our_names) = results
    assert names == our_names
    assert torch.allclose(logps, ours, atol=1e-5)
    assert grads.keys() == our_grads.keys()
    for name, grad in grads.items():
        assert (our_grads[name] - grad).norm() <= 1e-4 * max(grad.norm(), 1e-3), name
