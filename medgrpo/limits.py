"""What the device can do at most, measured once, and which share of it a step has used."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medgrpo.flops import ModelCost, decode_bytes, groups_of, matrix_peak, read_bandwidth, step_flops
from medgrpo.linear import product
from medgrpo.policy import Policy
from medgrpo.types import Rollouts


@dataclass(frozen=True)
class Limits:
    """Limits of this rank's device, and what of them the policy needs."""

    operations_per_second: float
    """Of large matrix products in the dtype that the policy computes in."""
    bytes_per_second: float
    """Of reading memory."""
    cost: ModelCost
    decode_bytes: int
    """Of weights, that each decoding step reads."""

    @classmethod
    def measure(cls, policy: Policy, bfloat16: bool) -> Limits:
        """Take under a second on the device that the policy is on.

        Args:
            policy: loaded, with what trains set.
            bfloat16: whether products run in bfloat16 under autocast, whatever the weights' dtype.
        """
        network = policy.network
        dtype = torch.bfloat16 if bfloat16 else network.dtype
        by_onednn = policy.uses_onednn and network.device.type == "cpu" and dtype == torch.float32
        return cls(
            matrix_peak(network.device, dtype, *([product] if by_onednn else [])),
            read_bandwidth(network.device),
            ModelCost.of(network),
            decode_bytes(network),
        )

    def shares(
        self, rollouts: Rollouts, timing: dict[str, float], decode_seconds: float, iteration: int, num_iterations: int
    ) -> dict[str, float]:
        """``perf/mfu`` of an optimizer step and of its training alone, ``perf/decode_bandwidth`` of the decoding loop.

        Args:
            timing: ``step_time`` and ``timing_s/train`` in seconds.
            decode_seconds: of the rollout's decoding loop.
            iteration: which of the ``num_iterations`` steps on the rollout batch; the first has the rollout as well.
        """
        groups = groups_of(rollouts.prompts, rollouts.completions.mask, rollouts.active)
        flops = step_flops(self.cost, groups, reference=rollouts.ref_logps is not None, num_iterations=num_iterations)
        values = {
            "perf/mfu": flops.of_step(iteration) / (timing["step_time"] * self.operations_per_second),
            "perf/mfu_train": flops.train[iteration] / (timing["timing_s/train"] * self.operations_per_second),
        }
        steps = rollouts.completions.mask.shape[1] - 1
        if iteration == 0 and steps > 0:
            values["perf/decode_bandwidth"] = steps * self.decode_bytes / self.bytes_per_second / decode_seconds
        return values
