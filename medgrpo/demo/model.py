"""Tiny Qwen-VL models: the families' own classes with small sizes, and a tokenizer that needs no download.

The demo's base model, the tests and the benchmarks are made here. Nothing about the architecture is simplified: window
attention, multimodal rotary positions, deepstack features and the processors are those of transformers; only the sizes
differ. The tokenizer is a byte-level BPE with Qwen's pre-tokenizer and special tokens, trained on a given text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

BASE_FOLDER = Path(__file__).parent / "weights"
"""The demo's warm-started base model, made by ``scripts/make_demo_model.py``."""

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

SMALL = {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "vision_hidden_size": 512, "vision_layers": 8}
"""Sizes of the benchmarks' model: 63, 71 and 105 M parameters in the three families."""

_VISION_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "patch_size": 14,
    "spatial_merge_size": 2,
}
QWEN2_5_VL_3B = {
    "text": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "vision": _VISION_TOWER | {"out_hidden_size": 2048},
    "tie_word_embeddings": True,
}
"""Shape of Qwen2.5-VL-3B-Instruct, 3.75 B parameters, as its config.json says; see ``real_config``."""
QWEN2_5_VL_7B = {
    "text": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision": _VISION_TOWER | {"out_hidden_size": 3584},
    "tie_word_embeddings": False,
}
"""Likewise of Qwen2.5-VL-7B-Instruct, 8.29 B parameters."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""One token each, as the thinking tags are in Qwen3's tokenizer: a short answer takes few decoding steps."""

CORPUS = (
    "user assistant system What does this image show? Which disease is seen? A) normal B) cyst C) mass D) fracture\n"
    "Question Options answer choice letter image finding modality CT MRI X-Ray ultrasound fundus OCT microscopy\n"
    "Think step by step, then give the letter of the correct option inside the answer tags.\n"
)
"""Text that the tokenizer learns when none is given: enough for tests, which care about shapes and not about words."""

# Qwen's layout: every turn between <|im_start|>role and <|im_end|>, every image as a framed placeholder.
CHAT_TEMPLATE = """
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


def build_tokenizer(corpus: Iterable[str] = (CORPUS,), vocab_size: int = 1024) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer with Qwen's pre-tokenizer and special tokens, left-padding, for any text.

    Args:
        corpus: texts to learn merges from; any other text still encodes, byte by byte at worst.
        vocab_size: at most this many ids before the special tokens and tags; fewer when the corpus has no more merges.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        padding_side="left",
    )
    tokenizer.add_tokens(list(TAGS))
    return tokenizer


def build_processor(family: str, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """The family's own processor with ``tokenizer`` and the family's patch size."""
    if family == "qwen3_vl":
        pixels = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        image, video = Qwen2VLImageProcessor(**pixels), Qwen3VLVideoProcessor(**pixels)
        return Qwen3VLProcessor(image, tokenizer, video, chat_template=CHAT_TEMPLATE)
    image, video = Qwen2VLImageProcessor(), Qwen2VLVideoProcessor()
    processor = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen2VLProcessor
    return processor(image, tokenizer, video, chat_template=CHAT_TEMPLATE)


def tiny_config(
    family: str,
    tokenizer: Qwen2Tokenizer,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    vision_hidden_size: int = 64,
    vision_layers: int = 2,
    initializer_range: float = 0.02,
) -> PreTrainedConfig:
    """A configuration of one of ``FAMILIES`` with the given sizes and the tokenizer's ids.

    Args:
        family: ``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``.
        tokenizer: from ``build_tokenizer``; gives the vocabulary size and the ids of the special tokens.
        hidden_size: of the text model; a multiple of 16 times ``num_heads``. The MLP is four times as wide.
        num_layers: text layers.
        num_heads: attention heads of both towers; the text model has half as many key-value heads.
        vision_hidden_size: of the vision tower; a multiple of 8 times ``num_heads``.
        vision_layers: vision blocks; the last attends over the whole image, the others within windows (Qwen2.5-VL).
        initializer_range: standard deviation of random weights.

    Raises:
        ValueError: when the family is unknown or a size does not divide into heads.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family!r}")
    if num_heads % 2 or hidden_size % (16 * num_heads) or vision_hidden_size % (8 * num_heads):
        raise ValueError(
            "num_heads must be even, hidden_size a multiple of 16 * num_heads, vision_hidden_size of 8 * num_heads; "
            f"got num_heads={num_heads}, hidden_size={hidden_size}, vision_hidden_size={vision_hidden_size}"
        )
    head_dim = hidden_size // num_heads
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,  # padded as Qwen's: the last ids belong to no token
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads // 2,
        "max_position_embeddings": 32768,
        "initializer_range": initializer_range,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {"depth": vision_layers, "num_heads": num_heads, "initializer_range": initializer_range}
    ids = _vision_ids(tokenizer) | {"tie_word_embeddings": True}
    half = head_dim // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]  # the head's frequencies: time, height, width, as in Qwen
    if family == "qwen3_vl":
        text |= {
            "head_dim": head_dim,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": sections[::-1],
                "mrope_interleaved": True,
            },
        }
        vision |= {
            "hidden_size": vision_hidden_size,
            "intermediate_size": 4 * vision_hidden_size,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": list(range(min(vision_layers, num_layers))),
        }
        return Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    if family == "qwen2_vl":
        vision |= {"embed_dim": vision_hidden_size, "hidden_size": hidden_size, "mlp_ratio": 4}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    vision |= {
        "hidden_size": vision_hidden_size,
        "intermediate_size": 4 * vision_hidden_size,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": [vision_layers - 1],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def real_config(
    tokenizer: Qwen2Tokenizer, *, text: dict[str, int], vision: dict[str, Any], tie_word_embeddings: bool
) -> Qwen2_5_VLConfig:
    """A published Qwen2.5-VL's shape around the built-in tokenizer: the ids above the tokenizer's belong to no token.

    Args:
        tokenizer: from ``build_tokenizer``; gives the ids of the special tokens.
        text: sizes of the text model.
        vision: sizes of the vision tower.
        tie_word_embeddings: one matrix for the embedding and the output layer.
    """
    text = text | {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tie_word_embeddings,
    }
    ids = _vision_ids(tokenizer) | {"tie_word_embeddings": tie_word_embeddings}
    return Qwen2_5_VLConfig(text_config=text, vision_config=dict(vision), **ids)


def _vision_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}


def build_model(
    config: PreTrainedConfig, tokenizer: Qwen2Tokenizer, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model with random weights that depend on ``seed`` alone; torch's global generator is left as it was.

    It is made on torch's default device: ``with torch.device("cuda")`` draws the weights of a large one there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def save_tiny(folder: str | Path, family: str = "qwen2_5_vl", *, seed: int = 0, **sizes: int | float) -> Path:
    """Write a complete model folder with random weights, as ``from_pretrained`` of model and processor expects it.

    Args:
        folder: made when missing.
        family: one of ``FAMILIES``.
        seed: of the weights.
        sizes: see ``tiny_config``; ``SMALL`` for the benchmarks.

    Returns:
        The folder.
    """
    tokenizer = build_tokenizer()
    model = build_model(tiny_config(family, tokenizer, **sizes), tokenizer, seed)
    model.save_pretrained(folder)
    build_processor(family, tokenizer).save_pretrained(folder)
    return Path(folder)
