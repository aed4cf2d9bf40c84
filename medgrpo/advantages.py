"""Group-relative advantages: how much better a completion is than its siblings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor,
    num_generations: int,
    scale_rewards: Literal["group", "batch", "none"] = "group",
    batch_rewards: Tensor | None = None,
) -> Tensor:
    """Centres the rewards within each group and scales them, as TRL 1.16 does.

    ``A = (r - mean(group)) / (std + 1e-4)`` with the unbiased standard deviation (DeepSeekMath, arXiv 2402.03300,
    section 4.1.2), of the group or of the whole batch (arXiv 2508.08221); ``none`` only centres (Dr. GRPO, arXiv
    2503.20783, section 3.2).

    Args:
        rewards: [N] of this rank; rows of one group are neighbours.
        num_generations: G, at least 2.
        scale_rewards: Whose standard deviation divides.
        batch_rewards: Rewards of all ranks, any shape, for ``batch``; None stands for ``rewards``.

    Returns:
        [N] float32; exactly 0 in a group of equal rewards.

    Raises:
        ValueError: ``num_generations`` is below 2 or does not divide N, or ``scale_rewards`` is unknown.
    """
    rewards = rewards.to(torch.float32)
    groups = _groups(rewards, num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if scale_rewards == "group":
        centred = centred / (groups.std(dim=1, keepdim=True) + 1e-4)
    elif scale_rewards == "batch":
        batch = rewards if batch_rewards is None else batch_rewards.to(torch.float32)
        centred = centred / (batch.std() + 1e-4)
    elif scale_rewards != "none":
        raise ValueError(f"scale_rewards: expected group, batch or none; got {scale_rewards!r}")
    # The rounded mean of equal rewards may miss them by a bit, which the division would blow up.
    return centred.masked_fill(zero_variance(rewards, num_generations)[:, None], 0.0).flatten()


def zero_variance(rewards: Tensor, num_generations: int) -> Tensor:
    """Tells which groups have equal rewards and so carry no policy gradient.

    Args:
        rewards: [N]; rows of one group are neighbours.
        num_generations: G, at least 2.

    Returns:
        [P] bool, True where all G rewards are equal.

    Raises:
        ValueError: ``num_generations`` is below 2 or does not divide N.
    """
    groups = _groups(rewards, num_generations)
    return groups.amax(dim=1) == groups.amin(dim=1)


def _groups(rewards: Tensor, num_generations: int) -> Tensor:
    """The rewards as [P, G]."""
    if num_generations < 2:
        raise ValueError(f"num_generations: expected at least 2 completions to compare, got {num_generations}")
    if rewards.numel() % num_generations:
        raise ValueError(f"num_generations: {num_generations} does not divide {rewards.numel()} rewards into groups")
    return rewards.view(-1, num_generations)
