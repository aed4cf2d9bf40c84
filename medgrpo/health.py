"""Health lines: what a training that goes wrong looks like, said once while it goes wrong, with what to change."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from medgrpo.answers import extract
from medgrpo.types import PromptBatch, SettingsError

DIFFERENCE = "sampling/sampling_logp_difference"
ROUNDING_32, ROUNDING_16 = 1e-3, 0.05
"""Mean differences of log-probabilities that are well above the rounding of computations in 32 and in 16 bits."""

AT_ONCE = ("sampler", "kl")
"""Signs that need not last: what they count has been averaged over all tokens of a rollout batch."""

NEAR_ZERO = (
    "loss: on policy it stays near 0 (plus beta times kl), however much is learned: ratios are 1, and advantages of "
    "a group add up to 0. What trains is its gradient: look at reward, grad_norm and frac_reward_zero_std instead"
)


class Health(Callback):
    """Warns, once per run and sign, of what makes a training learn nothing or the wrong thing; changes nothing.

    It looks at each rollout batch, on the first optimizer step taken on it, over all ranks, and adds
    ``completions/unparsed`` to what is logged of it: the share from which no answer can be read by the reward's rule.

    Args:
        patience: rollout batches in a row that show a sign before it is said; a KL or a difference of
            log-probabilities above its limit is said at once.
        max_unparsed: share of completions without a readable answer.
        max_logp_difference: mean over tokens of the absolute difference between the log-probabilities of the sampler
            and of the first pass, in nats; None is 0.001 where all is computed in 32 bits, else 0.05.
        min_length_share: mean length of completions, as a share of that of the run's first rollout batch.
        max_kl: mean over tokens of the KL to the reference, in nats.
    """

    def __init__(
        self,
        patience: int = 20,
        max_unparsed: float = 0.5,
        max_logp_difference: float | None = None,
        min_length_share: float = 0.25,
        max_kl: float = 10.0,
    ) -> None:
        if patience < 1:
            raise SettingsError(f"health.patience: expected at least 1, got {patience}")
        self.patience = patience
        self.max_unparsed = max_unparsed
        self.max_logp_difference = max_logp_difference
        self.min_length_share = min_length_share
        self.max_kl = max_kl
        self.batches = 0
        self.first: dict[str, float] = {}
        """What the run's first rollout batch showed."""
        self.in_a_row: dict[str, int] = {}
        """Rollout batches until now, without a break, by sign; and by metric of a reward that did not vary."""
        self.said: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to say the same as one that was not stopped."""
        names = ("batches", "first", "in_a_row", "said")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """How much of a difference is rounding depends on the precision."""
        if self.max_logp_difference is None:
            in_16 = "16" in str(trainer.precision) or pl_module.policy.network.dtype.itemsize == 2
            self.max_logp_difference = ROUNDING_16 if in_16 else ROUNDING_32

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Runs before the module logs the same step, and before a checkpoint of it is written."""
        micro, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if rest:
            return
        if trainer.global_step == 1:
            self._explain_loss(trainer)
        if (micro - 1) % pl_module.num_iterations:
            return  # not on policy: log-probabilities differ from those of the sampler rightly
        values = figures(pl_module)
        pl_module.rollout_values["completions/unparsed"] = torch.tensor(values["completions/unparsed"])
        for message in self.look(values):
            rank_zero_warn(f"health: {message}")

    @staticmethod
    def _explain_loss(trainer: Trainer) -> None:
        rank_zero_info(NEAR_ZERO)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_text("loss", NEAR_ZERO, 0)

    def look(self, values: dict[str, float]) -> list[str]:
        """What there is to say after one more rollout batch.

        Args:
            values: the figures of a rollout batch, by metric; those that it does not have are left out.

        Returns:
            A message for each sign that has lasted long enough and was not said before.
        """
        self.batches += 1
        self.first = self.first or {name: values[name] for name in ("completions/mean_length", "reward")}
        signs = {
            "equal_rewards": values["frac_reward_zero_std"] == 1,
            "truncated": values["completions/clipped_ratio"] == 1,
            "unparsed": values["completions/unparsed"] > self.max_unparsed,
            "short": values["completions/mean_length"] < self.min_length_share * self.first["completions/mean_length"],
            "sampler": values.get(f"{DIFFERENCE}/mean", 0.0) > self.max_logp_difference,
            "kl": values.get("kl", 0.0) > self.max_kl,
        }
        fixed = {name: _is_constant(values, name) for name in _rewards(values)}
        for name, is_so in (signs | fixed).items():
            self.in_a_row[name] = self.in_a_row.get(name, 0) + 1 if is_so else 0
        due = [name for name in signs if self.in_a_row[name] >= (1 if name in AT_ONCE else self.patience)]
        # A reward that stops varying once all earn it is a success; one that never varied is a mistake.
        never_varied = [name for name in fixed if self.in_a_row[name] == self.patience == self.batches]
        if never_varied and "equal_rewards" not in due:
            due.append("constant_reward")
        new = [name for name in due if name not in self.said]
        self.said = self.said + new
        messages = {
            "equal_rewards": self._equal_rewards,
            "truncated": self._truncated,
            "unparsed": self._unparsed,
            "short": self._short,
            "sampler": self._sampler,
            "kl": self._kl,
            "constant_reward": self._constant_reward,
        }
        return [messages[name](values) for name in new]

    def _equal_rewards(self, values: dict[str, float]) -> str:
        learned = "only the KL term had a gradient" if "kl" in values else "no step had a gradient"
        return (
            f"in each of the last {self.patience} rollout batches the completions of every group had equal rewards: "
            f"{learned}, the rewards teach nothing. {_seen(values)}. If rewards are low, read the sample panels "
            "(TensorBoard: what was said, what was read from it, what it was paid), let data.prompt ask for the format "
            "that the rewards read, add a reward for a part of the way to model.rewards (as FormatReward), or take "
            "easier questions (data.difficulty with data.pass_count); if they are high, take harder ones in the same "
            "way. Completions differ more with a higher model.temperature and model.num_generations"
        )

    def _truncated(self, values: dict[str, float]) -> str:
        return (
            f"in each of the last {self.patience} rollout batches all completions were cut off, at "
            f"{values['completions/max_length']:.0f} tokens: what comes last, mostly the answer, is never reached, and "
            "with model.mask_truncated_completions nothing trains. Raise model.max_completion_length, let data.prompt "
            "ask for less, and see in the sample panels whether the model ends its turns at all: a base model that was "
            "not trained to answer instructions may not"
        )

    def _unparsed(self, values: dict[str, float]) -> str:
        return (
            f"no answer can be read from {values['completions/unparsed']:.0%} of the completions, and from more than "
            f"{self.max_unparsed:.0%} (health.max_unparsed) in each of the last {self.patience} rollout batches: they "
            f"count as wrong, whatever they mean. {_seen(values)}. An answer is one closed <answer> block that names "
            "an option. Read the sample panels, let data.prompt ask for that block (the presets of "
            "medgrpo/prompts.py do), add FormatReward to model.rewards, and raise model.max_completion_length if "
            "completions are cut off before it"
        )

    def _short(self, values: dict[str, float]) -> str:
        length, before = values["completions/mean_length"], self.first["completions/mean_length"]
        return (
            f"completions have {length:.1f} tokens on average, less than {self.min_length_share:.0%} "
            f"(health.min_length_share) of the {before:.1f} at the start, for {self.patience} rollout batches; the "
            f"reward went from {self.first['reward']:.3g} to {values['reward']:.3g}. If it fell, the policy has "
            "collapsed: go on from an earlier checkpoint (--ckpt_path) with a lower learning rate or a higher "
            "model.beta. If it rose, see in the sample panels whether the reasoning is still there: it goes where "
            "nothing in model.rewards needs it; FormatReward with style think or model.min_completion_length keep it"
        )

    def _sampler(self, values: dict[str, float]) -> str:
        return (
            f"log-probabilities of the same tokens differ between sampling and training by "
            f"{values[f'{DIFFERENCE}/mean']:.2g} on average and {values[f'{DIFFERENCE}/max']:.2g} at most "
            f"(health.max_logp_difference {self.max_logp_difference:g} on average): more than rounding, so that the "
            "gradient is not that of what was drawn. To find the cause, set one after the other "
            "model.policy.decode_implementation=eager, model.policy.attn_implementation=sdpa, "
            "model.policy.linear_implementation=torch, then model.policy.dtype=float32 with "
            "trainer.precision=32-true: the one that helps is the cause. Do not train on before it is found"
        )

    def _kl(self, values: dict[str, float]) -> str:
        return (
            f"the policy has left its reference: KL {values['kl']:.3g} nats per token (health.max_kl {self.max_kl:g}); "
            "text mostly falls apart from here on, and rewards with it. Go on from an earlier checkpoint (--ckpt_path) "
            "with a lower learning rate (model.optimizer.init_args.lr), "
            "trainer.gradient_clip_val=1.0, fewer model.num_iterations, or a higher model.beta"
        )

    def _constant_reward(self, values: dict[str, float]) -> str:
        names = [n for n in _rewards(values) if self.in_a_row[n] == self.batches]
        paid = ", ".join(f"{_name(n)} {values[n]:g}" for n in names)
        return (
            f"in each of the first {self.patience} rollout batches every completion got the same from {paid}: this "
            "teaches nothing. Read the sample panels; let data.prompt ask for what the reward reads, or leave it out "
            "of model.rewards"
        )


def figures(module: LightningModule) -> dict[str, float]:
    """What is known of the rollout batch at an optimizer step, by metric, over all ranks; one small collective."""
    prompts, texts = module.rollouts.prompts, module.rollouts.texts
    records = [record for record in prompts.records for _ in range(len(texts) // len(prompts))]
    read = [extract(text, r.options, closed=r.closed).taken for text, r in zip(texts, records, strict=True)]
    sums, maxima = module.statistics.sums, module.statistics.maxima
    # Without a group to learn from, a rank has no statistics.
    parts = [sums.get(name, 0.0) for name in ("tokens", "kl", f"{DIFFERENCE}/mean")]
    row = [read.count(None), len(read), *map(float, parts), float(maxima.get(f"{DIFFERENCE}/max", 0.0))]
    rows = module.all_gather(torch.tensor(row, dtype=torch.float32, device=module.device)).view(-1, len(row)).cpu()
    unparsed, total, tokens, kl, difference, _ = rows.sum(0).tolist()
    values = {name: float(value) for name, value in module.rollout_values.items()}
    values["completions/unparsed"] = unparsed / total
    if tokens:
        values[f"{DIFFERENCE}/mean"] = difference / tokens
        values[f"{DIFFERENCE}/max"] = rows[:, -1].max().item()
    if tokens and module.beta > 0:
        values["kl"] = kl / tokens
    return values


def _rewards(values: dict[str, float]) -> list[str]:
    """Metrics that are the mean of one reward."""
    return [name for name in values if name.startswith("rewards/") and name.endswith("/mean")]


def _name(metric: str) -> str:
    return metric.removeprefix("rewards/").removesuffix("/mean")


def _is_constant(values: dict[str, float], metric: str) -> bool:
    mean, std = values[metric], values[f"rewards/{_name(metric)}/std"]
    return std <= 1e-6 * max(1.0, math.fabs(mean))  # rounding: the mean of equal numbers need not be that number


def _seen(values: dict[str, float]) -> str:
    paid = ", ".join(f"{_name(name)} {values[name]:.3g}" for name in _rewards(values))
    return (
        f"Now: {paid} on average; {values['completions/unparsed']:.0%} of the completions unparsed, "
        f"{values['completions/clipped_ratio']:.0%} cut off"
    )
