"""Cutting a micro-batch into passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.passes import cut_completions, cut_prompts, sum_of_losses


def test_cuts_by_hand():
    prompts = torch.tensor([10, 20, 9])
    assert cut_prompts([0, 1, 2], prompts, None) == [[0, 1, 2]]
    assert cut_prompts([0, 1, 2], prompts, 60) == [[0, 1, 2]]  # 3 * 20: padded to the longest
    assert cut_prompts([0, 1, 2], prompts, 59) == [[0, 1], [2]]
    assert cut_prompts([0, 1, 2], prompts, 39) == [[1], [0, 2]]
    assert cut_prompts([0, 2], prompts, 1) == [[0], [2]]
    assert cut_prompts([], prompts, 1) == cut_prompts([], prompts, None) == []

    lengths = torch.tensor([[4, 5], [1, 2], [5, 1]])
    assert cut_completions([0, 1, 2], lengths, None) == [([0, 1, 2], [0, 1, 2, 3, 4, 5])]
    assert cut_completions([0, 1, 2], lengths, 30) == [([0, 1, 2], [0, 1, 2, 3, 4, 5])]
    assert cut_completions([0, 1, 2], lengths, 20) == [([0, 2], [0, 1, 4, 5]), ([1], [2, 3])]
    assert cut_completions([0, 1], lengths, 9) == [([0], [0]), ([0], [1]), ([1], [2, 3])]
    assert cut_completions([1], lengths, 1) == [([1], [2]), ([1], [3])]


@given(st.data())
def test_all_is_in_one_place_and_what_was_put_together_fits(data):
    num_prompts, num_generations = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    numbers = st.integers(1, 50)
    prompts = torch.tensor(data.draw(st.lists(numbers, min_size=num_prompts, max_size=num_prompts)))
    size = num_prompts * num_generations
    lengths = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size))).view(num_prompts, -1)
    groups = data.draw(st.lists(st.integers(0, num_prompts - 1), unique=True))
    budget = data.draw(st.integers(1, 1000))

    parts = cut_prompts(groups, prompts, budget)
    assert sorted(p for part in parts for p in part) == sorted(groups)
    assert all(len(part) == 1 or len(part) * prompts[part].max() <= budget for part in parts)

    pieces = cut_completions(groups, lengths, budget)
    wanted = sorted(p * num_generations + g for p in groups for g in range(num_generations))
    assert sorted(row for _, rows in pieces for row in rows) == wanted
    for part, rows in pieces:
        assert [row // num_generations for row in rows] == [p for p in part for _ in range(len(rows) // len(part))]
        assert len(rows) == 1 or len(rows) * lengths.flatten()[rows].max() <= budget


def test_sum_of_losses_has_the_value_and_the_gradient_of_the_plain_sum():
    x, y, unused = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 5.0))
    total = sum_of_losses([lambda: x**2, lambda: x * y], [x, y, unused])
    assert total.item() == 10
    (total * 10).backward()
    assert (x.grad, y.grad, unused.grad) == (70, 20, 0)  # 10 * (2 x + y), 10 * x


def test_sum_of_losses_passes_its_gradient_on_through_leaves():
    x = torch.tensor(2.0, requires_grad=True)
    square = x**2
    leaf = square.detach().requires_grad_()
    sum_of_losses([lambda: leaf * 3, lambda: leaf**2], [square], [leaf]).backward()
    assert x.grad == (3 + 2 * 4) * 4


def test_a_failing_loss_fails():
    with pytest.raises(ZeroDivisionError):
        sum_of_losses([lambda: 1 / 0], [torch.tensor(1.0, requires_grad=True)])


def test_without_losses_all_gradients_are_zero():
    x = torch.ones(2, requires_grad=True)
    sum_of_losses([], [x]).backward()
    assert x.grad.tolist() == [0, 0]


def test_gradients_are_handed_over_without_a_copy():
    x = torch.ones(2, requires_grad=True)
    total = sum_of_losses([lambda: (x**2).sum()], [x])
    kept = total.grad_fn.gradients[0].data_ptr()
    total.backward()
    assert x.grad.data_ptr() == kept
