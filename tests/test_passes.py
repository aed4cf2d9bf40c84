"""Cutting a micro-batch into passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.passes import cut, sum_of_losses


def test_cut_by_hand():
    prompts = torch.tensor([10, 20, 10])
    lengths = torch.tensor([[4, 5], [1, 2], [5, 1]])  # rows of a group are padded to its longest, and to each other
    assert cut([0, 1, 2], prompts, lengths, None) == [[0, 1, 2]]
    # 0 and 2 together: 2 * (10 + 2 * 5) = 40; with 1: 3 * (20 + 2 * 5) = 90
    assert cut([0, 1, 2], prompts, lengths, 90) == [[0, 1, 2]]
    assert cut([0, 1, 2], prompts, lengths, 89) == [[0, 2], [1]]
    assert cut([0, 1, 2], prompts, lengths, 39) == [[0], [2], [1]]
    assert cut([0, 1, 2], prompts, lengths, 1) == [[0], [2], [1]]
    assert cut([], prompts, lengths, 1) == cut([], prompts, lengths, None) == []


@given(st.data())
def test_every_group_is_in_one_pass_and_passes_of_several_fit(data):
    num_prompts, num_generations = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    numbers = st.integers(1, 50)
    prompts = torch.tensor(data.draw(st.lists(numbers, min_size=num_prompts, max_size=num_prompts)))
    size = num_prompts * num_generations
    lengths = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size))).view(num_prompts, -1)
    groups = data.draw(st.lists(st.integers(0, num_prompts - 1), unique=True))
    budget = data.draw(st.integers(1, 1000))
    passes = cut(groups, prompts, lengths, budget)
    assert sorted(p for groups in passes for p in groups) == sorted(groups)
    for part in passes:
        padded = len(part) * int(prompts[part].max() + num_generations * lengths[part].max())
        assert len(part) == 1 or padded <= budget


def test_sum_of_losses_has_the_value_and_the_gradient_of_the_plain_sum():
    x, y, unused = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 5.0))
    total = sum_of_losses([lambda: x**2, lambda: x * y], [x, y, unused])
    assert total.item() == 10
    (total * 10).backward()
    assert (x.grad, y.grad, unused.grad) == (70, 20, 0)  # 10 * (2 x + y), 10 * x


def test_a_failing_loss_fails():
    with pytest.raises(ZeroDivisionError):
        sum_of_losses([lambda: 1 / 0], [torch.tensor(1.0, requires_grad=True)])
