"""Cut the groups of a micro-batch into passes that fit a token budget; the gradient stays that of one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def cut(groups: Sequence[int], prompt_lengths: Tensor, lengths: Tensor, max_tokens: int | None) -> list[list[int]]:
    """Split groups into passes of at most ``max_tokens`` tokens, padding included; the longest completions go first.

    Args:
        groups: indices of prompts.
        prompt_lengths: [P] tokens.
        lengths: [P, G] completion lengths in tokens.
        max_tokens: prompt and completion tokens of one pass; None puts all groups in one. A group that is larger by
            itself gets a pass of its own: groups are never cut.
    """
    if max_tokens is None or not groups:
        return [list(groups)] if groups else []
    num_generations = lengths.shape[1]
    longest, prompts = lengths.amax(1).tolist(), prompt_lengths.tolist()
    passes: list[list[int]] = []
    for group in sorted(groups, key=lambda p: (-longest[p], -prompts[p])):
        joined = [*passes[-1], group] if passes else [group]
        rows = max(prompts[p] for p in joined) + num_generations * max(longest[p] for p in joined)
        if passes and len(joined) * rows <= max_tokens:
            passes[-1] = joined
        else:
            passes.append([group])
    return [sorted(groups) for groups in passes]


def sum_of_losses(losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]) -> Tensor:
    """The sum of some losses, each freed before the next is computed.

    Each gradient is taken at once and kept for the backward pass of the sum, so that memory is that of the largest
    loss, plus one set of gradients, and Lightning and its strategies see one ordinary loss.

    Args:
        losses: each computes a scalar.
        parameters: all leaves that the losses depend on.
    """
    return _SumOfLosses.apply(losses, *parameters)


def _add_gradient(loss: Callable[[], Tensor], parameters: Sequence[Tensor], sums: list[Tensor]) -> Tensor:
    with torch.enable_grad():
        value = loss()
    for sum_, gradient in zip(sums, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
        if gradient is not None:
            sum_ += gradient
    return value.detach()


class _SumOfLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, losses: Sequence[Callable[[], Tensor]], *parameters: Tensor) -> Tensor:
        ctx.gradients = [torch.zeros_like(p) for p in parameters]
        total = 0.0
        for loss in losses:
            total = total + _add_gradient(loss, parameters, ctx.gradients)
        return total

    @staticmethod
    def backward(ctx, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient.mul_(factor) for gradient in ctx.gradients)
