"""Losses: hand-worked numbers, laws, and TRL's own code on the same numbers."""

from collections import defaultdict
from math import exp, log
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.loss import clip_ratios, kl_k3, token_loss, token_weights

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo"]
MAX_LENGTH = 8  # max_completion_length


def batch(seed, rows=6, length=7, truncated=False):
    """logps, old_logps, ref_logps, advantages and mask of a rollout batch, with ratios on both sides of the clip."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(rows, length, generator=generator)
    logps = old + 0.4 * torch.randn(rows, length, generator=generator)
    ref = old + 0.3 * torch.randn(rows, length, generator=generator)
    advantages = torch.randn(rows, generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    if truncated:
        mask[1] = mask[4] = False
    return logps, old, ref, advantages, mask


def loss_of(logps, old, ref, advantages, mask, loss_type, beta, totals, epsilon_high=0.2):
    per_token = token_loss(logps, old, advantages, 0.2, epsilon_high) + beta * kl_k3(logps, ref)
    return (token_weights(mask, loss_type, *totals, MAX_LENGTH) * per_token).sum()


def totals_of(mask):
    return mask.shape[0], int(mask.sum())


def value_and_gradient(function, logps):
    logps = logps.clone().requires_grad_()
    loss = function(logps)
    return loss.detach(), torch.autograd.grad(loss, logps)[0]


# ------------------------------------------------------------------------------------------------ hand-worked numbers


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # clipped at 1.3
        (0.5, 2.0, -1.0, -1.0),  # a lower ratio is worse, so it stays
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),  # clipped at 0.8
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_token_loss_by_hand(ratio, advantage, loss, gradient):
    value, slope = value_and_gradient(
        lambda logps: token_loss(logps, torch.zeros(1, 1), torch.tensor([advantage]), 0.2, 0.3).sum(),
        torch.tensor([[log(ratio)]]),
    )
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert slope.item() == pytest.approx(gradient, abs=1e-6)


def test_kl_by_hand():
    kl = kl_k3(torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([[0.0, log(2), -2.0]]))
    torch.testing.assert_close(kl, torch.tensor([[0.0, 1 - log(2), exp(-1)]]))


def test_kl_of_a_small_difference_is_not_rounding_noise():
    assert kl_k3(torch.tensor([[0.0]]), torch.tensor([[1e-3]])).item() == pytest.approx(1e-6 / 2, rel=1e-3)


MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("loss_type", "weights"),
    [
        ("grpo", [1 / 6, 1 / 3]),
        ("bnpo", [1 / 3, 1 / 3]),
        ("dapo", [1 / 3, 1 / 3]),
        ("dr_grpo", [1 / 24, 1 / 24]),
    ],
)
def test_token_weights_by_hand(loss_type, weights):
    expected = torch.tensor([[weights[0], weights[0], 0], [weights[1], 0, 0], [0, 0, 0]])
    got = token_weights(MASK, loss_type, total_sequences=3, total_tokens=3, max_completion_length=8)
    torch.testing.assert_close(got, expected)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_without_any_token_weighs_nothing(loss_type):
    weights = token_weights(torch.zeros(2, 3, dtype=torch.bool), loss_type, 2, 0, 8)
    assert weights.tolist() == [[0.0] * 3] * 2


def test_unknown_loss_type():
    with pytest.raises(ValueError, match="loss_type: expected grpo, bnpo, dr_grpo or dapo; got 'ppo'"):
        token_weights(MASK, "ppo", 3, 3, 8)


def test_clip_ratios_by_hand():
    ratio = torch.tensor([[0.5, 1.0, 1.5, 1.25], [0.5, 0.9, 0.7, 1.5], [0.5, 1.5, 1.0, 1.0]])
    mask = torch.tensor([[True] * 4, [True, True, True, True], [True] * 4])
    mask[1, 2] = False
    counts = clip_ratios(ratio.log(), torch.zeros(3, 4), torch.tensor([1.0, -1.0, 0.0]), mask, 0.2, 0.3)
    assert {name: value.item() for name, value in counts.items()} == {
        "clip_ratio/low_mean": 1.0,
        "clip_ratio/high_mean": 1.0,
        "clip_ratio/region_mean": 2.0,
    }


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("difference", [-500.0, 500.0])
def test_absurd_ratios_stay_finite(advantage, difference):
    logps, old = torch.tensor([[difference]]), torch.zeros(1, 1)
    for function in (
        lambda x: token_loss(x, old, torch.tensor([advantage]), 0.2, 0.2).sum(),
        lambda x: kl_k3(x, old).sum(),
    ):
        value, gradient = value_and_gradient(function, logps)
        assert value.isfinite()
        assert gradient.isfinite().all()


# ------------------------------------------------------------------------------------------------------------- laws


@given(st.integers(0, 10**6), st.sampled_from(LOSS_TYPES), st.lists(st.integers(1, 5), max_size=4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_the_cut_does_not_matter(seed, loss_type, cuts, truncated):
    logps, *rest, mask = batch(seed, truncated=truncated)
    totals = totals_of(mask)
    whole = value_and_gradient(lambda x: loss_of(x, *rest, mask, loss_type, 0.04, totals), logps)
    edges = [0, *sorted(set(cuts)), len(logps)]

    def in_parts(x):
        parts = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        return sum(loss_of(x[p], *(t[p] for t in rest), mask[p], loss_type, 0.04, totals) for p in parts)

    torch.testing.assert_close(value_and_gradient(in_parts, logps), whole)


@given(st.integers(0, 10**6), st.sampled_from(LOSS_TYPES), st.permutations(range(6)))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter(seed, loss_type, order):
    logps, *rest, mask = batch(seed)
    totals = totals_of(mask)
    value, gradient = value_and_gradient(lambda x: loss_of(x, *rest, mask, loss_type, 0.04, totals), logps)
    permuted = value_and_gradient(
        lambda x: loss_of(x, *(t[order] for t in rest), mask[order], loss_type, 0.04, totals), logps[order]
    )
    torch.testing.assert_close(permuted, (value, gradient[order]))


@given(st.integers(0, 10**6), st.sampled_from(LOSS_TYPES))
@settings(max_examples=50, deadline=None)
def test_on_policy_loss_is_minus_the_weighted_advantages(seed, loss_type):
    logps, _, ref, advantages, mask = batch(seed)
    weights = token_weights(mask, loss_type, *totals_of(mask), MAX_LENGTH)
    value, gradient = value_and_gradient(
        lambda x: loss_of(x, logps, ref, advantages, mask, loss_type, 0.0, totals_of(mask)), logps
    )
    torch.testing.assert_close(value, -(weights * advantages[:, None]).sum())
    torch.testing.assert_close(gradient, -weights * advantages[:, None])


@given(st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_kl_is_not_negative_and_zero_at_the_reference(seed):
    logps, _, ref, _, _ = batch(seed)
    assert (kl_k3(logps, ref) >= 0).all()
    assert (kl_k3(ref, ref) == 0).all()


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo"])
def test_weights_sum_to_one(loss_type):
    mask = batch(3)[-1]
    assert token_weights(mask, loss_type, *totals_of(mask), MAX_LENGTH).sum().item() == pytest.approx(1.0)


# -------------------------------------------------------------------------------------------------------------- TRL


class Accelerator:
    """One process."""

    num_processes = 1

    def reduce(self, tensor, reduction):
        return tensor

    def gather(self, tensor):
        return tensor


def trl_step(logps, old, ref, advantages, mask, loss_type, beta, epsilon_high, micro_batches=1):
    """Loss and metrics of TRL's ``GRPOTrainer`` with given log-probabilities, summed over equal micro-batches."""
    trainer = pytest.importorskip("trl").GRPOTrainer
    metrics = defaultdict(list)
    state = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=micro_batches),
        loss_type=loss_type,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=epsilon_high,
        max_completion_length=MAX_LENGTH,
        current_gradient_accumulation_steps=micro_batches,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": metrics},
    )
    loss = torch.tensor(0.0)
    for rows in torch.arange(len(logps)).chunk(micro_batches):
        scored = logps[rows]
        state._get_per_token_logps_and_entropies = lambda *_, scored=scored, **__: (
            scored,
            torch.zeros_like(scored),
            None,
        )
        ids = torch.zeros_like(mask[rows], dtype=torch.int64)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": mask[rows].int(),
            "advantages": advantages[rows],
            "old_per_token_logps": None if old is None else old[rows],
            "ref_per_token_logps": ref[rows],
            "num_items_in_batch": mask.sum(),
        }
        loss = loss + trainer._compute_loss(state, None, inputs)
    return loss, metrics


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("epsilon_high", [0.2, 0.28])
@pytest.mark.parametrize("truncated", [False, True])
def test_loss_and_gradient_are_those_of_trl(loss_type, beta, epsilon_high, truncated):
    logps, *rest = batch(seed=7, truncated=truncated)
    mask = rest[-1]
    theirs = value_and_gradient(lambda x: trl_step(x, *rest, loss_type, beta, epsilon_high)[0], logps)
    ours = value_and_gradient(lambda x: loss_of(x, *rest, loss_type, beta, totals_of(mask), epsilon_high), logps)
    assert theirs[1].abs().sum() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_first_pass_is_that_of_trl(loss_type):
    logps, _, ref, advantages, mask = batch(seed=8)
    theirs = value_and_gradient(lambda x: trl_step(x, None, ref, advantages, mask, loss_type, 0.04, 0.2)[0], logps)
    ours = value_and_gradient(
        lambda x: loss_of(x, x.detach(), ref, advantages, mask, loss_type, 0.04, totals_of(mask)), logps
    )
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_of_trl_add_up_to_ours(loss_type):
    logps, *rest = batch(seed=9)
    theirs = value_and_gradient(lambda x: trl_step(x, *rest, loss_type, 0.04, 0.2, micro_batches=3)[0], logps)
    ours = value_and_gradient(lambda x: loss_of(x, *rest, loss_type, 0.04, totals_of(rest[-1])), logps)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_metrics_are_those_of_trl():
    logps, old, ref, advantages, mask = batch(seed=10)
    _, metrics = trl_step(logps, old, ref, advantages, mask, "dapo", 0.04, 0.28)
    ours = clip_ratios(logps, old, advantages, mask, 0.2, 0.28) | {"kl": (kl_k3(logps, ref) * mask).sum()}
    assert ours["clip_ratio/low_mean"] > 0
    assert ours["clip_ratio/high_mean"] > 0
    for name, count in ours.items():
        assert (count / mask.sum()).item() == pytest.approx(metrics[name][0], rel=1e-5)
