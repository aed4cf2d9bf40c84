"""Features kept across epochs are those that the tower would give again."""

import pytest
import torch
from test_module import batch, make_module
from tiny import FAMILIES, prompt_batch, tiny_policy

from medgrpo.prefix import prepare, see
from medgrpo.types import SettingsError
from medgrpo.vision_cache import VisionCache

CPU = torch.device("cpu")


def count_images(policy) -> list[int]:
    """Images that went through the tower, one entry per call."""
    seen: list[int] = []
    policy.network.model.visual.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_towers_and_each_image_is_seen_once(family):
    policy = tiny_policy(family, double=True)
    prompts = prompt_batch(family, (1, 0, 2), dtype=torch.float64)
    expected = see(policy.network, prompts)
    seen, cache = count_images(policy), VisionCache(2**30)
    for some, new in ((prompts.select([2, 1]), [2]), (prompts, [2, 1]), (prompts, [2, 1])):
        got = prepare(policy.network, some, CPU, frozen_vision=True, look=cache.features_of).vision
        assert seen == new
    assert torch.allclose(got.embeds, expected.embeds, atol=1e-9)
    assert len(got.deepstack) == len(expected.deepstack)
    for ours, theirs in zip(got.deepstack, expected.deepstack, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_a_tower_that_trains_has_nothing_to_keep():
    with pytest.raises(SettingsError, match="freeze_vision"):
        make_module(policy=tiny_policy(use_peft=False, freeze_vision=False), vision_cache_gib=1.0)


def test_a_second_rollout_on_the_same_images_does_not_look_again():
    module = make_module(vision_cache_gib=1.0)
    seen = count_images(module.policy)
    first, second = (module.collect(batch(), 0) for _ in range(2))
    assert seen == [4]
    assert torch.equal(first.completions.ids, second.completions.ids)


def test_it_stays_within_its_memory_and_zero_keeps_nothing():
    policy = tiny_policy()
    prompts = prompt_batch("qwen2_5_vl", (1, 0, 2))
    full = VisionCache(2**30)
    full.features_of(policy.network, prompts)
    sizes = [sum(part.nbytes for part in parts) for parts in full.features.values()]
    assert full.num_bytes == sum(sizes)
    tight = VisionCache(sum(sizes) - 1)
    tight.features_of(policy.network, prompts)
    assert len(tight.features) == 2
    assert tight.num_bytes <= tight.max_bytes
    none, seen = VisionCache(0), count_images(policy)
    for _ in range(2):
        none.features_of(policy.network, prompts)
    assert (none.features, seen) == ({}, [3, 3])
