"""The probe runs the largest step that the settings allow, and leaves no trace."""

import pytest
import torch
from test_module import batch, make_module
from tiny import tiny_policy

from medgrpo.limits import Limits
from medgrpo.probe import MemoryProbe, worst_case
from medgrpo.types import SettingsError


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.1, "num_iterations": 2}, {"max_tokens_per_pass": 20}, {"accumulate": 2}, {"decode": "static"}],
    ids=str,
)
def test_worst_case_is_of_full_length_and_changes_nothing(options, monkeypatch):
    decode = options.pop("decode", "eager")
    module = make_module(policy=tiny_policy(double=True, decode_implementation=decode), **options)
    keys, scored = [], []
    monkeypatch.setattr(
        "medgrpo.module.score",
        lambda model, prefix, ids, *rest: scored.append(ids.shape) or score(model, prefix, ids, *rest),
    )
    from medgrpo.prefix import score

    module.policy.network.model.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: keys.append(kwargs["attention_mask"].shape[-1]), with_kwargs=True
    )
    before = {n: p.clone() for n, p in module.policy.named_parameters()}
    state = torch.get_rng_state()
    prompts = batch()
    worst_case(module, prompts)
    assert max(keys) >= prompts.input_ids.shape[1] + 7  # 8 tokens: the last is never fed
    assert {shape[1] for shape in scored} == {8}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in module.policy.named_parameters())
    assert module.statistics.pop() == {}
    assert (module.rollouts, module.num_tokens) == (None, 0)


class FakeTrainer:
    strategy = None

    class datamodule:
        longest_batch = staticmethod(batch)


def test_it_reports_and_warns(monkeypatch, caplog):
    module, said = make_module(), []
    monkeypatch.setattr("medgrpo.probe.rank_zero_info", lambda text: said.append(("info", text)))
    monkeypatch.setattr("medgrpo.probe.rank_zero_warn", lambda text: said.append(("warn", text)))
    monkeypatch.setattr("medgrpo.probe.peak_memory_gib", lambda: 3.0)
    for there in (10.0, 3.1):
        monkeypatch.setattr("medgrpo.probe.memory_gib", lambda on_gpu, there=there: there)
        MemoryProbe().on_train_start(FakeTrainer, module)
    assert [kind for kind, _ in said] == ["info", "warn"]
    assert "4 prompts of up to 44 tokens, 4 completions each of 8 tokens" in said[0][1]
    assert "max_tokens_per_pass" in said[1][1]
    MemoryProbe(enabled=False).on_train_start(FakeTrainer, module)
    assert len(said) == 2


def test_a_step_that_does_not_fit_is_an_error_that_names_the_options(monkeypatch):
    def too_large(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("medgrpo.probe.worst_case", too_large)
    with pytest.raises(SettingsError, match="gradient_checkpointing"):
        MemoryProbe().on_train_start(FakeTrainer, make_module())


def test_shares_of_the_limits_by_hand(monkeypatch):
    module = make_module(beta=0.1)
    rollouts = module.collect(batch(), 0)
    monkeypatch.setattr("medgrpo.limits.matrix_peak", lambda *args: 1e9)
    monkeypatch.setattr("medgrpo.limits.read_bandwidth", lambda *args: 1e6)
    limits = Limits.measure(module.policy, bfloat16=False)
    timing = {"step_time": 4.0, "timing_s/train": 1.0}
    shares = limits.shares(rollouts, timing, decode_seconds=2.0, iteration=0, num_iterations=1)
    slower = limits.shares(rollouts, {"step_time": 8.0, "timing_s/train": 1.0}, 4.0, 0, 1)
    assert shares["perf/mfu"] == pytest.approx(2 * slower["perf/mfu"])
    assert 0 < shares["perf/mfu_train"] < 4 * shares["perf/mfu"]  # rollout and reference are more than nothing
    steps = rollouts.completions.ids.shape[1] - 1
    assert shares["perf/decode_bandwidth"] == pytest.approx(steps * limits.decode_bytes / 1e6 / 2.0)
    assert slower["perf/decode_bandwidth"] == pytest.approx(shares["perf/decode_bandwidth"] / 2)
