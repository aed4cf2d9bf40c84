"""Logged figures, worked by hand."""

import pytest
import torch

from medgrpo.metrics import PassStatistics, Timer, rollout_metrics


def test_rollout_metrics():
    values = rollout_metrics(
        rewards=torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]),
        names=["a", "b"],
        total=torch.tensor([1.0, 0.0, 2.0, 2.0]),
        lengths=torch.tensor([2, 4, 6, 8]),
        finished=torch.tensor([1.0, 1.0, 0.0, 1.0]),
        num_generations=2,
    )
    assert {name: round(value.item(), 4) for name, value in values.items()} == {
        "reward": 1.25,
        "reward_std": 0.3536,  # of the groups: 0.7071 and 0
        "frac_reward_zero_std": 0.5,
        "completions/mean_length": 5.0,
        "completions/min_length": 2.0,
        "completions/max_length": 8.0,
        "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": 4.6667,
        "completions/min_terminated_length": 2.0,
        "completions/max_terminated_length": 8.0,
        "rewards/a/mean": 0.75,
        "rewards/a/std": 0.5,
        "rewards/b/mean": 0.5,
        "rewards/b/std": 0.5774,
    }


def test_pass_statistics_do_not_depend_on_the_cut():
    statistics = PassStatistics()
    statistics.add({"tokens": torch.tensor(4), "kl": torch.tensor(2.0)}, {"d": torch.tensor(0.5)})
    statistics.add({"tokens": torch.tensor(1), "kl": torch.tensor(3.0)}, {"d": torch.tensor(0.2)})
    assert {name: value.item() for name, value in statistics.pop().items()} == {"kl": 1.0, "d": 0.5}
    assert statistics.pop() == {}


def test_timer_adds_up_phases_and_starts_anew(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 4.0, 5.0, 10.0, 20.0])
    monkeypatch.setattr("medgrpo.metrics.now", lambda: next(clock))
    monkeypatch.setattr("medgrpo.metrics.time.perf_counter", lambda: next(clock))
    timer = Timer()
    for _ in range(2):
        with timer("rollout"):
            pass
    assert timer.pop() == pytest.approx({"timing_s/rollout": 3.0, "step_time": 10.0})
    assert timer.pop() == pytest.approx({"step_time": 10.0})
