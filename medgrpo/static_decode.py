"""Decode with shapes that stay the same from token to token: on a GPU one token is then the replay of a CUDA graph.

A GPU decodes a small batch faster than Python can launch its kernels, so the launches are recorded once and replayed.
Completions are drawn in buckets, token positions [1, 32), [32, 64), [64, 128) ... Within a bucket nothing is allocated
or moved, the sampler runs on the device, and the host looks at the result every ``CHECK_EVERY`` tokens only. Rows that
have finished leave at the borders, where the key-value buffers grow. Without a GPU the same code runs unrecorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medgrpo.types import Completions, Prefix

FIRST_BORDER = 32
CHECK_EVERY = 16
ALIGNMENT = 8
"""Attention kernels want the number of keys in multiples of this."""

Choose = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden states [n, H], uniforms [n], position of the token []) -> token ids [n] and their log-probabilities [n]."""


@torch.no_grad()
def decode_static(
    model: nn.Module,
    prefix: Prefix,
    completions: Completions,
    choose: Choose,
    uniforms: Tensor,
    stop_ids: Tensor,
    pad_id: int,
    on_token: Callable[[int, int], None],
) -> None:
    """Draw all tokens but the first, in place.

    Args:
        completions: [N, C] with position 0 filled in ``ids``, ``logps`` and ``mask``, and padding after it.
        uniforms: [C, N] random numbers in [0, 1).
        on_token: called with (tokens drawn so far, rows still alive) whenever the host looks.
    """
    num_rows, max_length = completions.ids.shape
    rows = (~torch.isin(completions.ids[:, 0], stop_ids)).nonzero()[:, 0]
    source = rows // (num_rows // len(prefix.mask))  # where in the last buffers the rows are
    layers, filled = prefix.layers(), prefix.mask.shape[1]
    prompt_mask, positions = prefix.mask[source], prefix.next_position[source]
    start = 1
    with attention(model, "sdpa"):  # flash_attention_2 unpads its inputs on the host, which no graph can record
        while start < max_length and len(rows):
            end = min(max(2 * start, FIRST_BORDER), max_length)
            bucket = Bucket(layers, filled, source, prompt_mask, positions, start, end)
            bucket.begin(completions.ids[rows, start - 1], uniforms[start:end, rows], stop_ids, pad_id)
            drawn = bucket.run(model, choose, on_token)
            for whole, part in (
                (completions.ids, bucket.ids),
                (completions.logps, bucket.logps),
                (completions.mask, bucket.mask),
            ):
                whole[rows, start : start + drawn] = part[:, :drawn]
            source = (~bucket.done).nonzero()[:, 0]
            rows, prompt_mask, positions = rows[source], prompt_mask[source], positions[source]
            layers, filled, start = bucket.layers, bucket.filled + drawn, start + drawn


class Bucket:
    """Rows [n] and token positions [start, end) that are drawn with fixed shapes.

    Takes the place of a transformers ``Cache`` while decoding.

    Args:
        layers: keys and values [rows, heads, at least ``filled``, d] per layer; each is dropped once it is copied.
        filled: columns of them that count.
        source: [n] which of their rows to take.
        prompt_mask: [n, T] bool, True on real tokens.
        positions: [n] rotary position of completion token 0.
        start: first position to draw.
        end: the position after the last.
    """

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]],
        filled: int,
        source: Tensor,
        prompt_mask: Tensor,
        positions: Tensor,
        start: int,
        end: int,
    ) -> None:
        self.filled = filled
        self.start = start
        self.size = end - start
        self.positions = positions
        num_keys = -(-(filled + self.size) // ALIGNMENT) * ALIGNMENT
        self.prompt_mask = nn.functional.pad(prompt_mask, (0, num_keys - prompt_mask.shape[1]), value=True)
        self.columns = torch.arange(num_keys, device=source.device)
        self.layers: list[tuple[Tensor, Tensor]] = []
        while layers:
            self.layers.append(tuple(self._grown(part, source, num_keys) for part in layers.pop(0)))

    def _grown(self, part: Tensor, source: Tensor, num_keys: int) -> Tensor:
        _, heads, _, dim = part.shape
        buffer = part.new_zeros(len(source), heads, num_keys, dim)  # zeros: masked, but 0 * NaN would be NaN
        buffer[:, :, : self.filled] = part[:, :, : self.filled][source]
        return buffer

    def begin(self, token: Tensor, uniforms: Tensor, stop_ids: Tensor, pad_id: int) -> None:
        """Set what the steps read and write.

        Args:
            token: [n] the last token of each row, not in the buffers yet.
            uniforms: [size, n]
        """
        self.token = token
        self.uniforms = uniforms
        self.stop_ids = stop_ids
        self.pad_id = pad_id
        self.done = torch.zeros_like(token, dtype=torch.bool)
        self.step = torch.zeros((), dtype=torch.int64, device=token.device)
        self.ids = token.new_full((len(token), self.size), pad_id)
        self.mask = torch.zeros_like(self.ids, dtype=torch.bool)
        self.logps = torch.zeros_like(self.ids, dtype=torch.promote_types(self.layers[0][0].dtype, torch.float32))

    def run(self, model: nn.Module, choose: Choose, on_token: Callable[[int, int], None]) -> int:
        """Draw until all rows are done or the bucket is full; the number of positions drawn."""
        next_token = self._recorded(model, choose) if self.token.is_cuda and self.size > 2 else None
        for drawn in range(2 if next_token else 0, self.size + 1):
            if drawn and (drawn % CHECK_EVERY == 0 or drawn == self.size):
                alive = int((~self.done).sum())
                on_token(self.start + drawn, alive)
                if alive == 0 or drawn == self.size:
                    return drawn
            next_token() if next_token else self.draw(model, choose)
        raise AssertionError("a bucket ends when it is full")

    def draw(self, model: nn.Module, choose: Choose) -> None:
        """Feed the last token of every row and draw the next; the host does not wait and learns nothing."""
        self.written = self.step + self.filled
        position = self.positions + (self.start - 1) + self.step
        hidden = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(self.token[:, None]),
            position_ids=position[None, :, None].expand(3, -1, -1),
            attention_mask=(self.prompt_mask & (self.columns <= self.written))[:, None, None],
            past_key_values=self,
            use_cache=False,
        ).last_hidden_state[:, -1]
        uniform = self.uniforms.index_select(0, self.step[None])[0]
        token, logp = choose(hidden, uniform, self.step + self.start)
        column = self.step[None]
        self.ids.index_copy_(1, column, torch.where(self.done, self.pad_id, token)[:, None])
        self.logps.index_copy_(1, column, torch.where(self.done, 0.0, logp)[:, None])
        self.mask.index_copy_(1, column, ~self.done[:, None])
        self.done |= (token[:, None] == self.stop_ids).any(-1)
        self.token.copy_(token)
        self.step += 1

    def _recorded(self, model: nn.Module, choose: Choose) -> Callable[[], None]:
        """Draw two tokens, the first on a side stream as recording demands, and record the drawing of one.

        Weights cast by autocast must not be cached: a cast that is recorded has no value until it is replayed.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                self.draw(model, choose)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self.draw(model, choose)
        graph.replay()
        return graph.replay

    def update(self, keys: Tensor, values: Tensor, layer: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Called by attention layer ``layer`` with the [n, heads, 1, d] keys and values of the new token."""
        all_keys, all_values = self.layers[layer]
        all_keys.index_copy_(2, self.written[None], keys)
        all_values.index_copy_(2, self.written[None], values)
        return all_keys, all_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen before this pass; positions and mask are given, so it only has to be a number."""
        return self.filled

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Key length and offset."""
        return len(self.columns), 0


@contextmanager
def attention(model: nn.Module, implementation: str) -> Iterator[None]:
    """Let the language model use another attention function of transformers."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before
