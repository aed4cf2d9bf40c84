"""Health lines: each sign is made to happen, said once, and not said without it."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from test_cli import scalars, write_config, write_data
from test_module import ConstantReward, G, LengthReward, batch, make_module

from medgrpo.health import Health, figures
from medgrpo.trainer_cli import main
from medgrpo.types import SettingsError

DIFFERENCE = "sampling/sampling_logp_difference"
FINE = {
    "reward": 0.6,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 100.0,
    "completions/max_length": 128.0,
    "completions/unparsed": 0.2,
    "rewards/accuracy_reward/mean": 0.5,
    "rewards/accuracy_reward/std": 0.4,
    "rewards/format_reward/mean": 0.1,
    "rewards/format_reward/std": 0.2,
    f"{DIFFERENCE}/mean": 1e-6,
    f"{DIFFERENCE}/max": 1e-5,
    "kl": 0.1,
}
EQUAL = {"frac_reward_zero_std": 1.0}
CUT = {"completions/clipped_ratio": 1.0}
UNPARSED = {"completions/unparsed": 0.51}
SHORT = {"completions/mean_length": 24.9}  # a quarter of 100 is 25
APART = {f"{DIFFERENCE}/mean": 1.1e-3, f"{DIFFERENCE}/max": 2.5}
FAR = {"kl": 10.5}


def health(**options) -> Health:
    return Health(**({"patience": 3, "max_logp_difference": 1e-3} | options))


def said(watch: Health, *steps: dict[str, float]) -> list[tuple[int, str]]:
    """What is said of rollout batches that are ``FINE`` but for these figures: (which of them, message)."""
    return [(i, message) for i, changes in enumerate(steps) for message in watch.look(FINE | changes)]


def test_nothing_is_said_of_a_run_that_is_well():
    assert said(health(), *[{}] * 10) == []
    at_the_limits = {
        "frac_reward_zero_std": 0.99,
        "completions/clipped_ratio": 0.99,
        "completions/unparsed": 0.5,
        f"{DIFFERENCE}/mean": 1e-3,
        "kl": 10.0,
    }
    assert said(health(), {}, *[at_the_limits | {"completions/mean_length": 25.0}] * 10) == []


@pytest.mark.parametrize(
    ("sign", "wait", "words"),
    [
        (EQUAL, 3, ["equal rewards", "accuracy_reward 0.5, format_reward 0.1", "20%", "model.temperature"]),
        (CUT, 3, ["cut off, at 128 tokens", "model.max_completion_length", "data.prompt"]),
        (UNPARSED, 3, ["51%", "health.max_unparsed", "10% cut off", "<answer>", "FormatReward"]),
        (SHORT, 3, ["24.9 tokens", "25%", "100.0 at the start", "from 0.6 to 0.6", "model.beta"]),
        (APART, 1, ["0.0011", "2.5 at most", "model.policy.decode_implementation=eager", "float32"]),
        (FAR, 1, ["KL 10.5", "health.max_kl 10", "lr", "model.beta"]),
    ],
    ids=["equal_rewards", "truncated", "unparsed", "short", "sampler", "kl"],
)
def test_a_sign_that_lasts_is_said_once_with_what_to_change(sign, wait, words):
    if wait > 1:  # a batch in between begins the count anew
        assert said(health(), {}, sign, sign, {}, sign, sign) == []
    ((when, message),) = said(health(), {}, *[sign] * 8, {}, *[sign] * 8)
    assert when == wait
    for word in words:
        assert word in message, message


def test_signs_are_said_independently():
    both = EQUAL | UNPARSED
    assert [when for when, _ in said(health(), {}, UNPARSED, both, both, both, both)] == [3, 4]


def test_without_a_reference_equal_rewards_leave_no_gradient_at_all():
    ((_, with_kl),) = said(health(), *[EQUAL] * 3)
    assert "only the KL term" in with_kl
    plain = {name: value for name, value in (FINE | EQUAL).items() if name != "kl" and DIFFERENCE not in name}
    watch = health()
    (without,) = [message for _ in range(3) for message in watch.look(plain)]
    assert "no step had a gradient" in without


def test_a_reward_that_never_varied_is_named_but_not_one_that_all_earn_at_last():
    never = {"rewards/format_reward/std": 1e-9}  # rounding
    ((when, message),) = said(health(), *[never] * 8)
    assert (when, "from format_reward 0.1:" in message) == (2, True)
    assert said(health(), {}, *[never] * 8) == []
    ((_, message),) = said(health(), *[never | EQUAL] * 8)
    assert "equal rewards" in message


def test_a_resumed_run_says_what_an_uninterrupted_one_says(tmp_path):
    signs = [{}, SHORT | UNPARSED, FAR, SHORT | UNPARSED, SHORT | EQUAL, SHORT | UNPARSED, FAR, *[UNPARSED | EQUAL] * 4]
    steps = [changes | {"rewards/format_reward/std": 0.0} for changes in signs]
    whole = said(health(), *steps)
    assert len(whole) == 5
    for cut in range(len(steps)):
        before = health()
        first = said(before, *steps[:cut])
        torch.save(before.state_dict(), tmp_path / "state")
        after = health()
        after.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert first + [(cut + when, message) for when, message in said(after, *steps[cut:])] == whole


def test_settings_are_checked():
    with pytest.raises(SettingsError, match="health.patience"):
        Health(patience=0)


@pytest.mark.parametrize(
    ("precision", "dtype", "limit"),
    [
        ("32-true", torch.float32, 1e-3),
        ("bf16-mixed", torch.float32, 0.05),
        ("32-true", torch.bfloat16, 0.05),
        ("64-true", torch.float64, 1e-3),
    ],
)
def test_what_is_rounding_depends_on_the_precision(precision, dtype, limit):
    module = SimpleNamespace(policy=SimpleNamespace(network=SimpleNamespace(dtype=dtype)))
    watch = Health()
    watch.on_train_start(SimpleNamespace(precision=precision), module)
    assert watch.max_logp_difference == limit
    given = health(max_logp_difference=0.2)
    given.on_train_start(SimpleNamespace(precision=precision), module)
    assert given.max_logp_difference == 0.2


def test_figures_are_those_of_all_ranks():
    module = make_module(beta=0.1, rewards=[LengthReward(), ConstantReward()])
    rollouts = module.rollouts = module.collect(batch(), 0)
    module.micro_loss(rollouts, 0, 1)
    rollouts.texts[:3] = ["<answer>A</answer>", "<answer>A</answer><answer>B</answer>", "<answer>a cyst</answer>"]
    alone = figures(module)
    tokens = module.statistics.sums["tokens"]
    assert alone["completions/unparsed"] == pytest.approx(1 - 1 / (4 * G))  # A; two blocks; names no option
    assert alone["kl"] == pytest.approx(float(module.statistics.sums["kl"] / tokens))
    assert alone["kl"] > 0
    assert alone["reward"] == float(module.rollout_values["reward"])
    assert alone[f"{DIFFERENCE}/mean"] < 1e-6

    # Another rank: 16 completions, all parsed; as many tokens with a KL of 3 and a difference of 5 each, 7 at most.
    other = torch.tensor([0.0, 16.0, tokens, 3 * tokens, 5 * tokens, 7.0])
    module.all_gather = lambda row: torch.stack([row, other])
    both = figures(module)
    assert both["completions/unparsed"] == pytest.approx(15 / 32)
    assert both["kl"] == pytest.approx((alone["kl"] + 3) / 2)
    assert both[f"{DIFFERENCE}/mean"] == pytest.approx(2.5, rel=1e-4)
    assert both[f"{DIFFERENCE}/max"] == 7
    module.statistics.pop()
    module.all_gather = lambda row: row[None]
    assert not {"kl", f"{DIFFERENCE}/mean"} & figures(module).keys()  # no group had a gradient
    module.statistics.add({"tokens": tokens}, {})
    module.beta = 0.0
    assert "kl" not in figures(module)


def fit(folder, **changes) -> list[str]:
    """Health lines of a short run."""
    options = {"trainer__max_steps": 6, "model__lr_scheduler": None, "health__patience": 3} | changes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", "--config", write_config(folder, **options)])
    return [str(w.message) for w in caught if str(w.message).startswith("health: ")]


CONSTANT = [{"class_path": "test_module.ConstantReward"}]


def test_a_run_with_a_constant_reward_says_so_once(tmp_path, caplog):
    write_data(tmp_path)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        lines = fit(tmp_path, model__rewards=CONSTANT, model__beta=0.0, trainer__accumulate_grad_batches=2)
    equal = [line for line in lines if "equal rewards" in line]
    assert len(equal) == 1, lines
    assert "no step had a gradient" in equal[0]
    assert "constant_reward 1 on average; 100% of the completions unparsed" in equal[0]
    for option in ("model.temperature", "model.num_generations", "data.prompt", "data.difficulty", "data.pass_count"):
        assert option in equal[0]
    assert sum("no answer can be read" in line for line in lines) == 1  # random weights write no answer block
    logged = scalars(tmp_path / "runs/run")
    assert [(e.step, e.value) for e in logged.Scalars("completions/unparsed")] == [(step, 1.0) for step in range(6)]
    assert sum("near 0" in record.message for record in caplog.records) == 1
    assert "loss/text_summary" in logged.Tags()["tensors"]


def test_steps_after_the_first_on_a_batch_are_not_looked_at(tmp_path):
    """There the policy has moved away from the sampler; and patience counts rollout batches."""
    write_data(tmp_path)
    changes = {
        "model__num_iterations": 3,
        "checkpoint__every_n_train_steps": 3,
        "health__max_logp_difference": 1e-3,
        "model__beta": 0.0,
        "model__optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}},
    }
    assert fit(tmp_path, **changes) == []
    difference = [e.value for e in scalars(tmp_path / "runs/run").Scalars(f"{DIFFERENCE}/mean")]
    assert max(difference) > 1e-3
