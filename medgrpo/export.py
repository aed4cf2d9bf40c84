"""Hand a checkpoint over: the adapter, or the whole model with the adapter merged, with processor and model card.

What was written is loaded again and must answer as the checkpoint does before it gets its name.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from medgrpo.adapters import CONFIG, base_of, public_name
from medgrpo.export_check import TOLERANCES, answer, compare_answers, comparison_prompts, score_answers
from medgrpo.model_card import Card, Evaluation, model_card, shown_settings
from medgrpo.policy import MADE_WITH, Policy, loading
from medgrpo.resume import fingerprint
from medgrpo.runs import METRICS, RUN, TRAINED_ON, trained_on
from medgrpo.types import DataError, SettingsError


def export(checkpoint: Path, out: Path, *, merge: bool, base: str | None, evaluations: Sequence[Path]) -> None:
    """Write ``out``, and say what was compared.

    Args:
        checkpoint: ``NAME.ckpt`` or the folder ``NAME`` beside it.
        out: new or empty folder.
        merge: merge the adapter into its base.
        base: of the adapter; None is the one that it names.
        evaluations: folders of ``medgrpo test``.

    Raises:
        SettingsError: options that do not go together, weights that do not fit or cannot be written, or a result that
            does not answer as the checkpoint does.
        DataError: a file beside the checkpoint or of an evaluation is malformed.
    """
    folder = checkpoint.with_suffix("") if checkpoint.suffix == ".ckpt" else checkpoint
    is_adapter = (folder / CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise SettingsError(
            f"{checkpoint}: expected NAME.ckpt with the folder NAME beside it, or such a folder, with {CONFIG} or "
            f"config.json; {folder} has neither"
        )
    with _writing(out):
        out = out.resolve()
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise SettingsError(f"--out {out} is there already: name a new or an empty folder")
    if out.is_relative_to(folder.resolve()):
        raise SettingsError(f"--out {out} is inside the checkpoint {folder}: name a folder elsewhere")
    if not is_adapter and (merge or base):
        raise SettingsError(f"{folder} holds all weights already: drop --merge and --base")

    config = _run_config(folder)
    made_with = _read_json(folder / MADE_WITH)
    recorded = config.get("model", {}).get("policy", {})
    recorded = recorded.get("init_args", recorded)  # a class and its arguments, as the command line saves it
    was_quantised = bool(made_with.get("quantize") or recorded.get("quantize"))
    judged = [_evaluation(path, folder) for path in evaluations]
    known = trained_on(folder)
    source = (base or base_of(str(folder))) if is_adapter else str(folder)
    saved_dtype = torch.bfloat16 if was_quantised and merge else _dtype_of(source)
    # float16 is for files: products of a CPU in it are slow.
    dtype = "bfloat16" if saved_dtype == torch.bfloat16 else "float32"
    policy = _load(source, str(folder) if is_adapter else None, dtype)
    processor = _processor(folder, source)
    prompts = comparison_prompts(processor)
    answers = answer(policy, processor, prompts)
    expected = score_answers(policy, prompts, answers)
    with policy.model.disable_adapter() if is_adapter else nullcontext():
        of_base = score_answers(policy, prompts, answers)

    with _aside(out) as partial:
        kind = "whole"
        if merge:
            kind, checks = "merged", _merge(policy)
            policy.model.to(saved_dtype).save_pretrained(partial)
            processor.save_pretrained(partial)
        elif is_adapter:
            kind = "adapter"
            policy.save(partial, processor)
        else:
            policy.model.to(saved_dtype).save_pretrained(partial)
            processor.save_pretrained(partial)
        del policy
        again = _load(source, str(partial), dtype) if kind == "adapter" else _load(str(partial), None, dtype)
        if merge:
            _check_sums(again, checks, saved_dtype)
        said = answer(again, processor, prompts)
        tolerance = TOLERANCES[saved_dtype] if merge else TOLERANCES[torch.float32]
        compare_answers(
            prompts, processor, answers, said, expected, score_answers(again, prompts, answers), of_base, tolerance
        )

        for name in (TRAINED_ON, MADE_WITH):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        base_name = public_name(source) if is_adapter else public_name(recorded.get("model_name_or_path") or "")
        notes = []
        if was_quantised and is_adapter:
            notes.append(
                "The adapter was trained on a language model in 4 bits (nf4). "
                + ("It was merged into the unquantised weights in bfloat16. " if merge else "")
                + "On unquantised weights it does not answer exactly as in tests that were in 4 bits."
            )
            print(notes[0])
        card = Card(
            name=out.name,
            kind=kind,
            base=base_name,
            dtype="float32" if kind == "adapter" else str(saved_dtype).removeprefix("torch."),
            trained_on=known,
            settings=shown_settings(config),
            evaluations=judged,
            trained_with=made_with,
            exported_with=_versions(),
            notes=notes,
        )
        (partial / "README.md").write_text(model_card(card), encoding="utf-8")
    print(f"done: {out}")


def _load(model: str, adapter: str | None, dtype: str) -> Policy:
    policy = Policy(
        model,
        adapter,
        dtype=dtype,
        attn_implementation="sdpa",
        decode_implementation="eager",
        linear_implementation="torch",
        use_peft=adapter is not None,
        freeze_vision=False,
    )
    policy.load(with_reference=False)
    return policy.to("cuda" if torch.cuda.is_available() else "cpu")


def _merge(policy: Policy) -> dict[str, float]:
    """Merge the adapter, and check each layer against ``W + scale * B A`` in float32.

    Returns:
        The sum of each merged weight, by the layer's name.
    """
    from peft.tuners.lora import LoraLayer

    sums = {}
    for name, layer in policy.network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = layer.get_base_layer().weight
        if weight is policy.network.get_input_embeddings().weight:
            raise SettingsError(f"{name} shares its weights with the embedding, so it cannot be merged: drop --merge")
        before = weight.detach().float().clone()
        a, b = layer.lora_A["default"].weight.detach().float(), layer.lora_B["default"].weight.detach().float()
        expected = before + layer.scaling["default"] * (b @ a)
        layer.merge(safe_merge=True, adapter_names=["default"])
        merged = layer.get_base_layer().weight.detach()
        error = (merged.float() - expected).abs().max()
        if error > 4 * torch.finfo(merged.dtype).eps * expected.abs().max():
            raise SettingsError(f"merging {name} went wrong by {error:.3g}: export the adapter, without --merge")
        sums[name] = merged.double().sum().item()
    policy.model = policy.model.unload()
    policy.use_peft = False
    return sums


def _check_sums(policy: Policy, sums: dict[str, float], dtype: torch.dtype) -> None:
    """What was read back is what was merged."""
    for name, expected in sums.items():
        weight: nn.Parameter = policy.network.get_parameter(f"{name}.weight")
        got = weight.detach().double().sum().item()
        if abs(got - expected) > torch.finfo(dtype).eps * weight.abs().double().sum().item():
            raise SettingsError(f"{name} was written with other weights than were merged: export without --merge")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Name the option when the system does not let ``out`` be looked at or written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter when the disk is full
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"--out {out} cannot be written: {reason}") from error


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when all went well, and is gone when not."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield partial
            partial.chmod(0o755)
            for file in partial.iterdir():  # safetensors lets nobody else read its files
                file.chmod(0o644)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _dtype_of(model: str) -> torch.dtype:
    from transformers import AutoConfig

    with loading("base model", model):
        dtype = AutoConfig.from_pretrained(model, trust_remote_code=False).dtype
    return dtype if dtype in TOLERANCES else torch.float32


def _processor(folder: Path, source: str) -> Any:
    """The checkpoint's; that of the base for an adapter from elsewhere."""
    from transformers import AutoProcessor

    own = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    place = str(folder) if own else source
    with loading("processor", place):
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    return processor


def _run_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of the run, which is beside or above its checkpoints; empty without it."""
    places = [folder.resolve().parent / "config.yaml", folder.resolve().parents[1] / "config.yaml"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}
    try:
        config = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: expected the YAML that `medgrpo fit` writes; {error}") from error
    model = config.get("model", {}) if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("policy", {}), dict):
        raise DataError(f"{file}: expected the settings of a run, as `medgrpo fit` writes them")
    return config


def _evaluation(path: Path, folder: Path) -> Evaluation:
    """Of a folder of ``medgrpo test``.

    Raises:
        DataError: it is none, or was not finished.
    """
    metrics, about = _read_json(path / METRICS), _read_json(path / RUN)
    groups = metrics.get("groups", {})
    by_modality = groups.get("modality", {}) if isinstance(groups, dict) else None
    rows = [metrics.get("overall"), *(by_modality.values() if isinstance(by_modality, dict) else [None])]
    if not all(isinstance(row, dict) and isinstance(row.get("accuracy"), int | float | None) for row in rows):
        raise DataError(f"--evaluation {path}: expected {METRICS}, which `medgrpo test` writes there when it is done")
    settings = about.get("settings", {})
    weights = settings.get("weights", {}) if isinstance(settings, dict) else None
    if not isinstance(weights, dict):
        raise DataError(f"--evaluation {path}: expected {RUN} as `medgrpo test` writes it; its settings are malformed")
    own = [fingerprint(str(file)) for file in (folder, folder.with_name(folder.name + ".ckpt")) if file.exists()]
    # What was loaded last answered.
    places = ("model.policy.model_name_or_path", "model.policy.adapter", "ckpt_path")
    answered = [weights.get(place.rsplit(".", 1)[-1]) for place in places if settings.get(place)]
    note = "a base model" if about.get("trained_on") is None else "other weights"
    return Evaluation(path.resolve().name, metrics, bool(answered) and answered[-1] in own, note)


def _read_json(file: Path) -> dict[str, Any]:
    """Empty when there is no such file.

    Raises:
        DataError: it holds no JSON object.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: expected JSON; {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object, got {value!r:.80}")
    return value


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import medgrpo

    return {"medgrpo": medgrpo.__version__} | {name: version(name) for name in ("transformers", "peft", "torch")}
