"""Group-relative advantages: hand-worked numbers and laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.advantages import group_advantages, zero_variance

SCALES = ["group", "batch", "none"]


@st.composite
def rewards_and_size(draw):
    size = draw(st.integers(2, 6))
    groups = draw(st.integers(1, 5))
    values = draw(st.lists(st.integers(0, 8), min_size=size * groups, max_size=size * groups))
    return torch.tensor(values, dtype=torch.float32) / 4, size


def test_group_scale_by_hand():
    # means 0.5 and 1; squared deviations sum to 1 and 2, over G - 1 = 3: std 0.57735 and 0.81650
    advantages = group_advantages(torch.tensor([1.0, 0, 0, 1, 2, 1, 1, 0]), 4)
    a, b = 0.5 / (0.5773503 + 1e-4), 1 / (0.8164966 + 1e-4)
    torch.testing.assert_close(advantages, torch.tensor([a, -a, -a, a, b, 0, 0, -b]))
    assert advantages.dtype == torch.float32


def test_none_only_centres():
    assert group_advantages(torch.tensor([1.0, 0, 4, 2]), 2, "none").tolist() == [0.5, -0.5, 1.0, -1.0]


def test_batch_scale_by_hand():
    # all ranks: 1, 0, 2, 1; mean 1, squared deviations sum to 2, over 3: std 0.81650
    advantages = group_advantages(torch.tensor([1.0, 0]), 2, "batch", batch_rewards=torch.tensor([[1.0, 0], [2.0, 1]]))
    a = 0.5 / (0.8164966 + 1e-4)
    torch.testing.assert_close(advantages, torch.tensor([a, -a]))


def test_batch_scale_of_one_rank_takes_its_own_rewards():
    rewards = torch.tensor([1.0, 0, 2, 1])
    assert torch.equal(group_advantages(rewards, 2, "batch"), group_advantages(rewards, 2, "batch", rewards))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1e6 / 3])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(scale, value, size):
    rewards = torch.cat([torch.full((size,), value), torch.arange(float(size))])
    assert group_advantages(rewards, size, scale)[:size].tolist() == [0.0] * size


def test_zero_variance():
    assert zero_variance(torch.tensor([1.0, 1, 0, 1, 0, 0]), 2).tolist() == [True, False, True]
    assert zero_variance(torch.tensor([1.0, 1, 0, 1, 0, 0]), 3).tolist() == [False, False]


@settings(deadline=None)  # the clock of a shared machine proves nothing
@given(rewards_and_size(), st.sampled_from(SCALES))
def test_sums_to_zero_in_each_group(case, scale):
    rewards, size = case
    sums = group_advantages(rewards, size, scale).view(-1, size).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(rewards_and_size(), st.sampled_from(SCALES), st.integers(-8, 8))
def test_shift_changes_nothing(case, scale, shift):
    rewards, size = case
    moved = group_advantages(rewards + shift, size, scale)
    torch.testing.assert_close(moved, group_advantages(rewards, size, scale), atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(rewards_and_size(), st.sampled_from(SCALES), st.randoms())
def test_groups_may_come_in_any_order(case, scale, random):
    rewards, size = case
    order = list(range(len(rewards) // size))
    random.shuffle(order)
    permuted = group_advantages(rewards.view(-1, size)[order].flatten(), size, scale).view(-1, size)
    torch.testing.assert_close(permuted, group_advantages(rewards, size, scale).view(-1, size)[order])


@settings(deadline=None)
@given(rewards_and_size(), st.sampled_from(["group", "batch"]))
def test_arithmetic_of_trl(case, scale):
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    rewards, size = case
    groups = rewards.view(-1, size)
    std = nanstd(groups, dim=1).repeat_interleave(size) if scale == "group" else nanstd(rewards)
    expected = (rewards - groups.mean(1).repeat_interleave(size)) / (std + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, size, scale), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "scale", "message"),
    [
        (1, "group", "num_generations: expected at least 2.*got 1"),
        (4, "group", "num_generations: 4 does not divide 6"),
        (3, "std", "scale_rewards: expected group, batch or none; got 'std'"),
    ],
)
def test_bad_settings(size, scale, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(torch.zeros(6), size, scale)
