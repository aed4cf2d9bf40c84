"""Weights spread over ranks, under Lightning: FSDP2 and FSDP1, what they refuse, and rollouts on whole weights.

Both shard the blocks of the trained networks one by one, and the rest as the root. A frozen vision tower stays whole on
every rank, so that ranks may have different numbers of images. Drawing tokens one by one from shards would gather every
layer for every token, and ranks would have to wait for the longest completion: rollouts and evaluation run on whole
weights instead (`whole`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.strategies.fsdp import _get_full_state_dict_context
from lightning.pytorch.plugins.precision.fsdp import FSDPPrecision
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from medgrpo.policy import Policy
from medgrpo.types import SettingsError

PRECISIONS = ("32-true", "bf16-mixed")


class _PlainCheckpoints:
    """Checkpoints as of any other strategy: one file, in which weights and optimizer states are whole."""

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer is restored as any other, by ``load_optimizer_state_dict``."""
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map the file: no rank holds all of it in memory."""
        torch.cuda.empty_cache()
        path = self.broadcast(checkpoint_path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


class FSDP2Strategy(_PlainCheckpoints, ModelParallelStrategy):
    """FSDP2 over all devices of all nodes.

    What trains, and its optimizer states, is gathered tensor by tensor and saved by rank 0; frozen weights are not
    gathered at all.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Every device holds another part of the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint or its folder needs, whole, on rank 0; the other ranks take part and keep nothing."""
        policy: Policy = self.lightning_module.policy
        needed = [(n, p) for n, p in policy.model.named_parameters() if p.requires_grad or not policy.use_peft]
        return self._on_rank_zero({f"policy.model.{name}": parameter for name, parameter in needed})

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Likewise, in the layout of an optimizer on one device."""
        return self._on_rank_zero(optimizer.state_dict())

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Each rank takes its shards."""
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                parameter = self.model.get_parameter(name)
                parameter.copy_(_like(value, parameter))

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Each rank takes its shards."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {
                    name: _like(value, parameters[index]) if value.shape == parameters[index].shape else value
                    for name, value in values.items()
                }
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": state})

    def _on_rank_zero(self, values: dict[str, Any]) -> dict[str, Any]:
        def gather(value: Tensor) -> Tensor | None:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            return whole.detach().cpu() if self.is_global_zero else None

        gathered = tree_map_only(Tensor, gather, values)
        return gathered if self.is_global_zero else {}


class FSDP1Strategy(_PlainCheckpoints, FSDPStrategy):
    """FSDP1 over all devices; CUDA only.

    Gradients and optimizer states are spread all the time, weights between steps: they stay whole from the first layer
    of a rollout to the end of its training (``SHARD_GRAD_OP``), for FSDP1 knows no window inside of a step.
    """

    def __init__(self) -> None:
        # Weights and gradients keep their dtype, as under the other strategies; autocast does the rest.
        super().__init__(sharding_strategy="SHARD_GRAD_OP", state_dict_type="full", mixed_precision=MixedPrecision())

    def setup_environment(self) -> None:
        """Batches go to the module as they are: it casts what it has to."""
        super().setup_environment()
        self.precision_plugin = _AsItIs(self.precision_plugin.precision)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        policy: Policy = model.policy
        units = {block for network in _networks(policy) for block in _blocks(network)}
        if policy.use_peft:  # their dtype may be another than that of the base
            units |= {m for n, m in policy.named_modules() if "lora_" in n and isinstance(m, nn.Linear)}
        self.kwargs["auto_wrap_policy"] = lambda module, recurse, nonwrapped_numel: recurse or module in units
        towers = [network.model.visual for network in _networks(policy) if not _sees(network)]
        for tower in towers:
            tower.to(self.root_device)  # PyTorch moves what it does not ignore
        self.kwargs["ignored_modules"] = towers
        return super()._setup_model(model)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Whole, on rank 0; tied weights once."""
        names = {name for name, _ in clean_names(self.lightning_module)}
        return {name: value for name, value in super().lightning_module_state_dict().items() if name in names}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Whole, on rank 0, in the layout of an optimizer on one device."""
        with _get_full_state_dict_context(self.model, world_size=self.world_size):
            named = FullyShardedDataParallel.optim_state_dict(self.model, getattr(optimizer, "_optimizer", optimizer))
        return _renamed(named, {name: i for i, name in enumerate(self._trained())}) if self.is_global_zero else {}

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Each rank takes its shards."""
        with _get_full_state_dict_context(self.model, world_size=self.world_size, rank0_only=False):
            self.model.load_state_dict(checkpoint["state_dict"], strict=False)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Each rank takes its shards."""
        with _get_full_state_dict_context(self.model, world_size=self.world_size, rank0_only=False):
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                named = _renamed(saved, dict(enumerate(self._trained())))
                optimizer.load_state_dict(
                    FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, named)
                )

    def _trained(self) -> list[str]:
        """Names of what trains, in the order in which the optimizer has it."""
        return [name for name, p in clean_names(self.lightning_module) if p.requires_grad]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    """An optimizer's state with other names for its parameters."""
    groups = [group | {"params": [names[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def clean_names(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its parameters, by the names that they have where nothing is sharded."""
    return ((name.replace("_fsdp_wrapped_module.", ""), p) for name, p in module.named_parameters())


class _AsItIs(FSDPPrecision):
    def convert_input(self, data: Any) -> Any:
        return data


def is_sharded(strategy: Strategy) -> bool:
    """Whether weights are spread over ranks."""
    return isinstance(strategy, FSDP2Strategy | FSDP1Strategy)


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """Spread a loaded policy over the ranks of a mesh (FSDP2) and say what a rollout takes."""
    whole = set()
    for network in _networks(policy):
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        if _sees(network):
            fully_shard(network.model.visual, mesh=mesh)
        else:
            whole |= set(network.model.visual.parameters())
    fully_shard(policy, mesh=mesh, ignored_params=whole)
    size = sum(p.numel() * p.element_size() for p in policy.parameters() if isinstance(p, DTensor)) / 2**30
    share = 1 - 1 / mesh.size()
    rank_zero_info(
        f"FSDP2: each of {mesh.size()} ranks holds {size / mesh.size():.3g} of {size:.3g} GiB of weights; a rollout "
        f"runs on whole weights and takes up to {size * share:.3g} GiB more per rank while it lasts"
    )


@contextmanager
def whole(policy: Policy) -> Iterator[None]:
    """Inside, FSDP2's weights are whole on every rank and nothing is exchanged; leave it before training goes on."""
    units = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    if not units:
        yield
        return
    policy(lambda network: None)  # so that the policy is the root
    for unit in units:
        unit.unshard()
    policy.set_reshard_after_forward(False)
    try:
        yield
    finally:
        policy.set_reshard_after_forward(True)
        policy.set_reshard_after_forward(False, recurse=False)  # FSDP2's default for the root
        for unit in units:
            unit.reshard()


def check_strategy(trainer: Trainer, policy: Policy, max_tokens_per_pass: int | None) -> None:
    """Refuse what would be wrong or hang, before weights are loaded.

    Raises:
        SettingsError: names each problem, its reason and what to use instead.
    """
    strategy, problems = trainer.strategy, []
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy) and not is_sharded(strategy):
        problems.append(
            f"trainer.strategy={type(strategy).__name__}: what is sharded, and how tokens are drawn, is not set there; "
            "use --config configs/strategy/fsdp2.yaml or configs/strategy/fsdp1.yaml"
        )
    elif not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not is_sharded(strategy):
        problems.append(
            f"trainer.strategy={type(strategy).__name__}: expected a single device, DDP, FSDP2 or FSDP1; use one of "
            "configs/strategy/"
        )
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        problems.append(
            f"trainer.strategy=ddp_{strategy._start_method}: what the processes have trained does not come back to "
            "save it; use --config configs/strategy/ddp.yaml"
        )
    if trainer.precision not in PRECISIONS:
        problems.append(
            f"trainer.precision={trainer.precision}: expected one of {', '.join(PRECISIONS)}. In 16 bits rewards and "
            "log-probabilities lose what the ratio needs; bf16-mixed keeps those in 32 (base weights in bfloat16: "
            "model.policy.dtype)"
        )
    if is_sharded(strategy):
        name = type(strategy).__name__
        if policy.quantize:
            problems.append(
                f"model.policy.quantize={policy.quantize} under {name}: sharding cuts 4-bit weights from the state "
                "that says what they mean; use --config configs/strategy/ddp.yaml, or quantize=null with FSDP"
            )
        if max_tokens_per_pass is not None:
            problems.append(
                f"model.max_tokens_per_pass={max_tokens_per_pass} under {name}: every rank must make the same passes; "
                "set it to null and raise trainer.accumulate_grad_batches instead"
            )
        if policy.decode_implementation == "static":
            problems.append(
                f"model.policy.decode_implementation=static under {name}: weights move in memory; set it to auto"
            )
        if policy.linear_implementation == "onednn":
            problems.append(f"model.policy.linear_implementation=onednn under {name}: set it to auto")
    if isinstance(strategy, FSDP1Strategy) and strategy.root_device.type != "cuda":
        problems.append("trainer.strategy=FSDP1Strategy needs GPUs; use --config configs/strategy/fsdp2.yaml")
    if isinstance(strategy, FSDP1Strategy) and trainer.state.fn not in ("fit", "validate"):
        problems.append(
            f"trainer.strategy=FSDP1Strategy for {trainer.state.fn}: ranks have different numbers of batches there, "
            "which FSDP1 would wait for; use --config configs/strategy/fsdp2.yaml or ddp.yaml"
        )
    if problems:
        raise SettingsError("\n".join(problems))


def clip_by_norm(trainer: Trainer, policy: Policy, max_norm: float | None) -> float:
    """Scale the gradients of all ranks to a norm of at most ``max_norm``; None or 0 leaves them.

    Returns:
        Their norm before, over all shards; not finite when a gradient is not, and then they are of no use.
    """
    if isinstance(trainer.strategy, FSDP1Strategy):
        return float(trainer.strategy.model.clip_grad_norm_(max_norm or float("inf")))
    parameters = [p for p in policy.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if max_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def _networks(policy: Policy) -> list[nn.Module]:
    return [policy.network] if policy.reference is None else [policy.network, policy.reference]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Of the language model, and of the vision tower if it trains."""
    return [*network.model.language_model.layers, *(network.model.visual.blocks if _sees(network) else ())]


def _sees(network: nn.Module) -> bool:
    """Whether the vision tower trains."""
    return any(p.requires_grad for p in network.model.visual.parameters())


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
