"""LoRA adapters from a folder, made here or elsewhere: read, matched with the model by name and shape, put into it.

Module names have changed. Adapters that were saved with transformers before 4.52 call the layers ``model.layers`` and
``visual``, later ones ``model.language_model.layers`` and ``model.visual``. PEFT loads what matches and warns about the
rest; here every tensor matches, or nothing is loaded.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from medgrpo.runs import trained_on
from medgrpo.types import SettingsError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

OLD_NAMES = {r"^visual\b": "model.visual", r"^model(?!\.(language_model|visual)\b)": "model.language_model"}
"""Module names of before transformers 4.52 -> today's; names in today's layout match neither."""

PREFIX = "base_model.model."
"""Before each module name in a file of PEFT's."""

USED = {
    "r": int,
    "lora_alpha": int | float,
    "use_rslora": bool,
    "rank_pattern": dict,
    "alpha_pattern": dict,
    "target_modules": list | str | None,
    "exclude_modules": list | str | None,
    "layers_to_transform": list | int | None,
    "layers_pattern": list | str | None,
}
"""Options of ``LoraConfig`` that say which layers are adapted, and how, with their types in JSON."""

ABOUT_BASE = {"base_model_name_or_path": str | None, "auto_mapping": dict | None}
"""Options that say what was adapted."""

WITHOUT_EFFECT = {
    *("peft_type", "task_type", "revision", "peft_version", "inference_mode", "lora_dropout", "init_lora_weights"),
    *("eva_config", "megatron_core", "qalora_group_size"),
}
"""Options that change nothing once the weights are known. (``init_lora_weights`` does when it changes the base.)"""

ONLY_LORA = (
    "Only LoRA on linear layers can be loaded: to use another adapter, merge it into its base with PEFT and set "
    "model_name_or_path to the result"
)

HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the weights of the base alone."""


@dataclass(frozen=True)
class Adapter:
    """What the files of an adapter say."""

    name: str
    """Folder or Hub id."""
    base: str
    """Base model that it was trained on, as its configuration says; empty when it does not."""
    base_class: str
    """Class of that model; empty when it is not said."""
    options: dict[str, Any]
    """Those of `USED`."""
    tensors: dict[str, Tensor]
    """``MODULE.lora_A`` [r, in] and ``MODULE.lora_B`` [out, r], module names as in the file."""


def read_adapter(name: str) -> Adapter:
    """Read an adapter.

    Args:
        name: folder or Hub id.

    Raises:
        SettingsError: it is not there, not in safetensors, damaged, no plain LoRA, or trained and yet without effect.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(name)
    file = _find(name, WEIGHTS)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise SettingsError(f"adapter {name}: {WEIGHTS} is damaged ({error}); take another checkpoint") from error
    tensors = {key.removeprefix(PREFIX).removesuffix(".weight"): tensor for key, tensor in tensors.items()}
    bad = sorted(key for key, tensor in tensors.items() if not tensor.isfinite().all())
    if bad:
        raise SettingsError(
            f"adapter {name}: {len(bad)} tensors are not finite, e.g. {bad[0]}; take another checkpoint"
        )
    _check_trained(name, tensors)
    base_class = str((config.get("auto_mapping") or {}).get("base_model_class") or "")
    return Adapter(name, config.get("base_model_name_or_path") or "", base_class, _options(name, config), tensors)


def read_config(name: str) -> dict[str, Any]:
    """``adapter_config.json`` of a folder or Hub id.

    Raises:
        SettingsError: it is not there, no JSON object, or an option is of another type than PEFT writes.
    """
    file = _find(name, CONFIG)
    try:
        config = json.loads(Path(file).read_bytes())
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"adapter {name}: expected JSON in {CONFIG}; {error}") from error
    if not isinstance(config, dict):
        raise SettingsError(f"adapter {name}: expected an object in {CONFIG}, got {config!r:.80}")
    kinds = USED | ABOUT_BASE
    if wrong := sorted(key for key in kinds.keys() & config.keys() if not isinstance(config[key], kinds[key])):
        raise SettingsError(
            f"adapter {name}: {CONFIG} is damaged: {wrong[0]} is {config[wrong[0]]!r:.80}; take another checkpoint"
        )
    return config


def base_of(name: str) -> str:
    """The base model that an adapter names: a Hub id, or a folder that is here.

    Raises:
        SettingsError: it names none that can be found. Adapters saved by this tool hold no path: of a base in a local
            folder they know the last name only.
    """
    base = read_config(name).get("base_model_name_or_path") or ""
    if not base or "/" not in base or ((base[0] in "./~" or base.count("/") > 1) and not Path(base).is_dir()):
        said = (
            f"was trained on {base!r}, which is neither a Hub id nor a folder here" if base else "names no base model"
        )
        raise SettingsError(
            f"{name} is an adapter that {said}: set model_name_or_path to the base model and adapter to {name}"
            " (medgrpo export: name the base with --base)"
        )
    return base


def public_name(name: str) -> str:
    """A model's name without a path of this machine: a Hub id as it is, of a folder the last name."""
    if not Path(name).is_dir():
        return name
    folder = Path(os.path.abspath(name))
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):  # the Hub's cache
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.name or "base"


def add_adapter(model: nn.Module, adapter: Adapter, name: str = "default", *, is_trainable: bool = True) -> nn.Module:
    """Put an adapter into the model, every tensor of it.

    Args:
        model: a transformers model of one of ``policy.FAMILIES``, or a ``PeftModel`` that gets a further adapter.
        adapter: from ``read_adapter``.
        name: of the adapter in the ``PeftModel``.
        is_trainable: whether its weights take gradients.

    Returns:
        The ``PeftModel``. The first adapter is the active one.

    Raises:
        SettingsError: a tensor that matches no layer of the model, a layer without one, or other shapes.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    options, tensors = match(adapter, base)
    config = LoraConfig(**options, lora_dropout=0.0, inference_mode=not is_trainable)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, name)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, tensor in tensors.items():
            module, part = key.rsplit(".", 1)
            parameters[f"{PREFIX}{module}.{part}.{name}.weight"].copy_(tensor)
    if is_trainable:
        rank_zero_info(f"adapter {adapter.name}: {len(tensors)} of {len(tensors)} LoRA tensors matched")
    return model


def match(adapter: Adapter, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Compare an adapter with the layers that it should adapt.

    Args:
        adapter: from ``read_adapter``.
        model: without an adapter, or with others.

    Returns:
        Options of ``LoraConfig`` and the tensors, both with today's names.

    Raises:
        SettingsError: they are not exactly those, with the counts and an example.
    """
    this = model.config.name_or_path or "this model"
    family = _family(adapter.base_class) or _family(adapter.base)
    if family and family != _family(type(model).__name__):  # the families share names, and some models shapes
        raise SettingsError(
            f"adapter {adapter.name} was trained on a {adapter.base_class or adapter.base}, and {this} is a "
            f"{type(model).__name__}: check model_name_or_path and adapter"
        )
    found = {_today(key): tensor for key, tensor in adapter.tensors.items()}
    is_old = found.keys() != adapter.tensors.keys()
    linears = _linears(model)
    found = {key: tensor for key, tensor in found.items() if not _is_of_base(key, tensor, linears)}
    try:  # the layers are named as in the file; some tools rewrite one of the two
        plans = [_plan(adapter, linears, old_names) for old_names in (is_old, not is_old)]
    except (TypeError, ValueError, re.error) as error:
        raise SettingsError(f"adapter {adapter.name}: {CONFIG} asks for what cannot be: {error}") from error

    def fit(plan: tuple[Any, dict[str, torch.Size]]) -> tuple[bool, int, int]:
        asked = plan[1].keys()
        return asked == found.keys(), len(asked & found.keys()), len(asked)

    options, shapes = max(plans, key=fit)
    missing, unexpected = sorted(shapes.keys() - found.keys()), sorted(found.keys() - shapes.keys())
    misshapen = sorted(key for key in shapes.keys() & found.keys() if shapes[key] != found[key].shape)
    examples = [f"{key} is {list(found[key].shape)} and should be {list(shapes[key])}" for key in misshapen]
    examples += [*(f"{key} is in the file" for key in unexpected), *(f"{key} is not in the file" for key in missing)]
    if examples or not found:
        trained_on = f" (it was trained on {Path(adapter.base).name})" * bool(adapter.base)
        other = any(not key.endswith((".lora_A", ".lora_B")) or found[key].ndim != 2 for key in unexpected)
        raise SettingsError(
            f"adapter {adapter.name} does not fit {this}: {len(shapes.keys() & found.keys()) - len(misshapen)} of "
            f"{len(shapes)} LoRA tensors matched; {len(missing)} are missing, {len(unexpected)} in the file match "
            f"nothing, {len(misshapen)} have another shape{', e.g. '.join(['', *examples[:1]])}. Check "
            f"model_name_or_path{trained_on} and adapter{f'. {ONLY_LORA}' * other}"
        )
    return options, found


def _plan(
    adapter: Adapter, linears: dict[str, nn.Linear], old_names: bool
) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """What the options ask for when they call layers as before or as today.

    Returns:
        The options for just these layers, and the shapes by tensor, both with today's names.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    options = dict(adapter.options)
    called = {name: _before(name) if old_names else name for name in linears}
    if options["target_modules"] == "all-linear":
        options["target_modules"] = [called[name] for name in linears if name != "lm_head"]
    config = LoraConfig(**options)
    layers = [name for name in linears if check_target_module_exists(config, called[name])]

    def of_layers(pattern: str, default: str) -> dict[str, Any]:
        values = options[pattern]
        return {name: values.get(get_pattern_key(values.keys(), called[name]), options[default]) for name in layers}

    ranks, alphas = of_layers("rank_pattern", "r"), of_layers("alpha_pattern", "lora_alpha")
    if wrong := [value for value in (*ranks.values(), *alphas.values()) if not isinstance(value, int | float)]:
        raise TypeError(f"expected a number as rank or alpha, got {wrong[0]!r:.80}")
    shapes = {}
    for name, r in ranks.items():
        shapes[f"{name}.lora_A"] = torch.Size((r, linears[name].in_features))
        shapes[f"{name}.lora_B"] = torch.Size((linears[name].out_features, r))
    options["rank_pattern"] = {name: r for name, r in ranks.items() if r != options["r"]}
    options["alpha_pattern"] = {name: alpha for name, alpha in alphas.items() if alpha != options["lora_alpha"]}
    options |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return options | {"target_modules": layers}, shapes


def _family(name: str) -> str | None:
    """Which family the name of a class or model tells, if any."""
    letters = re.sub(r"[^a-z0-9]", "", Path(name).name.lower())
    return next((family for family in ("qwen2vl", "qwen25vl", "qwen3vl") if family in letters), None)


def _is_of_base(key: str, tensor: Tensor, linears: dict[str, nn.Linear]) -> bool:
    """Whether it is a weight of the base as it is: PEFT saves that of an output layer which is adapted."""
    layer = linears.get(key.removesuffix(".base_layer"))
    return layer is not None and torch.equal(tensor.float(), layer.weight.detach().float().cpu())


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """By the name that they have without adapters."""
    return {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }


def _today(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name, changed = re.subn(old, new, name)
        if changed:
            break
    return name


def _before(name: str) -> str:
    return re.sub(r"^model\.visual\b", "visual", re.sub(r"^model\.language_model\b", "model", name))


def _options(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Those of `USED`.

    Raises:
        SettingsError: the adapter is more than LoRA on linear layers.
    """
    from peft import LoraConfig

    if config.get("peft_type") != "LORA":
        raise SettingsError(f"adapter {name}: expected peft_type LORA, got {config.get('peft_type')!r}")
    if config.get("init_lora_weights", True) not in HARMLESS_STARTS:
        raise SettingsError(
            f"adapter {name}: init_lora_weights={config['init_lora_weights']!r} changes the base model too; convert it "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    defaults = LoraConfig().to_dict()
    unsupported = [
        key
        for key, value in config.items()
        if key not in {*USED, *ABOUT_BASE, *WITHOUT_EFFECT} and value and value != defaults.get(key)
    ]
    if unsupported:
        raise SettingsError(
            f"adapter {name}: {', '.join(f'{key}={config[key]!r:.60}' for key in unsupported)} is not supported. "
            f"{ONLY_LORA}"
        )
    options = {key: config.get(key, defaults[key]) for key in sorted(USED)}
    if not options["target_modules"]:
        raise SettingsError(f"adapter {name}: {CONFIG} has no target_modules, which say which layers are adapted")
    return options


def _check_trained(name: str, tensors: dict[str, Tensor]) -> None:
    """An adapter whose ``lora_B`` are all zero is the base model: an error when it says that it was trained, a warning
    when nothing says so, since adapters are also saved before the first step."""
    parts = [tensor for key, tensor in tensors.items() if key.endswith("lora_B")]
    if not parts or any(tensor.any() for tensor in parts):
        return
    known = trained_on(name)
    if known is None:
        rank_zero_warn(f"adapter {name}: all {len(parts)} lora_B are zero, so it changes nothing: was it ever trained?")
    elif known.step:
        raise SettingsError(
            f"adapter {name} says that it was trained for {known.step} steps, but all {len(parts)} lora_B are zero, "
            "so it is its base model. Either no step had a gradient (all rewards of every group equal), or the "
            "learning rate was 0, or it was saved wrongly; use the base model or another checkpoint"
        )


def _find(name: str, file: str) -> str:
    """Path of a file of an adapter, from its folder or the Hub.

    Raises:
        SettingsError: it has none.
    """
    from transformers.utils import cached_file

    if Path(name).is_dir():
        path = Path(name) / file
        if path.is_file():
            return str(path)
        reason = "it has none"
    else:
        try:
            return cached_file(name, file)
        except OSError as error:
            reason = str(error)
    raise SettingsError(
        f"adapter {name}: expected {file}; {reason}. Adapters are read in safetensors only, since other files can run "
        "code when they are read: an adapter_model.bin that you trust can be saved anew with PEFT's save_pretrained"
    )
