"""Operations are what torch counts, less what the algorithm does not need; the hand-worked numbers are of tiny models.

torch's counter sees products as they are computed: whole score matrices instead of their causal half, the first token's
logits for each of the G completions, and logits once more backward, where they are recomputed to save memory. Nothing
else differs, so every comparison below is exact.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medgrpo import flops
from medgrpo.flops import Group, ModelCost, Operations, decode_bytes, groups_of, matrix_peak, read_bandwidth, step_flops
from medgrpo.prefix import completion_hidden, encode, prepare, see, token_logps
from tests.tiny import FAMILIES, processor_of, prompt_batch, random_completions, tiny_policy

G, C = 3, 5
GRIDS = [[1, 12, 20], [1, 4, 6], [2, 10, 8]]
CPU = torch.device("cpu")


def policy_of(family: str, **options):
    """torch's counter does not know oneDNN's operator."""
    return tiny_policy(family, linear_implementation="torch", **options)


def counted(function) -> int:
    """Operations that torch sees. The plain attention kernel keeps its scores, the others compute them twice."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    # Older versions of transformers compute rotary angles as a matrix product: no part of the algorithm's arithmetic.
    modules = counter.get_flop_counts().items()
    return counter.get_total_flops() - sum(sum(ops.values()) for name, ops in modules if name.endswith("rotary_emb"))


def inputs(network, family: str, frozen_vision: bool):
    """One prompt with an image, so nothing is padded, and G completions of C tokens."""
    prompts = prepare(network, prompt_batch(family, (1,)), CPU, frozen_vision)
    return prompts, torch.randint(0, 200, (G, C)), torch.ones(G, C, dtype=torch.bool)


def score(network, prompts, ids, mask):
    """Log-probabilities of all tokens."""
    hidden = completion_hidden(network, encode(network, prompts), ids, mask)
    return token_logps(network, hidden.flatten(0, 1), ids.flatten(), 1.0, torch.tensor([], dtype=torch.long))[0]


def needed(cost: ModelCost, prompt: int) -> Operations:
    """Prompt and completions."""
    return cost.prompt(prompt) + cost.completion(prompt, C) * G


def unneeded(cost: ModelCost, prompt: int) -> Operations:
    """Pairs above the diagonal, and logits of the first token for all completions but one."""
    return cost.pair * (prompt * (prompt - 1) // 2 + G * (C - 1) * (C - 2) // 2) + cost.head * (G - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_image_is_what_torch_counts(family):
    """Blocks with windows (Qwen2.5-VL) and without, several images and frames, deepstack mergers (Qwen3-VL)."""
    network = policy_of(family, use_peft=False).network
    cost, tower = ModelCost.of(network), network.model.visual
    grids = torch.tensor(GRIDS)
    pixels = torch.randn(int(grids.prod(1).sum()), tower.patch_embed.proj.weight[0].numel())
    with torch.no_grad():
        total = counted(lambda: tower(pixels, grid_thw=grids))
    assert total == sum(cost.image(grid).forward for grid in GRIDS)
    assert cost.window_blocks == (1 if family == "qwen2_5_vl" else 0)


@pytest.mark.parametrize("use_peft", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_what_torch_counts(family, use_peft):
    policy = policy_of(family, use_peft=use_peft)
    cost = ModelCost.of(policy.network)
    prompts, ids, mask = inputs(policy.network, family, frozen_vision=True)
    length = prompts.input_ids.shape[1]
    expected = needed(cost, length) + unneeded(cost, length)
    with torch.no_grad():
        assert counted(lambda: score(policy.network, prompts, ids, mask)) == expected.forward
        with policy.as_reference():
            assert counted(lambda: score(policy.network, prompts, ids, mask)) == expected.reference
    assert (expected.reference < expected.forward) == use_peft


def test_reference_adapter_counts_in_the_reference_alone(tmp_path):
    policy_of("qwen2_vl", lora_r=4).save(tmp_path, processor_of("qwen2_vl"))
    policy, fresh = policy_of("qwen2_vl", adapter=str(tmp_path)), policy_of("qwen2_vl", lora_r=4)
    token, fresh_token = ModelCost.of(policy.network).token, ModelCost.of(fresh.network).token
    assert (token.forward, token.backward) == (fresh_token.forward, fresh_token.backward)
    assert token.reference == token.forward > fresh_token.reference
    assert decode_bytes(policy.network) == decode_bytes(fresh.network)


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_of_full_fine_tuning_is_what_torch_counts(family):
    policy = policy_of(family, use_peft=False, freeze_vision=False)
    cost = ModelCost.of(policy.network)
    prompts, ids, mask = inputs(policy.network, family, frozen_vision=False)
    length = prompts.input_ids.shape[1]
    image = cost.image(prompts.image_grid_thw[0].tolist())
    expected = needed(cost, length) + unneeded(cost, length) + image
    total = counted(lambda: score(policy.network, prompts, ids, mask).sum().backward())
    assert total == expected.forward + expected.backward + G * C * cost.head.forward


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_of_lora_is_what_torch_counts_but_for_the_first_inputs(family):
    """Frozen weights have one product instead of two.

    Nothing trains below the first layer's q, k and v, whose input gradients are counted nevertheless.
    """
    policy = policy_of(family, lora_r=4)
    cost = ModelCost.of(policy.network)
    prompts, ids, mask = inputs(policy.network, family, frozen_vision=True)
    length = prompts.input_ids.shape[1]
    first_inputs = (length + G * (C - 1)) * 2 * (64 * (64 + 32 + 32) + 3 * 64 * 4)
    expected = needed(cost, length) + unneeded(cost, length)
    total = counted(lambda: score(policy.network, prompts, ids, mask).sum().backward())
    assert total == expected.forward + expected.backward - first_inputs + G * C * cost.head.forward
    assert cost.head.backward == cost.head.forward
    assert cost.patch.backward == cost.merged.backward == cost.patch_pair.backward == 0


def test_lora_in_the_vision_tower_makes_it_train():
    cost = ModelCost.of(policy_of("qwen2_5_vl", lora_r=4, freeze_vision=False).network)
    assert cost.trainable_vision
    blocks = 2 * (4 * 64 * 64 + 3 * 64 * 256)  # 2 blocks of qkv, proj and the MLP
    adapters = 2 * 4 * ((64 + 192) + (64 + 64) + 3 * (64 + 256))
    embedding = 64 * 3 * 2 * 14 * 14
    assert cost.patch == Operations(
        2 * (embedding + blocks + adapters), 2 * (blocks + 2 * adapters), 2 * (embedding + blocks)
    )


def test_hand_worked_model():
    """Qwen2.5-VL: width 64, 4 heads of 16 on 2 key-value heads, MLP 256, 3 layers; 2 vision blocks, one windowed."""
    network = policy_of("qwen2_5_vl", lora_r=16).network
    cost = ModelCost.of(network)
    base = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256)
    adapters = 3 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 256))
    assert (base, adapters) == (184_320, 67_584)
    assert cost.token == Operations(2 * (base + adapters), 2 * (base + 2 * adapters), 2 * base)
    assert cost.pair == Operations(768, 1536, 768)
    head = 2 * 64 * network.lm_head.out_features
    assert cost.head == Operations(head, head, head)
    # 5 tokens, 15 pairs, 1 row of logits; then 2 of 3 tokens go in and see 6 and 7.
    assert cost.prompt(5).forward == 5 * 503_808 + 15 * 768 + head
    assert cost.completion(5, 3).forward == 2 * 503_808 + 13 * 768 + 2 * head
    assert cost.completion(5, 1) == Operations()
    # 12 x 4 patches are 6 x 2 image tokens, in windows of 4 x 2 and 2 x 2: 32 and 16 patches.
    patches, merged = 48 * 2 * (75_264 + 2 * 65_536), 12 * 2 * (256 * 256 + 256 * 64)
    image = patches + merged + 256 * (48**2 + 32**2 + 16**2)
    assert cost.image([1, 12, 4]) == Operations(image, 0, image)


def unit_cost(trainable_vision: bool) -> ModelCost:
    """Each kind of work has digits of its own."""
    return ModelCost(
        token=Operations(100, 190, 90),
        pair=Operations(),
        head=Operations(1, 2, 1),
        patch=Operations(10_000, 20_000 * trainable_vision, 9_000),
        merged=Operations(),
        patch_pair=Operations(),
        full_blocks=1,
        window_blocks=0,
        window=1,
        merge_size=2,
        trainable_vision=trainable_vision,
    )


GROUPS = [Group(3, (2, 3), ((1, 2, 2),)), Group(5, (1, 4), ((1, 2, 2), (1, 2, 2)), active=False)]


def test_phases_with_a_frozen_tower():
    """Group 1: 3 prompt and 1 + 2 completion tokens, 4 patches. Group 2, not trained on: 5 and 0 + 3, 8 patches."""
    step = step_flops(unit_cost(False), GROUPS, reference=True, num_iterations=3)
    assert step.rollout == (3 + 3) * 100 + (1 + 3) + 40_000 + (5 + 3) * 100 + (1 + 3) + 80_000
    assert step.reference == 6 * 90 + 4
    first = (300 + 3) + (6 * 190 + 4 * 2)
    assert step.train == (first, first + 301, first + 301)
    assert step.of_step(0) == step.rollout + step.reference + first
    assert step.of_step(2) == first + 301


def test_phases_with_a_tower_that_trains():
    step = step_flops(unit_cost(True), GROUPS, reference=True, num_iterations=2)
    assert step.reference == 6 * 90 + 4 + 36_000
    first = (300 + 3) + (6 * 190 + 4 * 2) + 80_000
    assert step.train == (first, first + 301 + 40_000)
    assert step_flops(unit_cost(True), GROUPS, reference=False, num_iterations=2).reference == 0


counts = st.integers(1, 40)
sides = st.integers(1, 9).map(lambda merged: 2 * merged)
completions = st.lists(counts, min_size=1, max_size=4).map(tuple)
images = st.lists(st.tuples(counts, sides, sides), max_size=3).map(tuple)
groups = st.builds(Group, counts, completions, images, st.booleans())
operations = st.builds(Operations, counts, counts, counts)
costs = st.builds(
    ModelCost,
    *[operations] * 6,
    full_blocks=counts,
    window_blocks=counts,
    window=counts,
    merge_size=st.just(2),
    trainable_vision=st.booleans(),
)


@given(costs, st.lists(groups, max_size=4), st.booleans(), st.integers(1, 3))
def test_batch_is_the_sum_of_its_groups(cost, batch, reference, mu):
    def step(some):
        return step_flops(cost, some, reference=reference, num_iterations=mu)

    whole, parts = step(batch), [step([group]) for group in batch]
    assert whole.rollout == sum(part.rollout for part in parts)
    assert whole.reference == sum(part.reference for part in parts)
    assert whole.train == tuple(sum(part.train[i] for part in parts) for i in range(mu))
    assert len(whole.train) == mu
    assert all(part.train == (0,) * mu for part, group in zip(parts, batch, strict=True) if not group.active)


@given(costs, counts, counts, counts)
def test_completions_of_a_group_share_its_prompt(cost, prompt, length, num_generations):
    def rollout(completions):
        return step_flops(cost, [Group(prompt, completions)], reference=False, num_iterations=1).rollout

    alone = cost.prompt(prompt).forward
    assert rollout((length,) * num_generations) - alone == num_generations * (rollout((length,)) - alone)


@given(costs, counts, counts)
def test_prompt_and_completion_are_one_causal_row(cost, prompt, length):
    """The last token is never fed, and each token but the prompt's is scored."""
    row = cost.prompt(prompt + length - 1) + cost.head * (length - 1)
    assert cost.prompt(prompt) + cost.completion(prompt, length) == row


@given(costs, counts, sides, sides)
def test_windows_that_hold_the_image_are_full_attention(cost, frames, height, width):
    full = replace(cost, full_blocks=cost.full_blocks + cost.window_blocks, window_blocks=0)
    large = replace(cost, window=max(height, width) // 2)
    assert large.image((frames, height, width)) == full.image((frames, height, width))


def test_sizes_of_a_batch():
    prompts = prompt_batch("qwen2_vl", (1, 0, 2))
    _, mask = random_completions("qwen2_vl", 6)
    first, second, third = groups_of(prompts, mask, [True, False, True])
    assert [g.prompt for g in (first, second, third)] == prompts.attention_mask.sum(1).tolist()
    assert [g.active for g in (first, second, third)] == [True, False, True]
    assert second.completions == (int(mask[2].sum()), int(mask[3].sum()))
    assert second.images == ()
    grids = [tuple(grid) for grid in prompts.image_grid_thw.tolist()]
    assert (first.images, third.images) == ((grids[0],), (grids[1], grids[2]))
    text = groups_of(prompt_batch("qwen2_vl", (0,)), mask, [True])
    assert text == [Group(text[0].prompt, tuple(mask.sum(1).tolist()))]


def test_images_of_a_batch_are_what_torch_counts():
    policy = policy_of("qwen2_5_vl")
    cost = ModelCost.of(policy.network)
    prompts = prompt_batch("qwen2_5_vl", (1, 0, 2))
    sizes = groups_of(prompts, torch.ones(3, 1, dtype=torch.bool), [True] * 3)
    images = sum(cost.image(grid).forward for group in sizes for grid in group.images)
    with torch.no_grad():
        assert counted(lambda: see(policy.network, prompts)) == images


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_reads_all_but_the_tower(family):
    network = policy_of(family).network
    adapters = sum(p.numel() for n, p in network.named_parameters() if "lora_" in n)
    language = sum(p.numel() for p in network.model.language_model.parameters())  # with the embedding: it is the head
    assert adapters == 67_584
    assert decode_bytes(network) == 4 * language
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach().clone())
    assert decode_bytes(network) == 4 * language
    assert decode_bytes(network.bfloat16()) == 2 * language


def test_four_bit_weights_count_with_their_scales():
    """Half a byte a weight, a byte for each 64, 4 bytes for each 64 * 256, and tables of 16 and 256 floats."""
    four, full = policy_of("qwen2_vl", quantize="nf4").network, policy_of("qwen2_vl").network
    sizes = 3 * [64 * 64, 64 * 64, 64 * 32, 64 * 32, 64 * 256, 64 * 256, 64 * 256]
    packed = sum(n // 2 + n // 64 + 4 + 4 * (16 + 256) for n in sizes)
    assert decode_bytes(four) == decode_bytes(full) - 4 * sum(sizes) + packed
    assert ModelCost.of(four) == ModelCost.of(full)


def test_peak_is_that_of_the_product_in_use():
    shapes = []

    def slow(x, weight, bias):
        assert bias is None
        shapes.append((x.dtype, *x.shape, *weight.shape))
        time.sleep(0.02)

    rate = matrix_peak("cpu", torch.bfloat16, slow)
    assert 2 * 256**3 / 0.04 < rate < 2 * 256**3 / 0.02
    assert set(shapes) == {(torch.bfloat16, 256, 256, 256, 256)}


def test_peak_tries_larger_products_while_they_are_quick():
    def alike(x, weight, bias):
        time.sleep(0.001 * (x.shape[0] / 256) ** 2)  # the larger, the better, to 16 ms for 1024

    assert matrix_peak("cpu", torch.float32, alike) > 2 * 1024**3 / 0.03


def test_bandwidth_is_bytes_over_seconds(monkeypatch):
    monkeypatch.setattr(flops, "_seconds", lambda read, device: 0.5)
    assert read_bandwidth("cpu") == 2**28 / 0.5


def test_this_machine_has_a_peak_and_a_bandwidth():
    assert 1e8 < matrix_peak("cpu", torch.float32) < 1e15
    assert 1e8 < read_bandwidth("cpu") < 1e14
