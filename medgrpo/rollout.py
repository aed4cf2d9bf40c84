"""Sample G completions per prompt on top of one encoding of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from medgrpo.linear import packed_weights
from medgrpo.prefix import policy_logits
from medgrpo.static_decode import Bucket, Choose, attention, decode_static
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
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    static: bool = False,
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
        generator: CPU generator, or one for each prompt. All random numbers are drawn before the first token, one per
            row and position, so what a row draws depends neither on the device nor on which other rows have finished;
            with one for each prompt, nor on which other prompts there are.
        static: keep shapes from token to token and, on a GPU, replay a CUDA graph (``static_decode.py``).
        on_token: called now and then with (tokens drawn so far, rows still alive).

    Returns:
        ``logps`` are under the full softmax at ``temperature`` without ``suppressed``, before top-p, top-k and the
        minimum length narrow the choice: what ``prefix.score`` computes.
    """
    device = prefix.mask.device
    num_rows = len(prefix.mask) * num_generations
    uniforms = _uniforms(max_completion_length, num_rows, generator).to(device)
    ids = torch.full((num_rows, max_completion_length), pad_id, device=device)
    mask = torch.zeros(num_rows, max_completion_length, dtype=torch.bool, device=device)

    float_dtype = torch.promote_types(prefix.last_hidden.dtype, torch.float32)
    logps = torch.zeros(num_rows, max_completion_length, dtype=float_dtype, device=device)
    choose = partial(
        _choose,
        model=model,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_completion_length=min_completion_length,
        stop_ids=stop_ids,
        suppressed=suppressed,
    )
    first = torch.zeros((), dtype=torch.int64, device=device)
    token, logp = choose(prefix.last_hidden.repeat_interleave(num_generations, 0), uniforms[0], first)
    ids[:, 0], logps[:, 0], mask[:, 0] = token, logp, True
    drawn = Completions(ids, mask, logps, finished=mask[:, 0])
    decode = decode_static if static else _decode_eager
    decode(model, prefix, drawn, choose, uniforms, stop_ids, pad_id, on_token or (lambda tokens, alive: None))
    length = int(mask.any(0).sum())
    ids, mask, logps = ids[:, :length], mask[:, :length], logps[:, :length]
    return Completions(ids, mask, logps, finished=(torch.isin(ids, stop_ids) & mask).any(-1))


def _uniforms(length: int, num_rows: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """[length, rows] float32 in [0, 1)"""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(length, num_rows, generator=generator)
    return torch.cat([torch.rand(length, num_rows // len(generator), generator=g) for g in generator], 1)


def _decode_eager(
    model: nn.Module,
    prefix: Prefix,
    completions: Completions,
    choose: Choose,
    uniforms: Tensor,
    stop_ids: Tensor,
    pad_id: int,
    on_token: Callable[[int, int], None],
) -> None:
    """Draw all tokens but the first, in place; what ``decode_static`` does, with rows leaving after any token."""
    num_rows, max_length = completions.ids.shape
    cache = DecodeCache(prefix, num_rows // len(prefix.mask), max_length - 1)
    rows = torch.arange(num_rows, device=uniforms.device)  # the k-th row of the cache is rows[k]
    token = completions.ids[:, 0]
    done = torch.isin(token, stop_ids)
    with shared_prefix_attention(model), packed_weights(model.model.language_model, num_rows):
        for step in range(1, max_length):
            alive = int((~done).sum())
            on_token(step, alive)
            if alive == 0:
                return
            if alive <= len(rows) * LEAVE_AT:
                stay = (~done).nonzero()[:, 0]
                rows, token, done = rows[stay], token[stay], done[stay]
                cache.keep(stay)
            hidden = cache.decode(model, token)
            token, logp = choose(hidden, uniforms[step, rows], torch.tensor(step, device=rows.device))
            completions.ids[rows, step] = torch.where(done, pad_id, token)
            completions.logps[rows, step] = torch.where(done, 0.0, logp)
            completions.mask[rows, step] = ~done
            done = done | torch.isin(token, stop_ids)
    on_token(max_length, int((~done).sum()))


@torch.no_grad()
def largest_step(
    model: nn.Module, prefix: Prefix, num_generations: int, max_completion_length: int, static: bool
) -> None:
    """Decode one token at the end of completions of full length, for the memory that this takes; draws nothing."""
    num_rows, length = len(prefix.mask) * num_generations, prefix.mask.shape[1]
    token = torch.zeros(num_rows, dtype=torch.int64, device=prefix.mask.device)
    if static and max_completion_length > 1:
        rows, layers, filled = torch.arange(num_rows, device=token.device), prefix.layers(), length
        source, half = rows // num_generations, max(2, (max_completion_length + 1) // 2)
        prompt_mask, positions = prefix.mask[source], prefix.next_position[source]
        for start, end in ((1, half), (half, max_completion_length)):  # the last bucket grows out of the one before
            if start < end:
                bucket = Bucket(layers, filled, source, prompt_mask, positions, start, end)
                source, layers, filled = rows, bucket.layers, filled + bucket.size
        bucket.begin(token, token.new_zeros(bucket.size, num_rows), token[:1] - 1, 0)
        with attention(model, "sdpa"):
            bucket.draw(model, lambda hidden, *_: (token, hidden[:, 0].to(bucket.logps.dtype)))
    elif max_completion_length > 1:
        cache = DecodeCache(prefix, num_generations, max_completion_length - 1)
        cache.length += max_completion_length - 2
        with shared_prefix_attention(model), packed_weights(model.model.language_model, num_rows):
            cache.decode(model, token)


def _choose(
    hidden: Tensor,
    uniform: Tensor,
    position: Tensor,
    *,
    model: nn.Module,
    temperature: float,
    top_p: float,
    top_k: int,
    min_completion_length: int,
    stop_ids: Tensor,
    suppressed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens [n] for ``position`` [] from the hidden states [n, H] before it, and their log-probabilities [n]."""
    logits = policy_logits(model, hidden, temperature or 1.0, suppressed)
    choice = logits
    if min_completion_length > 1:
        too_early = position < min_completion_length - 1
        choice = torch.where(too_early, logits.index_fill(-1, stop_ids, float("-inf")), logits)
    token = draw(choice, uniform, greedy=temperature == 0, top_p=top_p, top_k=top_k)
    return token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]


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
    """Keys and values while decoding: one copy of each prompt's, and a buffer for the rows' own, written in place.

    Takes the place of a transformers ``Cache``, and of its attention. All rows of a prompt are the queries of one
    matrix product with its keys, so nothing of a prompt is repeated for them. Everything is at least float32, as
    inside of an attention kernel.
    """

    def __init__(self, prefix: Prefix, num_generations: int, num_tokens: int) -> None:
        self.prompts = torch.arange(len(prefix.mask), device=prefix.mask.device).repeat_interleave(num_generations)
        self.position = prefix.next_position[self.prompts]
        self.mask = nn.functional.pad(prefix.mask[self.prompts], (0, num_tokens), value=True)
        self.prompt_length = prefix.mask.shape[1]
        self.length = self.prompt_length
        dtype = torch.promote_types(prefix.keys[0].dtype, torch.float32)
        self.shared = [(k.to(dtype), v.to(dtype)) for k, v in prefix.layers()]
        own = (len(self.prompts), prefix.keys[0].shape[1], num_tokens, prefix.keys[0].shape[-1])
        self.own = [(k.new_empty(own), v.new_empty(own)) for k, v in self.shared]
        self._arrange()

    def keep(self, rows: Tensor) -> None:
        """Drop every row of the batch but these, and the prompts that have none left."""
        self.position, self.mask = self.position[rows], self.mask[rows]
        self.own = [(keys[rows], values[rows]) for keys, values in self.own]
        left, self.prompts = self.prompts[rows].unique_consecutive(return_inverse=True)
        if len(left) < len(self.shared[0][0]):
            self.shared = [(keys[left], values[left]) for keys, values in self.shared]
        self._arrange()

    def _arrange(self) -> None:
        # Rows of a prompt fill its slots from the first; only where prompts have equally many are all slots filled.
        counts = self.prompts.bincount()
        self.num_slots = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.prompts), device=counts.device) - first[self.prompts]
        self.slots = None if (counts == self.num_slots).all() else self.prompts * self.num_slots + place

    def decode(self, model: nn.Module, token: Tensor) -> Tensor:
        """Feed one token [n] to every row in the batch; the hidden states [n, H] that predict the next.

        The model's attention must be ``shared_prefix_attention``.
        """
        self.length += 1
        position = self.position + (self.length - 1 - self.prompt_length)
        return model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(token[:, None]),
            position_ids=position[None, :, None].expand(3, -1, -1),
            attention_mask=self.mask[:, None, None, : self.length],
            past_key_values=self,
            use_cache=False,
            decode_cache=self,
        ).last_hidden_state[:, -1]

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Called by attention layer ``layer`` with the [n, heads, 1, d] keys and values of the new token."""
        index = self.length - self.prompt_length - 1
        for own, new in zip(self.own[layer], (keys, values), strict=True):
            own[:, :, index : index + 1] = new
        return keys, values

    def attend(self, layer: int, query: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """[n, query heads, 1, d] queries and [n, 1, 1, keys] bool mask -> [n, 1, query heads, d]."""
        keys, values = self.shared[layer]
        own_keys, own_values = (own[:, :, : self.length - self.prompt_length] for own in self.own[layer])
        # Query heads that share a key-value head are further queries of that head.
        queries = query.reshape(len(query), keys.shape[1], -1, query.shape[-1]).to(keys.dtype) * scaling
        scores = torch.cat([self._per_prompt(queries, keys.mT), queries @ own_keys.mT], -1)
        weights = scores.masked_fill_(~mask, float("-inf")).softmax(-1)
        of_prompt, of_own = weights.split([self.prompt_length, own_keys.shape[2]], -1)
        mixed = self._per_prompt(of_prompt, values) + of_own @ own_values
        return mixed.reshape(len(query), 1, -1, query.shape[-1]).to(query.dtype)

    def _per_prompt(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Rows [n, heads, r, x] times the matrix [P, heads, x, y] of each row's prompt: [n, heads, r, y]."""
        num_prompts, heads, x, y = matrices.shape
        shape = (num_prompts, self.num_slots, *rows.shape[1:])
        if self.slots is not None:
            rows = rows.new_zeros(num_prompts * self.num_slots, *rows.shape[1:]).index_copy_(0, self.slots, rows)
        products = rows.view(shape).transpose(1, 2).reshape(num_prompts, heads, -1, x) @ matrices
        products = products.view(num_prompts, heads, self.num_slots, -1, y).transpose(1, 2).flatten(0, 1)
        return products if self.slots is None else products[self.slots]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this pass."""
        return self.length - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset."""
        return self.length, 0


@contextmanager
def shared_prefix_attention(model: nn.Module) -> Iterator[None]:
    """Let the language model attend as ``DecodeCache.attend`` does."""
    from transformers import AttentionInterface

    AttentionInterface.register("shared_prefix", _attend)
    with attention(model, "shared_prefix"):
        yield


def _attend(module, query, key, value, attention_mask, *, scaling, decode_cache, **kwargs) -> tuple[Tensor, None]:
    return decode_cache.attend(module.layer_idx, query, attention_mask, scaling), None
