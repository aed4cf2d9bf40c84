"""Policy losses on completion tokens: pure functions, float32.

    loss = sum over all rows of a rollout batch of  weights * (token_loss + beta * kl)

``token_weights`` holds the whole reduction, and its denominators are those of the whole rollout batch over all ranks.
So the loss is a plain sum, and the gradient is the same however the rows are cut into micro-batches or spread over
ranks. Whoever averages gradients (accumulation, data parallelism) multiplies by the number averaged over.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]

MAX_LOG_RATIO = 20.0
"""Larger log-ratios count as this one. exp(20) is 5e8, far outside any clip range; exp(89) is infinite in float32, and
infinity times the zero gradient of the branch that is not taken is NaN."""


def token_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> Tensor:
    """Clipped surrogate: ``-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A)`` with ``r = exp(logps - old_logps)``.

    PPO (arXiv 1707.06347, eq. 7) per token as in GRPO (arXiv 2402.03300, eq. 3), clipped asymmetrically as in DAPO
    (arXiv 2503.14476, eq. 10).

    Args:
        logps: [n, C] log-probabilities of the policy, with gradient.
        old_logps: [n, C] log-probabilities at sampling; ``logps.detach()`` on the first pass.
        advantages: [n].
        epsilon: Lower clip range.
        epsilon_high: Upper clip range; equal to ``epsilon`` for PPO's clip.

    Returns:
        [n, C].
    """
    ratio = _ratio(logps, old_logps)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])


def kl_k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimates KL(policy || reference) from the policy's samples: ``exp(d) - d - 1`` with ``d = ref_logps - logps``.

    The k3 estimator, non-negative (GRPO, arXiv 2402.03300, eq. 4). TRL multiplies it by the policy ratio when
    ``use_bias_correction_kl`` is set; this is the plain one.

    Args:
        logps: [n, C] log-probabilities of the policy, with gradient.
        ref_logps: [n, C] log-probabilities of the reference.

    Returns:
        [n, C].
    """
    difference = (ref_logps - logps).clamp(max=MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


def token_weights(
    mask: Tensor, loss_type: LossType, total_sequences: int, total_tokens: int, max_completion_length: int
) -> Tensor:
    """The share of each token in the loss.

    | ``loss_type`` | weight of a token of row i | paper |
    |---|---|---|
    | ``grpo`` | 1 / (total_sequences * tokens of row i) | arXiv 2402.03300, eq. 3 |
    | ``dapo``, ``bnpo`` | 1 / total_tokens | arXiv 2503.14476, eq. 8 |
    | ``dr_grpo`` | 1 / (total_sequences * max_completion_length) | arXiv 2503.20783, section 3.2 |

    TRL divides ``bnpo`` by the tokens of each local micro-batch, so that a token's weight depends on the cut; with the
    whole batch as denominator it is ``dapo``. Rows masked out whole (``mask_truncated_completions``) count in
    ``total_sequences`` and not in ``total_tokens``, as in TRL 1.16.

    Args:
        mask: [n, C] bool, True on completion tokens that count; the first end token included.
        loss_type: The reduction.
        total_sequences: Rows of the rollout batch over all ranks, those masked out included.
        total_tokens: True entries of the masks of the rollout batch over all ranks.
        max_completion_length: The option, in tokens; read by ``dr_grpo``.

    Returns:
        [n, C] float32, 0 where the mask is False.

    Raises:
        ValueError: ``loss_type`` is unknown.
    """
    weights = mask.to(torch.float32)
    if loss_type == "grpo":
        return weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0) / total_sequences
    if loss_type in ("bnpo", "dapo"):
        return weights / max(total_tokens, 1)
    if loss_type == "dr_grpo":
        return weights / (total_sequences * max_completion_length)
    raise ValueError(f"loss_type: expected grpo, bnpo, dr_grpo or dapo; got {loss_type!r}")


def clip_ratios(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, epsilon: float, epsilon_high: float
) -> dict[str, Tensor]:
    """Counts the tokens whose gradient the clip removes.

    Counts add up over micro-batches and ranks; divided by the number of True entries of the masks, they are TRL's
    metrics of these names.

    Args:
        logps: [n, C] log-probabilities of the policy.
        old_logps: [n, C] log-probabilities at sampling.
        advantages: [n].
        mask: [n, C] bool, True on completion tokens that count.
        epsilon: Lower clip range.
        epsilon_high: Upper clip range.

    Returns:
        Scalar float32 counts: ``clip_ratio/low_mean`` (ratio below the range, A < 0), ``clip_ratio/high_mean`` (above,
        A > 0) and ``clip_ratio/region_mean`` (either).
    """
    ratio = _ratio(logps.detach(), old_logps)
    low = ((ratio < 1 - epsilon) & (advantages[:, None] < 0) & mask).sum(dtype=torch.float32)
    high = ((ratio > 1 + epsilon_high) & (advantages[:, None] > 0) & mask).sum(dtype=torch.float32)
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": low + high}


def _ratio(logps: Tensor, old_logps: Tensor) -> Tensor:
    """[n, C] ratio of policy to sampling probabilities."""
    return torch.exp((logps - old_logps).clamp(max=MAX_LOG_RATIO))
