"""A rollout batch goes through a checkpoint and is the same again."""

from dataclasses import fields

import pytest
import torch
from test_module import batch, make_module

from medgrpo.prefix import prepare
from medgrpo.types import Rollouts, SettingsError
from medgrpo.unfinished import gathered, of_rank, pack, unpack

OPTIONS = {"num_generations": 4, "beta": 0.1}
VALUES = {"reward": torch.tensor(0.25), "reward_std": torch.tensor(float("nan"))}


@pytest.fixture(scope="module")
def drawn():
    module = make_module(num_iterations=2, beta=0.1)
    rollouts = module.collect(batch(), 0)
    module.micro_loss(rollouts, 0, 1)
    return module, rollouts


def test_a_rollout_batch_is_the_same_again(drawn, tmp_path):
    module, rollouts = drawn
    torch.save(pack(rollouts, VALUES, 7, OPTIONS), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    prompts = module.policy(prepare, batch(), module.device, True)
    again = unpack(state, prompts, OPTIONS)
    assert again.prompts is prompts
    assert again.prefix is None
    assert again.completions.ids.tolist() == rollouts.completions.ids.tolist()
    for field in fields(Rollouts):
        one, other = getattr(again, field.name), getattr(rollouts, field.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other), field.name
    assert not again.old_logps.isnan().any()
    assert again.active == rollouts.active
    assert again.texts == rollouts.texts
    assert state["tokens"] == 7
    assert state["values"]["reward"] == 0.25
    assert torch.equal(module.micro_loss(again, 0, 1), module.micro_loss(rollouts, 0, 1))


def test_what_is_packed_changes_no_more(drawn):
    _, rollouts = drawn
    state = pack(rollouts, VALUES, 7, OPTIONS)
    before = state["rollouts"]["old_logps"].clone()
    kept = rollouts.old_logps.clone()
    rollouts.old_logps.zero_()
    assert torch.equal(state["rollouts"]["old_logps"], before)
    rollouts.old_logps.copy_(kept)


def test_other_prompts_are_refused(drawn):
    _, rollouts = drawn
    state = pack(rollouts, VALUES, 7, OPTIONS)
    with pytest.raises(SettingsError, match="r0, r1, r2, r3, and the training data now has r1, r0"):
        unpack(state, batch().select([1, 0]), OPTIONS)


def test_other_options_are_refused(drawn):
    _, rollouts = drawn
    state = pack(rollouts, VALUES, 7, OPTIONS)
    with pytest.raises(SettingsError, match=r"model\.num_generations was 4, is 8: go on"):
        unpack(state, batch(), OPTIONS | {"num_generations": 8})


def test_each_rank_takes_its_own_part():
    states = [{"num_tokens": 5, "unfinished": {"rank": rank}} for rank in range(2)]
    assert of_rank(states, 1, 2)["unfinished"] == {"rank": 1}
    with pytest.warns(UserWarning, match="of 2 ranks, and now there are 1"):
        assert of_rank(states, 0, 1) == {"num_tokens": 5}
    counts = {"num_tokens": 5}
    assert gathered(counts, 2) == [counts]  # the same on all ranks: nothing to exchange
    assert of_rank([counts], 1, 2) == counts
