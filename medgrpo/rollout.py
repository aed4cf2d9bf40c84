"""Sample G completions per prompt on top of one encoding of the prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from medgrpo.prefix import attention_mask, policy_logits
from medgrpo.types import Completions, Prefix

LEAVE_AT = 7 / 8
"""Finished rows leave once at most this share is alive: leaving copies the cache, staying computes unused tokens."""


@torch.no_grad()
def sample(
    model: nn.Module,
    prefix: Prefix,
    *,
    num_generations: int,
    max_completion_length: int,
    min_completion_length: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_ids: Tensor,
    suppressed: Tensor,
    pad_id: int,
    generator: torch.Generator | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> Completions:
    """Draw completions token by token; rows that have drawn a stop token leave the batch.

    Every choice is made by these arguments: the checkpoint's ``generation_config`` is not read.

    Args:
        prefix: what ``prefix.encode`` made of P prompts.
        num_generations: G.
        max_completion_length: tokens, stop token included; longer completions are cut off.
        min_completion_length: the least length in tokens, stop token included.
        temperature: 0 for greedy decoding; ``logps`` are then those of temperature 1.
        top_p: nucleus mass; 1 keeps all.
        top_k: number of candidates; 0 keeps all.
        stop_ids: [k] int64 token ids that end a completion.
        suppressed: [k] int64 token ids that are never drawn.
        generator: CPU generator. All random numbers are drawn before the first token, one per row and position, so
            what a row draws depends neither on the device nor on which other rows have finished.
        on_token: called after each position with (tokens drawn so far, rows still alive).

    Returns:
        ``logps`` are under the full softmax at ``temperature`` without ``suppressed``, before top-p, top-k and the
        minimum length narrow the choice: what ``prefix.score`` computes.
    """
    device = prefix.mask.device
    num_rows = len(prefix.mask) * num_generations
    uniforms = torch.rand(max_completion_length, num_rows, generator=generator).to(device)
    ids = torch.full((num_rows, max_completion_length), pad_id, device=device)
    mask = torch.zeros(num_rows, max_completion_length, dtype=torch.bool, device=device)

    float_dtype = torch.promote_types(prefix.last_hidden.dtype, torch.float32)
    logps = torch.zeros(num_rows, max_completion_length, dtype=float_dtype, device=device)
    cache = DecodeCache(prefix, num_generations, max_completion_length - 1)
    hidden = prefix.last_hidden.repeat_interleave(num_generations, 0)
    rows = torch.arange(num_rows, device=device)  # the rows in the batch: the k-th row of the cache is rows[k]
    done = torch.zeros(num_rows, dtype=torch.bool, device=device)
    for step in range(max_completion_length):
        logits = policy_logits(model, hidden, temperature or 1.0, suppressed)
        choice = logits.index_fill(-1, stop_ids, float("-inf")) if step < min_completion_length - 1 else logits
        token = draw(choice, uniforms[step, rows], greedy=temperature == 0, top_p=top_p, top_k=top_k)
        logp = logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        ids[rows, step] = torch.where(done, pad_id, token)
        logps[rows, step] = torch.where(done, 0.0, logp)
        mask[rows, step] = ~done
        done = done | torch.isin(token, stop_ids)
        alive = int((~done).sum())
        if on_token is not None:
            on_token(step + 1, alive)
        if alive == 0 or step + 1 == max_completion_length:
            break
        if alive <= len(rows) * LEAVE_AT:
            stay = (~done).nonzero()[:, 0]
            rows, token, done = rows[stay], token[stay], done[stay]
            cache.keep(stay)
        hidden = cache.decode(model, token)
    ids, mask, logps = ids[:, : step + 1], mask[:, : step + 1], logps[:, : step + 1]
    return Completions(ids, mask, logps, finished=(torch.isin(ids, stop_ids) & mask).any(-1))


def draw(logits: Tensor, uniform: Tensor, *, greedy: bool, top_p: float, top_k: int) -> Tensor:
    """One token [n] from logits [n, V] by inverting the cumulative distribution at ``uniform`` [n] in [0, 1)."""
    if greedy:
        return logits.argmax(-1)
    if top_k > 0 and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    probs = logits.softmax(-1)
    if top_p < 1.0:
        ranked, order = probs.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)  # keeps the token that reaches top_p
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    cumulative = probs.cumsum(-1)
    # right=True never lands on a token of probability 0, whose cumulative value equals the one before.
    token = torch.searchsorted(cumulative, uniform[:, None].to(probs.dtype) * cumulative[:, -1:], right=True)[:, 0]
    return torch.where(token < probs.shape[-1], token, probs.argmax(-1))


class DecodeCache:
    """Keys and values of all rows in one buffer per layer, written in place: no copy per token.

    Takes the place of a transformers ``Cache`` while decoding. The prompt part is copied once, to G rows.
    """

    def __init__(self, prefix: Prefix, num_generations: int, num_tokens: int) -> None:
        self.prompt_length = prefix.mask.shape[1]
        self.length = self.prompt_length
        self.position = prefix.next_position.repeat_interleave(num_generations)
        self.mask = nn.functional.pad(prefix.mask.repeat_interleave(num_generations, 0), (0, num_tokens), value=True)
        self.layers = [
            tuple(self._buffer(part, num_generations, num_tokens) for part in layer)
            for layer in zip(prefix.keys, prefix.values, strict=True)
        ]

    @staticmethod
    def _buffer(part: Tensor, num_generations: int, num_tokens: int) -> Tensor:
        prompts, heads, length, dim = part.shape
        buffer = part.new_empty(prompts, num_generations, heads, length + num_tokens, dim)
        buffer[..., :length, :] = part[:, None]
        return buffer.flatten(0, 1)

    def decode(self, model: nn.Module, token: Tensor) -> Tensor:
        """Feed one token [n] to every row in the batch; the hidden states [n, H] that predict the next."""
        self.length += 1
        position = self.position + (self.length - 1 - self.prompt_length)
        return model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(token[:, None]),
            position_ids=position[None, :, None].expand(3, -1, -1),
            attention_mask=attention_mask(model, self.mask[:, : self.length], 1),
            past_key_values=self,
            use_cache=False,
        ).last_hidden_state[:, -1]

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Called by attention layer ``layer`` with the [n, heads, 1, d] keys and values of the new token."""
        all_keys, all_values = self.layers[layer]
        all_keys[:, :, self.length - 1 : self.length] = keys
        all_values[:, :, self.length - 1 : self.length] = values
        return all_keys[:, :, : self.length], all_values[:, :, : self.length]

    def keep(self, rows: Tensor) -> None:
        """Drop every row of the batch but these."""
        self.position, self.mask = self.position[rows], self.mask[rows]
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this pass."""
        return self.length - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset, from which transformers builds a flash-attention mask."""
        return self.length, 0
