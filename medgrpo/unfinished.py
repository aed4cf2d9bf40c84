"""A rollout batch between two of its optimizer steps, as a checkpoint keeps it: what was drawn, without its prompts.

Prompts and images come again from the loader, whose position is in the checkpoint, too. Everything here is tensors,
strings and numbers, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from medgrpo.types import Completions, PromptBatch, Rollouts, SettingsError

AGAIN = ("prompts", "prefix")
"""Fields of `Rollouts` that are made anew."""


def pack(rollouts: Rollouts, values: dict[str, Tensor], tokens: int, options: dict[str, Any]) -> dict[str, Any]:
    """A copy of a rollout batch on the host.

    Args:
        rollouts: after a whole optimizer step, so that old log-probabilities are there.
        values: scalars that are logged with each optimizer step on it.
        tokens: number of tokens that the rollout batch has.
        options: what it was made with.
    """
    names = [field.name for field in fields(Rollouts) if field.name not in (*AGAIN, "completions")]
    return {
        "ids": [record.id for record in rollouts.prompts.records],
        "completions": {name: _copy(tensor) for name, tensor in vars(rollouts.completions).items()},
        "rollouts": {name: _copy(getattr(rollouts, name)) for name in names},
        "values": {name: _copy(value) for name, value in values.items()},
        "tokens": tokens,
        "options": options,
    }


def unpack(state: dict[str, Any], prompts: PromptBatch, options: dict[str, Any]) -> Rollouts:
    """The rollout batch again.

    Args:
        state: from ``pack``.
        prompts: those of the rollout batch, prepared, on the device where all is to be.
        options: as for ``pack``.

    Raises:
        SettingsError: they are other prompts or options.
    """
    before = state["options"]
    changed = [f"{name} was {before[name]}, is {now}" for name, now in options.items() if before[name] != now]
    if changed:
        raise SettingsError(
            f"the checkpoint was saved inside a rollout batch, in which model.{', model.'.join(changed)}: go on with "
            "the options of the run that saved it, or from a checkpoint after a multiple of model.num_iterations steps"
        )
    ids = [record.id for record in prompts.records]
    if ids != state["ids"]:
        raise SettingsError(
            f"the checkpoint was saved inside a rollout batch on the questions {', '.join(state['ids'])}, and the "
            f"training data now has {', '.join(ids)} in their place: go on with the data of the run that saved it"
        )
    device = prompts.input_ids.device
    drawn = Completions(**{name: tensor.to(device) for name, tensor in state["completions"].items()})
    rest = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in state["rollouts"].items()}
    return Rollouts(prompts=prompts, completions=drawn, **rest)


def gathered(state: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    """Each rank's state, where they differ: inside of a rollout batch. All ranks must call it."""
    if world_size == 1 or not has_rollouts(state):
        return [state]
    states: list[dict[str, Any]] = [{}] * world_size
    torch.distributed.all_gather_object(states, state)
    return states


def of_rank(states: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """What ``gathered`` was given on this rank; counts alone when the number of ranks is another one now."""
    if len(states) == world_size:
        return states[rank]
    if has_rollouts(states[0]):
        warnings.warn(
            f"the checkpoint was saved inside a rollout batch of {len(states)} ranks, and now there are {world_size}: "
            "its completions are drawn anew",
            stacklevel=2,
        )
    return {name: value for name, value in states[0].items() if name != "unfinished"}


def has_rollouts(state: dict[str, Any]) -> bool:
    """Whether a rank's state has a rollout batch in it."""
    return state.get("unfinished") is not None


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    return list(value) if isinstance(value, list) else value
