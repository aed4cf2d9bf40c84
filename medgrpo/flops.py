"""The arithmetic that one GRPO step needs, and what the device can do: utilisation is one over the other.

Counted are the multiply-adds of matrix products, two operations each: linear layers (a patch embedding is one), and
scores and values of attention. As usual for model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B) this is the
work of the algorithm, whatever a program does beyond it: padding, tokens of rows that have finished, recomputation
under checkpointing or inside an attention kernel, and the first token's logits computed for each completion instead of
once per prompt count nothing. What counts, per prompt with its G completions:

    rollout     images, prompt and completions forward, once
    reference   prompt and completions forward under the reference policy; images too when the vision tower trains
    train       completions forward; completions, prompt and a tower that trains backward. The first pass has prompt
                and images from the rollout; later passes, under changed weights, compute what trains anew

Two simplifications, both of at most one layer: every prompt token goes through the whole last layer, although only its
keys and values are used; and backward the first layer has input gradients even where nothing below it trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from medgrpo.types import PromptBatch


@dataclass(frozen=True)
class Operations:
    """Operations of the same computation in its three uses."""

    forward: int = 0
    backward: int = 0
    """Gradients of inputs, and of weights that train."""
    reference: int = 0
    """Forward under the reference policy: other adapters, or none."""

    def __add__(self, other: Operations) -> Operations:
        forward, backward = self.forward + other.forward, self.backward + other.backward
        return Operations(forward, backward, self.reference + other.reference)

    def __mul__(self, times: int) -> Operations:
        return Operations(self.forward * times, self.backward * times, self.reference * times)


@dataclass(frozen=True)
class ModelCost:
    """Unit costs of a model, read off its layers once; all else is counting units."""

    token: Operations
    """One token through the linear layers of the decoder."""
    pair: Operations
    """One query and one key in all decoder layers; every query head counts, whatever the number of key-value heads."""
    head: Operations
    """One row of logits."""
    patch: Operations
    """One patch through the linear layers of the vision blocks, embedding included."""
    merged: Operations
    """One image token, ``merge_size ** 2`` patches, through the merger and the deepstack mergers."""
    patch_pair: Operations
    """One query and one key in one vision block."""
    full_blocks: int
    """Vision blocks that attend over the whole image."""
    window_blocks: int
    """Vision blocks that attend within windows (Qwen2.5-VL)."""
    window: int
    """Side of a window in image tokens."""
    merge_size: int
    """Side of an image token in patches."""
    trainable_vision: bool

    @classmethod
    def of(cls, network: nn.Module) -> ModelCost:
        """Read a transformers Qwen-VL model, with adapters or 4-bit weights or none (``Policy.network``).

        What has gradients is taken from ``requires_grad``: call this once the policy is ready to train.
        """
        decoder, tower, config = network.model.language_model, network.model.visual, network.model.visual.config
        trainable_vision = any(p.requires_grad for p in tower.parameters())
        width = decoder.layers[0].self_attn.o_proj.in_features  # query heads times head size
        linears, mergers = Operations(), Operations()
        for name, module in tower.named_modules():
            if name.startswith(("merger", "deepstack_merger")):
                mergers += _linear(name, module)
            else:
                linears += _linear(name, module)
        vision = [linears, mergers, _pair(tower.blocks[0].attn.dim)]
        if not trainable_vision:
            vision = [replace(operations, backward=0) for operations in vision]
        full_blocks = len(getattr(config, "fullatt_block_indexes", tower.blocks))
        merged_size = config.spatial_merge_size * config.patch_size
        return cls(
            sum((_linear(name, module) for name, module in decoder.layers.named_modules()), Operations()),
            _pair(width) * len(decoder.layers),
            sum((_linear(name, module) for name, module in network.lm_head.named_modules()), Operations()),
            *vision,
            full_blocks=full_blocks,
            window_blocks=len(tower.blocks) - full_blocks,
            window=getattr(config, "window_size", merged_size) // merged_size,
            merge_size=config.spatial_merge_size,
            trainable_vision=trainable_vision,
        )

    def image(self, grid: Sequence[int]) -> Operations:
        """One image of ``grid`` = (time, height, width) patches; frames do not attend to each other."""
        frames, height, width = grid
        rows, columns, unit = height // self.merge_size, width // self.merge_size, self.merge_size**2
        within_windows = _squares(rows, self.window) * _squares(columns, self.window) * unit**2
        pairs = self.full_blocks * (height * width) ** 2 + self.window_blocks * within_windows
        return (self.patch * (height * width) + self.merged * (rows * columns) + self.patch_pair * pairs) * frames

    def prompt(self, length: int) -> Operations:
        """A prompt of T tokens, images apart, and the logits of its last position: G first tokens are drawn on them."""
        return self.token * length + self.pair * (length * (length + 1) // 2) + self.head

    def completion(self, prompt: int, length: int) -> Operations:
        """A completion of c >= 1 tokens on a prompt of T: c - 1 go in and give logits; the first has the prompt's."""
        fed = length - 1
        return (self.token + self.head) * fed + self.pair * (fed * prompt + fed * (fed + 1) // 2)


def _linear(name: str, module: nn.Module) -> Operations:
    """One row through a linear layer; nothing for any other module. Names of adapters are those of ``policy.py``."""
    if isinstance(module, nn.Conv3d):  # a patch embedding; nobody wants the gradient of pixels
        forward = 2 * module.weight.numel()
        return Operations(forward, forward * module.weight.requires_grad, forward)
    if not isinstance(module, nn.Linear):
        return Operations()
    forward = 2 * module.in_features * module.out_features  # a 4-bit weight has another shape
    if "lora_" in name and name.endswith(".reference"):
        return Operations(reference=forward)
    backward = forward * (1 + module.weight.requires_grad)
    return Operations(forward, backward, 0 if "lora_" in name else forward)


def _pair(width: int) -> Operations:
    forward = 4 * width  # score and value; backward has two products for each
    return Operations(forward, 2 * forward, forward)


def _squares(length: int, window: int) -> int:
    """Sum of the squared lengths of the windows that ``length`` is cut into."""
    return length // window * window**2 + (length % window) ** 2


@dataclass(frozen=True)
class Group:
    """Sizes of one prompt and its completions."""

    prompt: int
    """Tokens, image tokens included."""
    completions: tuple[int, ...]
    """[G] tokens, each at least 1."""
    images: tuple[tuple[int, int, int], ...] = ()
    """Time, height and width in patches of each."""
    active: bool = True
    """False when the group is not trained on."""


def groups_of(prompts: PromptBatch, mask: Tensor, active: Sequence[bool]) -> list[Group]:
    """Sizes of a rollout batch: P prompts, ``mask`` [P * G, C] of their completions, ``active`` [P]."""
    lengths = mask.sum(1).view(len(prompts), -1).tolist()
    grids = iter([] if prompts.image_grid_thw is None else prompts.image_grid_thw.tolist())
    return [
        Group(length, tuple(completions), tuple(tuple(next(grids)) for _ in range(images)), is_active)
        for length, completions, images, is_active in zip(
            prompts.attention_mask.sum(1).tolist(), lengths, prompts.images_per_prompt, active, strict=True
        )
    ]


@dataclass(frozen=True)
class StepFlops:
    """Operations that one rollout batch needs on this rank."""

    rollout: int
    reference: int
    train: tuple[int, ...]
    """One per optimizer step on the batch, ``num_iterations`` in all."""

    def of_step(self, iteration: int) -> int:
        """Operations of one optimizer step; the first (0) has rollout and reference as well."""
        return self.train[iteration] + (self.rollout + self.reference if iteration == 0 else 0)


def step_flops(cost: ModelCost, groups: Iterable[Group], *, reference: bool, num_iterations: int) -> StepFlops:
    """Operations of one rollout batch by phase.

    Args:
        reference: whether there is a reference policy (``beta > 0``); it scores active groups.
        num_iterations: mu.
    """
    rollout = referred = first = again = 0
    for group in groups:
        images = sum((cost.image(grid) for grid in group.images), Operations())
        prompt = cost.prompt(group.prompt)
        completions = sum((cost.completion(group.prompt, length) for length in group.completions), Operations())
        rollout += (images + prompt + completions).forward
        if not group.active:
            continue
        referred += (prompt + completions + images * cost.trainable_vision).reference
        first += completions.forward + (images + prompt + completions).backward
        again += (prompt + images * cost.trainable_vision).forward
    train = tuple(first + again * (iteration > 0) for iteration in range(num_iterations))
    return StepFlops(rollout, referred if reference else 0, train)


def decode_bytes(network: nn.Module) -> int:
    """Bytes of weights that each decoding step reads, whatever the number of rows.

    Decoder layers with the policy's adapters, final norm and LM head; of the embedding only a few rows are read unless
    it is the head. 4-bit weights count with their scales. Keys and values, which grow with rows, are left out.
    """
    decoder = network.model.language_model
    total = 0
    for part in (decoder.layers, decoder.norm, network.lm_head):
        for name, parameter in part.named_parameters():
            if ".reference." in name:
                continue
            total += parameter.numel() * parameter.element_size()
            state = getattr(parameter, "quant_state", None)  # only bitsandbytes' parameters have one
            if state is not None:
                total += sum(value.nbytes for value in state.as_dict().values() if isinstance(value, Tensor))
    return total


@torch.no_grad()
def matrix_peak(
    device: torch.device | str, dtype: torch.dtype, product: Callable[..., Tensor] = nn.functional.linear
) -> float:
    """Measured operations per second of square matrix products, the best of all sizes tried; takes some 0.2 s.

    Args:
        product: the fastest one in use, called as ``product(x, weight, None)``.
    """
    device, best, size, seconds = torch.device(device), 0.0, 256, 0.0
    while seconds < 0.01 and size <= 8192:  # larger ones are no faster
        # Random values: zeros cost a GPU less power, hence run faster than any real product.
        x, weight = torch.randn(2, size, size, device=device).to(dtype)
        seconds = _seconds(lambda x=x, weight=weight: product(x, weight, None), device)
        best = max(best, 2 * size**3 / seconds)
        size *= 2
    return best


@torch.no_grad()
def read_bandwidth(device: torch.device | str) -> float:
    """Measured bytes per second of reading memory, from a tensor that no cache holds."""
    device = torch.device(device)
    # Not zeros: the operating system may map all of those to one page, which a cache does hold.
    memory = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    return memory.nbytes / min(_seconds(memory.sum, device), _seconds(memory.amax, device))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest time that one run took in 40 ms of them, so that other work on the machine counts little."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    at_once = 8 if device.type == "cuda" else 1  # back to back, so that launching them does not count
    times: list[float] = []
    while len(times) < 3 or sum(times) < 0.04:
        wait()
        start = time.perf_counter()
        for _ in range(at_once):
            run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times) / at_once
