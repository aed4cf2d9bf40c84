"""Encode each prompt once; score its G completions on top of that one encoding.

For a prompt x and completions y_1..y_G, the keys and values of x are computed once (with gradients when training) and
every completion attends to them and to itself. Log-probabilities and gradients are those of G separate rows
``[x | y_g]``, exactly: nothing of x is computed G times. (Shared-prefix GRPO: arXiv 2506.05433; here with Qwen-VL's
3-D rotary positions, passed explicitly in every forward.)

``model`` below is a transformers ``Qwen2VL/Qwen2_5_VL/Qwen3VLForConditionalGeneration``, adapters injected or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.utils.checkpoint import checkpoint

from medgrpo.types import Prefix, PromptBatch, VisionFeatures

LOGITS_PER_CHUNK = 2**25
"""Tokens are scored in chunks of this many logits (128 MiB in float32): no (N, C, V) tensor ever exists."""


def prepare(
    model: nn.Module,
    prompts: PromptBatch,
    device: torch.device,
    frozen_vision: bool,
    look: Callable[[nn.Module, PromptBatch], VisionFeatures] | None = None,
) -> PromptBatch:
    """Do once per rollout batch what does not depend on trainable weights.

    Computes the rotary positions and, for a frozen vision tower, the features of every image, which then serve
    rollout, reference and all training passes.

    Args:
        look: used in place of ``see``, e.g. ``VisionCache.features_of``.

    Returns:
        The batch on ``device`` with ``position_ids`` and, when ``frozen_vision``, ``vision`` in place of the pixels.
    """
    position_ids, _ = model.model.get_rope_index(
        prompts.input_ids,
        mm_token_type_ids=prompts.mm_token_type_ids,
        image_grid_thw=prompts.image_grid_thw,
        attention_mask=prompts.attention_mask.long(),
    )
    prompts = replace(prompts, position_ids=position_ids).to(device)
    if frozen_vision and prompts.pixel_values is not None:
        with torch.no_grad():
            prompts = replace(prompts, vision=(look or see)(model, prompts), pixel_values=None)
    return prompts


def see(model: nn.Module, prompts: PromptBatch) -> VisionFeatures:
    """Run the vision tower once over all images of the batch."""
    tower = model.model.visual
    output = tower(prompts.pixel_values.to(tower.dtype), grid_thw=prompts.image_grid_thw, return_dict=True)
    return VisionFeatures(output.pooler_output, tuple(output.get("deepstack_features") or ()))


def see_nothing(model: nn.Module, prompts: PromptBatch) -> VisionFeatures:
    """Features of no image, by a run of the tower, whose shards all ranks gather together, whoever has images."""
    tower = model.model.visual
    side, size = model.config.vision_config.spatial_merge_size, tower.patch_embed.proj.weight.shape[1:].numel()
    pixels = torch.zeros(side**2, size, device=prompts.input_ids.device)
    grid = torch.tensor([[1, side, side]], device=pixels.device)
    blank = see(model, replace(prompts, pixel_values=pixels, image_grid_thw=grid))
    return VisionFeatures(blank.embeds[:0], tuple(features[:0] for features in blank.deepstack))


def encode(model: nn.Module, prompts: PromptBatch) -> Prefix:
    """Run vision tower (unless its features are there) and prompt tokens once: P rows, whatever G is.

    Args:
        prompts: a batch that went through ``prepare``.
    """
    embeds = model.get_input_embeddings()(prompts.input_ids)
    deepstack = {}
    vision = prompts.vision
    if vision is None and prompts.image_grid_thw is not None:
        vision = see(model, prompts)
    elif vision is None and isinstance(model.model.visual.blocks[0], FSDPModule | FullyShardedDataParallel):
        vision = see_nothing(model, prompts)
    if vision is not None:
        is_image = prompts.mm_token_type_ids == 1
        embeds = embeds.masked_scatter(is_image[..., None], vision.embeds.to(embeds.dtype))
        if vision.deepstack:
            deepstack = {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(vision.deepstack)}
    cache = PromptCache()
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        position_ids=prompts.position_ids,
        attention_mask=attention_mask(model, prompts.attention_mask, embeds.shape[1]),
        past_key_values=cache,
        use_cache=False,
        **deepstack,
    ).last_hidden_state
    layers = range(len(cache.layers))
    return Prefix(
        keys=[cache.layers[i][0] for i in layers],
        values=[cache.layers[i][1] for i in layers],
        mask=prompts.attention_mask,
        next_position=prompts.position_ids.amax(dim=(0, 2)) + 1,
        last_hidden=hidden[:, -1],
    )


def completion_hidden(model: nn.Module, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states that predict each completion token.

    Args:
        ids: [n, C] completion tokens, right-padded, n = groups in ``prefix`` times G.
        mask: [n, C] bool, True on real tokens.

    Returns:
        [n, C, H]; position t predicts token t. The first comes from the prefix and is shared by the group.
    """
    num_generations = len(ids) // len(prefix.mask)
    first = prefix.last_hidden.repeat_interleave(num_generations, 0)[:, None]
    if ids.shape[1] == 1:
        return first
    positions = prefix.next_position.repeat_interleave(num_generations)[:, None] + torch.arange(
        ids.shape[1] - 1, device=ids.device
    )
    keys = torch.cat([prefix.mask.repeat_interleave(num_generations, 0), mask[:, :-1]], 1)
    rest = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(ids[:, :-1]),
        position_ids=positions.expand(3, -1, -1),
        attention_mask=attention_mask(model, keys, ids.shape[1] - 1),
        past_key_values=CompletionCache(prefix, num_generations),
        use_cache=False,
    ).last_hidden_state
    return torch.cat([first, rest], 1)


def score(
    model: nn.Module, prefix: Prefix, ids: Tensor, mask: Tensor, temperature: float, suppressed: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each completion token under the distribution that sampling draws from.

    Args:
        prefix: what ``encode`` made of P prompts.
        ids: [P * G, C] completions, rows of one prompt together.
        mask: [P * G, C] bool, True on tokens to score.
        temperature: the sampling temperature (1 for greedy).
        suppressed: [k] int64 token ids that are never sampled.

    Returns:
        Two [P * G, C] float32 tensors, 0 where ``mask`` is False; gradients flow through the first.
    """
    hidden = completion_hidden(model, prefix, ids, mask)[mask]
    logps, entropy = token_logps(model, hidden, ids[mask], temperature, suppressed)
    blank = torch.zeros(mask.shape, dtype=logps.dtype, device=mask.device)
    return blank.masked_scatter(mask, logps), blank.masked_scatter(mask, entropy)


def token_logps(
    model: nn.Module, hidden: Tensor, ids: Tensor, temperature: float, suppressed: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [M] (with gradient) and entropies [M] (without) of tokens [M] given hidden states [M, H]."""
    size = max(1, LOGITS_PER_CHUNK // model.lm_head.out_features)
    chunks = []
    for h, t in zip(hidden.split(size), ids.split(size), strict=True):
        chunks.append(checkpoint(_chunk_logps, model, h, t, temperature, suppressed, use_reentrant=False))
    logps, entropies = zip(*chunks, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def _chunk_logps(model, hidden, ids, temperature, suppressed) -> tuple[Tensor, Tensor]:
    logps = policy_logits(model, hidden, temperature, suppressed).log_softmax(-1)
    return logps.gather(-1, ids[:, None])[:, 0], torch.special.entr(logps.detach().exp()).sum(-1)


def policy_logits(model: nn.Module, hidden: Tensor, temperature: float, suppressed: Tensor) -> Tensor:
    """Logits [..., V], at least float32: the one definition of the policy, for sampling and for scoring."""
    logits = model.lm_head(hidden)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.index_fill(-1, suppressed, float("-inf")) / temperature


def attention_mask(model: nn.Module, keys: Tensor, num_queries: int) -> Tensor:
    """Causal mask for the last ``num_queries`` of the positions in ``keys`` [n, K] (True on real tokens).

    Returns:
        For sdpa [n, 1, num_queries, K] bool, True where a query may look; padded queries look at themselves, so that
        no row of the softmax is empty. flash_attention_2 is causal by itself and takes the key mask.
    """
    if model.config.get_text_config()._attn_implementation == "flash_attention_2":
        return keys.long()
    index = torch.arange(keys.shape[1], device=keys.device)
    queries = index[-num_queries:, None]
    return ((index <= queries) & keys[:, None, :] | (index == queries))[:, None]


class PromptCache:
    """Takes the place of a transformers ``Cache`` in the prompt pass and keeps what each layer computes.

    The first write stays, so that recomputing a layer under gradient checkpointing changes nothing.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Called by attention layer ``layer`` with its [P, heads, T, d] keys and values."""
        self.layers.setdefault(layer, (keys, values))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this pass."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset, from which transformers builds a flash-attention mask."""
        return query_length, 0


class CompletionCache:
    """Takes the place of a transformers ``Cache`` in the completion pass: each row sees its prompt, then itself.

    It writes nothing, so a layer may be recomputed under gradient checkpointing.
    """

    def __init__(self, prefix: Prefix, num_generations: int) -> None:
        self.prefix = prefix
        self.num_generations = num_generations

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """[n, heads, c, d] keys and values of the completions -> [n, heads, T + c, d]."""
        return self._after_prefix(self.prefix.keys[layer], keys), self._after_prefix(self.prefix.values[layer], values)

    def _after_prefix(self, prefix: Tensor, own: Tensor) -> Tensor:
        shared = prefix[:, None].expand(-1, self.num_generations, -1, -1, -1)
        return torch.cat([shared, own.unflatten(0, shared.shape[:2])], dim=-2).flatten(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this pass: the padded prompt."""
        return self.prefix.mask.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset, from which transformers builds a flash-attention mask."""
        return self.prefix.mask.shape[1] + query_length, 0
