"""The policy, a Qwen2-VL, Qwen2.5-VL or Qwen3-VL: whole, with LoRA or with LoRA on 4-bit weights; its reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medgrpo.linear import is_available as onednn_is_available
from medgrpo.linear import use_onednn
from medgrpo.types import SettingsError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Supported values of ``config.model_type``."""

LANGUAGE_LINEARS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LINEARS = r"(qkv|proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2)"

ADAPTER_KEYS = {r"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}
"""Module names of adapters saved before transformers 4.52 -> today's; names already in today's layout stay."""


class Policy(nn.Module):
    """What is trained, and what it is compared with.

    Construction only stores the options; ``load`` builds the model, once, under Lightning's ``configure_model``.

    Args:
        model_name_or_path: Hub id or folder of a base model, or a folder written by this tool (whole model or adapter).
        adapter: PEFT adapter folder to start from; the reference policy is then the model with this adapter.
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
        if quantize and not use_peft:
            raise SettingsError("quantize trains an adapter on frozen 4-bit weights: set use_peft=true, or drop it")
        if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
            raise SettingsError(f"expected min_pixels <= max_pixels, got {min_pixels} > {max_pixels}")
        folder = Path(model_name_or_path)
        if adapter is None and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            adapter, model_name_or_path = model_name_or_path, _base_of(folder)
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
            return self.network.device.type == "cuda"
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
            self.model.save_pretrained(folder, state_dict=state, selected_adapters=["default"])
        else:
            self.model.save_pretrained(folder, state_dict=state)
        processor.save_pretrained(folder)

    def _load_base(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

        config = AutoConfig.from_pretrained(self.model_name_or_path)
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
        model, loading = AutoModelForImageTextToText.from_pretrained(
            self.model_name_or_path,
            dtype=dtype,
            attn_implementation=self._attention(dtype),
            quantization_config=quantization,
            output_loading_info=True,
        )
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        problems = {kind: sorted(map(str, loading[kind])) for kind in kinds if loading[kind]}
        if problems:
            raise SettingsError(f"weights of {self.model_name_or_path} do not fit its architecture: {problems}")
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
            return onednn_is_available() and not torch.cuda.is_available()
        return self.linear_implementation == "onednn"

    def _add_lora(self, model: nn.Module, with_reference: bool) -> nn.Module:
        from peft import LoraConfig, PeftConfig, get_peft_model

        if self.adapter is None:
            targets = self.lora_target_modules or rf".*language_model\.layers\..*\.{LANGUAGE_LINEARS}" + (
                "" if self.freeze_vision else rf"|.*visual\.blocks\..*\.{VISION_LINEARS}"
            )
            exclude = r".*visual.*" if self.freeze_vision else None
            config = LoraConfig(
                r=self.lora_r, lora_alpha=self.lora_alpha, target_modules=targets, exclude_modules=exclude
            )
            return get_peft_model(model, config)
        config = PeftConfig.from_pretrained(self.adapter)
        config.inference_mode = False
        config.lora_dropout = 0.0
        peft_model = get_peft_model(model, config)
        self._load_adapter(peft_model, "default", is_trainable=True)
        if self.freeze_vision and any("visual" in n for n, p in peft_model.named_parameters() if p.requires_grad):
            raise SettingsError(f"adapter {self.adapter} trains the vision tower: set freeze_vision=false")
        if with_reference:
            self._load_adapter(peft_model, "reference", is_trainable=False)
        return peft_model

    def _load_adapter(self, peft_model: nn.Module, name: str, is_trainable: bool) -> None:
        keys = ADAPTER_KEYS if peft_model.get_base_model().config.model_type != "qwen3_vl" else None
        result = peft_model.load_adapter(self.adapter, name, is_trainable=is_trainable, key_mapping=keys)
        expected = [n for n, _ in peft_model.named_parameters() if f".{name}." in n and "lora_" in n]
        missing = [key for key in result.missing_keys if "lora_" in key and f".{name}." in key]
        if missing or result.unexpected_keys:
            raise SettingsError(
                f"adapter {self.adapter} does not fit {self.model_name_or_path}: {len(expected) - len(missing)} of "
                f"{len(expected)} LoRA tensors matched, {len(result.unexpected_keys)} in the file match nothing, e.g. "
                f"{(list(result.unexpected_keys) + missing)[0]}; check model_name_or_path and adapter"
            )

    def _checkpoint_blocks(self) -> None:
        # transformers' own gradient checkpointing drops the cache that carries the shared prefix.
        networks = [self.network] if self.reference is None else [self.network, self.reference]
        for network in networks:
            for block in (*network.model.language_model.layers, *network.model.visual.blocks):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _base_of(adapter: Path) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    if not base:
        raise SettingsError(f"{adapter}/adapter_config.json names no base model; set model_name_or_path and adapter")
    return base
