"""Cut what is trained on into passes that fit a token budget; the gradient stays that of one pass.

Prompts are cut into parts, each encoded at once; the completions of a part are cut again, each piece scored at once on
the same encoding. Whatever the cut, a prompt is encoded once per pass over the rollout batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def cut_prompts(groups: Sequence[int], prompt_lengths: Tensor, max_tokens: int | None) -> list[list[int]]:
    """Split groups into parts whose prompts have at most ``max_tokens`` tokens, padding included.

    Args:
        groups: indices of prompts.
        prompt_lengths: [P] tokens.
        max_tokens: None puts all in one part; a prompt that is longer by itself gets a part of its own.
    """
    lengths = prompt_lengths.tolist()
    return _pack(groups, lengths, max_tokens)


def cut_completions(
    groups: Sequence[int], lengths: Tensor, max_tokens: int | None
) -> list[tuple[list[int], list[int]]]:
    """Split the completions of groups into pieces of at most ``max_tokens`` tokens, padding included.

    Args:
        groups: indices of prompts.
        lengths: [P, G] tokens.
        max_tokens: None puts all in one piece; a completion that is longer by itself gets a piece of its own.

    Returns:
        (groups, rows) of each piece, ``rows`` indices into N = P * G: whole groups, or some rows of one group.
    """
    num_generations = lengths.shape[1]
    longest = lengths.amax(1).tolist()
    pieces = []
    for part in _pack(groups, [length * num_generations for length in longest], max_tokens):
        rows = [p * num_generations + g for p in part for g in range(num_generations)]
        size = len(rows)
        if len(part) == 1 and max_tokens is not None:
            size = min(size, max(1, max_tokens // longest[part[0]]))
        pieces += [(part, rows[start : start + size]) for start in range(0, len(rows), size)]
    return pieces


def _pack(groups: Sequence[int], tokens: Sequence[int], max_tokens: int | None) -> list[list[int]]:
    """Groups of similar size together, the largest first: each bin is padded to its first."""
    bins: list[list[int]] = []
    for group in sorted(groups, key=lambda p: -tokens[p]):
        if bins and (max_tokens is None or (len(bins[-1]) + 1) * tokens[bins[-1][0]] <= max_tokens):
            bins[-1].append(group)
        else:
            bins.append([group])
    return [sorted(part) for part in bins]


def half(max_tokens: int | None, prompt_lengths: Tensor, lengths: Tensor) -> int | None:
    """Half the tokens of the largest pass; None when each is one prompt or one completion.

    Args:
        max_tokens: what passes were cut to.
        prompt_lengths: [n] tokens of the prompts that were trained on.
        lengths: [n, G] tokens of their completions.
    """
    largest = max(prompt_lengths.numel() * int(prompt_lengths.max()), lengths.numel() * int(lengths.max()))
    tried = min(max_tokens or largest, largest)
    # Two rows fit together when twice the longer one does.
    return None if tried < 2 * min(int(prompt_lengths.min()), int(lengths.amax(1).min())) else tried // 2


def sum_of_losses(
    losses: Sequence[Callable[[], Tensor]], inputs: Sequence[Tensor], leaves: Sequence[Tensor] | None = None
) -> Tensor:
    """The sum of some losses, each freed before the next is computed.

    Each gradient is taken at once and kept for the backward pass of the sum, so that memory is that of the largest
    loss, plus one set of gradients, and Lightning and its strategies see one ordinary loss. All inputs have a gradient,
    0 if no loss depends on them: an optimizer then does the same on one device as where ranks exchange gradients.

    Args:
        losses: each computes a scalar.
        inputs: all tensors that the losses depend on.
        leaves: detached copies of ``inputs`` that the losses use in their place, when those have a graph of their own.
    """
    return _SumOfLosses.apply(losses, inputs if leaves is None else leaves, *inputs)


class _SumOfLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, losses: Sequence[Callable[[], Tensor]], leaves: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        gradients = [None] * len(leaves)
        total = torch.zeros((), device=leaves[0].device)
        for loss in losses:
            total = total + _add_gradient(loss, leaves, gradients)
        ctx.gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
        return total

    @staticmethod
    def backward(ctx, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # nobody else holds them: they become ``.grad`` uncopied
        return None, None, *(gradient.mul_(factor) for gradient in gradients)


def _add_gradient(loss: Callable[[], Tensor], leaves: Sequence[Tensor], sums: list[Tensor | None]) -> Tensor:
    with torch.enable_grad():
        value = loss()
    with torch.autocast(value.device.type, enabled=False):  # as in any backward pass
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            sums[i] = gradient.contiguous() if sums[i] is None else sums[i].add_(gradient)
    return value.detach()
