"""Whether everything that should train has a gradient, and nothing else has moved."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from medgrpo.types import Rollouts, SettingsError

BESIDE_ZERO = ("lora_A", "lora_embedding_B")
"""Factors that have no gradient as long as their other factor is 0, as PEFT begins with."""


class ParameterCheck(Callback):
    """Stops a run in which a parameter that trains gets no gradient, or one that does not train changes.

    The first optimizer step that has a gradient at all must reach every parameter; exempt are, until they can have
    one, one factor of each LoRA (the other is 0 at the start) and the vision tower (no group with images and unequal
    rewards).
    """

    def __init__(self) -> None:
        self.waiting: set[str] | None = None
        """Parameters that have had no gradient yet; None before training."""
        self.frozen: dict[str, int] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what trains, and what the rest is."""
        self.waiting = {name for name, p in pl_module.policy.named_parameters() if p.requires_grad}
        self.frozen = frozen_sums(pl_module.policy)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at the gradients until each parameter has had one.

        Raises:
            SettingsError: names those that have none.
        """
        if not self.waiting:
            return
        parameters = {n: p for n, p in pl_module.policy.named_parameters() if n in self.waiting}
        counts = torch.stack([*(_nonzero(p) for p in parameters.values()), _images(pl_module.rollouts)])
        # A shard or a rank alone may have none, and all ranks must stop together.
        *counts, images = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        reached = {name for name, count in zip(parameters, counts, strict=True) if count}
        if not reached:  # a step without anything to learn
            return
        self.waiting -= reached
        required = (n for n in self.waiting if not any(factor in n for factor in BESIDE_ZERO))
        missing = sorted(n for n in required if images or "visual" not in n)
        if missing:
            raise SettingsError(
                f"{len(missing)} of {len(missing) + len(reached)} parameters that should train got no gradient in step "
                f"{trainer.global_step + 1}: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Leave "
                "them out of model.policy.lora_target_modules, or set model.policy.freeze_vision=true if they are the "
                "vision tower's"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what should not have moved.

        Raises:
            SettingsError: names what has.
        """
        now = frozen_sums(pl_module.policy)
        moved = sorted(name for name, value in self.frozen.items() if now.get(name) != value)
        if moved:
            raise SettingsError(
                f"{len(moved)} of {len(self.frozen)} frozen parameters changed during training, among them {moved[0]}: "
                "this checkpoint is more than what it says trains"
            )
        rank_zero_info(f"frozen parameters: all {len(self.frozen)} are bit for bit what they were")


def frozen_sums(policy: torch.nn.Module) -> dict[str, int]:
    """A sum over the bits of each parameter that does not train; of this rank's part where weights are sharded."""
    return {name: _bits(p) for name, p in policy.named_parameters() if not p.requires_grad}


def _images(rollouts: Rollouts) -> Tensor:
    """How many images stand in groups whose rewards differ: the KL term alone may have no gradient yet."""
    pulls = (rollouts.advantages[:, None] * rollouts.weights != 0).view(len(rollouts.prompts), -1).any(1).tolist()
    groups = zip(rollouts.prompts.images_per_prompt, rollouts.active, pulls, strict=True)
    return rollouts.advantages.new_tensor(sum(n for n, active, pull in groups if active and pull), dtype=torch.int64)


def _nonzero(parameter: Tensor) -> Tensor:
    gradient = torch.zeros(0, device=parameter.device) if parameter.grad is None else _local(parameter.grad)
    return gradient.count_nonzero()  # what is not finite is somebody else's to say


def _bits(parameter: Tensor) -> int:
    local = _local(parameter.detach()).contiguous()
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[local.element_size()]
    return int(local.view(kind).sum(dtype=torch.int64)) if local.numel() else 0


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
