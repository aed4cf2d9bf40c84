"""Linear layers on a CPU through oneDNN.

torch sends float32 products to MKL, which leaves AVX-512 unused on processors of other makers; oneDNN, which is part of
every x86 build of torch, does the same products there at up to twice the speed. Values differ in rounding only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

SMALLEST = 2**20
"""Multiply-adds from which the faster product is worth its longer call."""


def is_available() -> bool:
    """Whether this build of torch has oneDNN's linear layer."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(model: nn.Module) -> None:
    """Turn every plain ``nn.Linear`` of the model into a ``Linear``; its parameters stay the same objects."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """``nn.Linear`` whose large float32 products on a CPU run in oneDNN; all others are torch's."""

    packed: Tensor | None = None
    """The weight in the order in which oneDNN reads it, while ``packed_weights`` is entered."""

    def fits(self, x: Tensor) -> bool:
        """Whether oneDNN can and should compute this."""
        return (
            x.numel() * self.out_features >= SMALLEST
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]"""
        if not self.fits(x):
            return linear(x, self.weight, self.bias)
        if self.packed is not None and not torch.is_grad_enabled():
            return _onednn(x, self.packed, self.bias)
        return product(x, self.weight, self.bias)


@contextmanager
def packed_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Copy the weights into the order in which oneDNN reads them, for many products of about ``rows`` rows each.

    A product of few rows is as fast as its weight is read. The copies cost memory and do not follow the weights: leave
    the context before those change.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear) and rows * m.weight.numel() >= SMALLEST]
    try:
        for layer in layers:
            if layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu":
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As ``torch.nn.functional.linear``, for float32 on a CPU."""
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """oneDNN's operator knows no gradient: these are the usual two products, done by it as well."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _onednn(grad, weight.t()) if of_input else None,
            _onednn(rows.t(), x.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
