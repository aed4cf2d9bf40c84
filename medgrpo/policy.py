"""The policy, a Qwen2-VL, Qwen2.5-VL or Qwen3-VL: whole, with LoRA or with LoRA on 4-bit weights; its reference."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import medgrpo
from medgrpo.adapters import add_adapter, base_of, public_name, read_adapter
from medgrpo.linear import is_available as onednn_is_available
from medgrpo.linear import use_onednn
from medgrpo.types import SettingsError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Supported values of ``config.model_type``."""

LANGUAGE_LINEARS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LINEARS = r"(qkv|proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2)"

MADE_WITH = "made_with.json"
"""Beside saved weights: the versions of what made them, ``quantize``, and the ``dtype`` of the base in training."""


@contextmanager
def loading(option: str, name: str) -> Iterator[None]:
    """Name the option whose files cannot be loaded: no network, no access, a broken file."""
    try:
        yield
    except (SettingsError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the Hub, transformers and safetensors raise nearly anything
        reason = next(iter(str(error).splitlines()), "")
        raise SettingsError(
            f"{option}={name}: cannot be loaded ({type(error).__name__}: {reason}); expected a Qwen-VL model: the "
            "Hub id of one that this machine can reach and may read, or a folder in safetensors"
        ) from error


class Policy(nn.Module):
    """What is trained, and what it is compared with.

    Construction only stores the options; ``load`` builds the model, once, under Lightning's ``configure_model``.

    Args:
        model_name_or_path: Hub id or folder of a base model, or of a whole model written by this tool; or an adapter
            that names its base by a Hub id (saved folders hold no path: of a local base they know the last name only).
        adapter: PEFT adapter to start from, made here or elsewhere; the reference policy is then the model with it.
        dtype: of the base weights; auto is bfloat16 for LoRA on CUDA, else float32. LoRA weights are float32.
        attn_implementation: auto is flash_attention_2 where it can run, else sdpa.
        decode_implementation: static keeps the shapes of decoding fixed and replays a CUDA graph on a GPU; eager lets
            finished rows leave at once; auto is static on a GPU, else eager.
        linear_implementation: of float32 products on a CPU; auto is onednn where torch has it and there is no GPU.
        min_pixels: smallest image area in pixels that the processor prepares; None keeps the checkpoint's.
        max_pixels: largest such area; larger images are scaled down. None keeps the checkpoint's.
        use_peft: train a LoRA adapter; false trains the weights themselves.
        lora_r: rank.
        lora_alpha: scale is ``lora_alpha / lora_r``.
        lora_target_modules: names as in PEFT; None is every linear layer of the language model's blocks (and of the
            vision blocks unless ``freeze_vision``).
        freeze_vision: leave the vision tower as it is; its features are then computed once per image and rollout.
        quantize: nf4 keeps the frozen language model in 4 bits (Q-LoRA).
        gradient_checkpointing: recompute each block in the backward pass to save memory.
    """

    def __init__(
        self,
        model_name_or_path: str,
        adapter: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        attn_implementation: Literal["auto", "sdpa", "flash_attention_2"] = "auto",
        decode_implementation: Literal["auto", "eager", "static"] = "auto",
        linear_implementation: Literal["auto", "torch", "onednn"] = "auto",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        use_peft: bool = True,
        lora_r: int = 16,
        lora_alpha: int = 32,
        lora_target_modules: list[str] | None = None,
        freeze_vision: bool = True,
        quantize: Literal["nf4"] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if lora_r < 1:
            raise SettingsError(f"lora_r: expected at least 1, got {lora_r}")
        if quantize and not use_peft:
            raise SettingsError("quantize trains an adapter on frozen 4-bit weights: set use_peft=true, or drop it")
        if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
            raise SettingsError(f"expected min_pixels <= max_pixels, got {min_pixels} > {max_pixels}")
        folder = Path(model_name_or_path)
        if adapter is None and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            adapter, model_name_or_path = model_name_or_path, base_of(model_name_or_path)
        if adapter is not None and not use_peft:
            raise SettingsError(f"adapter {adapter} needs use_peft=true; merge it first to train all weights")
        self.model_name_or_path = model_name_or_path
        self.adapter = adapter
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.decode_implementation = decode_implementation
        self.linear_implementation = linear_implementation
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.use_peft = use_peft
        self.lora_r = lora_r
        self.lora_alpha = lora_alpha
        self.lora_target_modules = lora_target_modules
        self.freeze_vision = freeze_vision
        self.quantize = quantize
        self.gradient_checkpointing = gradient_checkpointing
        self.model: nn.Module | None = None
        """The trained model, a ``PeftModel`` with LoRA."""
        self.reference: nn.Module | None = None
        """Frozen copy of the model at the start: full fine-tuning with ``beta > 0`` only."""
        self._is_reference = False
        self.sharded = False
        """Whether the weights will be spread over ranks; set before ``load``."""

    def check_folders(self) -> None:
        """A Hub id is ``name`` or ``owner/name``; anything else must be a folder that is there.

        Raises:
            SettingsError: it is not.
        """
        for option, name in (("model_name_or_path", self.model_name_or_path), ("adapter", self.adapter)):
            if name and (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
                raise SettingsError(f"{option}: expected a folder or a Hub id, got {name}, which is no folder here")

    def load(self, with_reference: bool) -> None:
        """Load the weights and set what trains; a second call does nothing.

        Args:
            with_reference: keep what ``as_reference`` needs.

        Raises:
            SettingsError: unknown model type, weights that do not fit, or an adapter that matches no weight.
        """
        if self.model is not None:
            return
        self.check_folders()
        model = self._load_base()
        if self.use_peft:
            model = self._add_lora(model, with_reference)
        else:
            model.model.visual.requires_grad_(not self.freeze_vision)
            if with_reference:
                self.reference = copy.deepcopy(model).requires_grad_(False)
        self.model = model
        if self.uses_onednn:
            use_onednn(self)
        if self.gradient_checkpointing:
            self._checkpoint_blocks()
        self.eval()

    def train(self, mode: bool = True) -> Policy:
        """Dropout stays off whatever the mode: old and new log-probabilities must agree on the first pass."""
        super().train(False)
        if self.quantize:
            from bitsandbytes.nn import Linear4bit

            # A CPU repacks 4-bit weights of a layer in eval mode into a form that has no gradient; it has no dropout.
            for module in self.modules():
                module.training = isinstance(module, Linear4bit)
        return self

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``function(network, ...)``: all that the weights do goes through here, so that sharding can gather them.

        Args:
            function: of ``prefix.py`` or ``rollout.py``, with the transformers model as its first argument.
        """
        return function(self.network, *args, **kwargs)

    @property
    def network(self) -> nn.Module:
        """The transformers model, with the adapter injected when there is one."""
        if self.use_peft:
            return self.model.get_base_model()
        return self.reference if self._is_reference else self.model

    @property
    def decodes_static(self) -> bool:
        """Whether completions are drawn with fixed shapes."""
        if self.decode_implementation == "auto":
            return self.network.device.type == "cuda" and not self.sharded
        return self.decode_implementation == "static"

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the policy is what it was before training; leave the context before training goes on."""
        if not self.use_peft:
            self._is_reference = True
            try:
                yield
            finally:
                self._is_reference = False
        elif self.adapter is None:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter("reference")
            try:
                yield
            finally:
                self.model.set_adapter("default")

    def suppressed_ids(self) -> list[int]:
        """Vision placeholders: a sampled one would break the next forward, so no completion may contain one."""
        config = self.network.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return sorted({config.to_dict()[name] for name in names})

    def save(self, folder: str | Path, processor: Any) -> None:
        """Write the adapter folder (LoRA) or the whole model, with the processor, in the layout PEFT and HF read.

        Nothing that was there is touched until the new files are complete.
        """
        state = {name: p.detach() for name, p in self.model.state_dict().items()}
        self.save_state(folder, processor, state)

    def save_state(self, folder: str | Path, processor: Any, state: dict[str, Tensor]) -> None:
        """As ``save``, with weights gathered elsewhere: keys as in ``self.model.state_dict()``."""
        if self.use_peft:
            # Else PEFT asks the Hub for the size of the base's vocabulary.
            lora_only = {"selected_adapters": ["default"], "save_embedding_layers": False}
            self.model.save_pretrained(folder, state_dict=state, **lora_only)
            # FSDP1 adds to the names of modules, by which PEFT then finds no tensor at all.
            lora = {n.replace(".default", ""): p for n, p in state.items() if "lora_" in n and ".default" in n}
            save_file(lora, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
        else:
            self.model.save_pretrained(folder, state_dict=state)
        processor.save_pretrained(folder)
        versions = {name: version(name) for name in ("transformers", "peft", "torch")}
        made_with = {"medgrpo": medgrpo.__version__} | versions | {"quantize": self.quantize}
        made_with["dtype"] = str(self.network.dtype).removeprefix("torch.")
        (Path(folder) / MADE_WITH).write_text(json.dumps(made_with, indent=1) + "\n", encoding="utf-8")

    def _load_base(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

        source = self.model_name_or_path
        with loading("model.policy.model_name_or_path", source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise SettingsError(
                f"model_name_or_path={self.model_name_or_path} has model_type {config.model_type!r}; "
                f"expected one of {', '.join(FAMILIES)}"
            )
        layer_types = getattr(config.get_text_config(), "layer_types", None) or []
        if "sliding_attention" in layer_types:
            raise SettingsError(
                f"{self.model_name_or_path} uses sliding-window attention; set use_sliding_window=false"
            )
        if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
            raise SettingsError(
                f"model_name_or_path={source} holds no *.safetensors; other files of weights can run code when they "
                "are read: load one that you trust with transformers and save it anew with save_pretrained"
            )
        if "quantization_config" in config.to_dict():
            raise SettingsError(
                f"the weights of {source} are quantised already: set model_name_or_path to the model that they were "
                "made of, and quantize=nf4 to have its language model in 4 bits"
            )
        dtype = self._torch_dtype()
        quantization = None
        if self.quantize:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=[r".*visual", "lm_head"],
            )
        with loading("model.policy.model_name_or_path", source):
            model, info = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=self._attention(dtype),
                quantization_config=quantization,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        problems = {kind: sorted(map(str, info[kind])) for kind in kinds if info[kind]}
        if problems:
            raise SettingsError(f"weights of {self.model_name_or_path} do not fit its architecture: {problems}")
        if self.quantize:
            check_quantised(model)
        # What is saved later takes the name from here.
        model.name_or_path = model.config.name_or_path = public_name(source)
        return model

    def _torch_dtype(self) -> torch.dtype:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.bfloat16 if self.use_peft and torch.cuda.is_available() else torch.float32

    def _attention(self, dtype: torch.dtype) -> str:
        can_flash = torch.cuda.is_available() and find_spec("flash_attn") is not None and dtype == torch.bfloat16
        if self.attn_implementation == "flash_attention_2" and not can_flash:
            raise SettingsError(
                f"attn_implementation=flash_attention_2 needs CUDA, the extra medgrpo[flash] and bfloat16 weights (got "
                f"CUDA {torch.cuda.is_available()}, flash-attn {find_spec('flash_attn') is not None}, {dtype}); "
                "set attn_implementation=sdpa or dtype=bfloat16"
            )
        if self.attn_implementation == "auto":
            return "flash_attention_2" if can_flash else "sdpa"
        return self.attn_implementation

    @property
    def uses_onednn(self) -> bool:
        """Whether float32 products on a CPU go through oneDNN."""
        if self.linear_implementation == "onednn" and not onednn_is_available():
            raise SettingsError("linear_implementation=onednn: this build of torch has no oneDNN; set it to torch")
        if self.linear_implementation == "auto":
            return onednn_is_available() and not torch.cuda.is_available() and not self.sharded
        return self.linear_implementation == "onednn"

    def _add_lora(self, model: nn.Module, with_reference: bool) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        if self.adapter is None:
            targets = self.lora_target_modules or rf".*language_model\.layers\..*\.{LANGUAGE_LINEARS}" + (
                "" if self.freeze_vision else rf"|.*visual\.blocks\..*\.{VISION_LINEARS}"
            )
            exclude = r".*visual.*" if self.freeze_vision else None
            config = LoraConfig(
                r=self.lora_r, lora_alpha=self.lora_alpha, target_modules=targets, exclude_modules=exclude
            )
            return get_peft_model(model, config)
        adapter = read_adapter(self.adapter)
        base, made_for = public_name(self.model_name_or_path), Path(adapter.base).name
        if made_for and made_for != Path(base).name:
            rank_zero_warn(f"adapter {self.adapter} was trained on {made_for}; here it is put on {base}")
        peft_model = add_adapter(model, adapter)
        if self.freeze_vision and any("visual" in n for n, p in peft_model.named_parameters() if p.requires_grad):
            raise SettingsError(f"adapter {self.adapter} trains the vision tower: set freeze_vision=false")
        return add_adapter(peft_model, adapter, "reference", is_trainable=False) if with_reference else peft_model

    def _checkpoint_blocks(self) -> None:
        # transformers' own gradient checkpointing drops the cache that carries the shared prefix.
        networks = [self.network] if self.reference is None else [self.network, self.reference]
        for network in networks:
            for block in (*network.model.language_model.layers, *network.model.visual.blocks):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def check_quantised(model: nn.Module) -> int:
    """Only the blocks of the language model are in 4 bits: not the vision tower, its merger, or the output layer.

    Returns:
        The number of quantised layers.

    Raises:
        SettingsError: others are quantised, or some are not.
    """
    from bitsandbytes.nn import Linear4bit

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantised = {name for name, module in linears.items() if isinstance(module, Linear4bit)}
    expected = {name for name in linears if name.startswith("model.language_model.layers.")}
    if wrong := sorted(quantised ^ expected):
        raise SettingsError(
            f"quantize: expected exactly the {len(expected)} linear layers of the language model's blocks in 4 bits, "
            f"got {len(quantised)} layers; {len(wrong)} are on one side only, e.g. {wrong[0]}. This transformers reads "
            "llm_int8_skip_modules in another way: install that of constraints.txt, or set quantize=null"
        )
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in quantised})
    rank_zero_info(
        f"quantize=nf4: in 4 bits are {len(quantised)} linear layers, {', '.join(kinds)}; the other "
        f"{len(linears) - len(quantised)} (vision tower, merger, output) are not"
    )
    return len(quantised)
