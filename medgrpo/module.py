"""GRPO on a Qwen-VL policy, one training step from top to bottom.

    prompts -> completions -> rewards -> advantages -> loss

Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300, eq. 3), with the clip of DAPO (arXiv 2503.14476) and
the reductions of Dr. GRPO (arXiv 2503.20783). Differences from a plain implementation; none changes a gradient:

1) Each prompt is encoded once per pass and shared by its G completions (``prefix.py``); a rollout batch that is trained
   on in one piece hands the encoding that its completions were drawn on, with its graph, to the first pass.
2) Denominators are those of the whole rollout batch over all ranks, so the gradient depends neither on how the batch is
   cut into micro-batches nor on the number of ranks.
3) Groups whose rewards are all equal are skipped when ``beta == 0``: their gradient is zero.
4) With one step per rollout batch the old log-probabilities are the new ones, detached; with more they are those of the
   first pass.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from medgrpo.advantages import group_advantages, zero_variance
from medgrpo.limits import Limits
from medgrpo.loss import clip_ratios, kl_k3, token_loss, token_weights
from medgrpo.metrics import PassStatistics, Timer, now, peak_memory_gib, rollout_metrics
from medgrpo.passes import cut_completions, cut_prompts, half, sum_of_losses
from medgrpo.policy import Policy
from medgrpo.policy_module import PolicyModule
from medgrpo.prefix import encode, prepare, score
from medgrpo.rewards import Reward, RewardError, failed_rank, score_completions
from medgrpo.rollout import sample
from medgrpo.sharding import whole
from medgrpo.types import Completions, Prefix, PromptBatch, Rollouts, SettingsError, VisionFeatures
from medgrpo.unfinished import pack, unpack
from medgrpo.vision_cache import VisionCache

IN_A_ROLLOUT = (
    *("num_generations", "max_completion_length", "temperature", "top_p", "top_k", "beta"),
    *("reward_weights", "loss_type", "scale_rewards", "mask_truncated_completions"),
)
"""Options that a rollout batch depends on."""


class GRPOModule(PolicyModule):
    """Trains ``policy`` to say what ``rewards`` reward.

    Args:
        policy: what is trained; see ``Policy``.
        rewards: each scores every completion.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped once per optimizer step; None keeps the learning rate.
        reward_weights: one weight per reward; None is 1 each.
        num_generations: G, completions per prompt, at least 2.
        max_completion_length: tokens; longer completions are cut off.
        min_completion_length: tokens, stop token included, before which no completion ends.
        temperature: of sampling, and of the policy whose log-probabilities are trained.
        top_p: nucleus mass of sampling; 1 keeps all tokens.
        top_k: number of candidate tokens in sampling; 0 keeps all.
        num_iterations: mu, optimizer steps on each rollout batch.
        beta: weight of the KL term (k3 estimator); 0 needs no reference policy.
        epsilon: the ratio is clipped below at ``1 - epsilon``.
        epsilon_high: the ratio is clipped above at ``1 + epsilon_high``; None is ``epsilon``.
        loss_type: how token losses are averaged; see ``loss.token_weights``.
        scale_rewards: divide centred rewards by the standard deviation of the group, of the batch, or not at all.
        mask_truncated_completions: leave completions that were cut off out of the loss.
        max_tokens_per_pass: tokens, padding included, that go through the model at once when completions are scored;
            with more, prompts and completions are cut into several passes, which saves memory. None never cuts.
        vision_cache_gib: memory of the host for features of a frozen vision tower, kept across epochs.
        num_generations_eval: completions per question in validation, tests and predictions: 1 is greedy, more are
            sampled as in training, and give a majority vote and pass@k.
        max_nonfinite_steps: stop after this many steps in a row without a finite gradient; each is skipped and counted.
        seed: of the rollouts, together with epoch, batch and the place of the prompt in it; of evaluation samples,
            together with the question.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: list[Reward],
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        reward_weights: list[float] | None = None,
        num_generations: int = 8,
        max_completion_length: int = 256,
        min_completion_length: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        num_iterations: int = 1,
        beta: float = 0.0,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo",
        scale_rewards: Literal["group", "batch", "none"] = "group",
        mask_truncated_completions: bool = False,
        max_tokens_per_pass: int | None = None,
        vision_cache_gib: float = 0.0,
        num_generations_eval: int = 1,
        max_nonfinite_steps: int = 5,
        seed: int = 42,
    ) -> None:
        super().__init__(
            policy, optimizer, lr_scheduler, max_completion_length, max_nonfinite_steps, num_generations_eval, seed
        )
        problems = []
        if num_generations < 2:
            problems.append(f"num_generations: a group needs at least 2 completions, got {num_generations}")
        if seed < 0:
            problems.append(f"seed: expected at least 0, got {seed}")
        if not rewards:
            problems.append("rewards: expected at least one")
        if reward_weights is not None and len(reward_weights) != len(rewards):
            problems.append(f"reward_weights: expected {len(rewards)} (one per reward), got {len(reward_weights)}")
        if len({reward.name for reward in rewards}) != len(rewards):
            problems.append(f"rewards: names must differ, got {[reward.name for reward in rewards]}")
        if not 1 <= max_completion_length >= min_completion_length >= 0:
            problems.append(
                "max_completion_length: expected at least 1 and at least min_completion_length, "
                f"got {max_completion_length} and {min_completion_length}"
            )
        if not temperature > 0:
            problems.append(f"temperature: expected more than 0, got {temperature}")
        if not 0 < top_p <= 1 or top_k < 0:
            problems.append(f"top_p in (0, 1] and top_k >= 0 expected, got {top_p} and {top_k}")
        if num_generations_eval < 1:
            problems.append(f"num_generations_eval: expected at least 1, got {num_generations_eval}")
        if num_iterations < 1:
            problems.append(f"num_iterations: expected at least 1, got {num_iterations}")
        if beta < 0:
            problems.append(f"beta: expected at least 0, got {beta}")
        if max_tokens_per_pass is not None and max_tokens_per_pass < 1:
            problems.append(f"max_tokens_per_pass: expected at least 1, or none, got {max_tokens_per_pass}")
        if vision_cache_gib < 0 or (vision_cache_gib and not policy.freeze_vision):
            problems.append(
                f"vision_cache_gib: expected at least 0, and 0 when the tower trains (freeze_vision=false), "
                f"got {vision_cache_gib}"
            )
        if problems:
            raise SettingsError("\n".join(problems))
        self.rewards = rewards
        self.reward_weights = reward_weights
        self.num_generations = num_generations
        self.min_completion_length = min_completion_length
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.num_iterations = num_iterations
        self.beta = beta
        self.needs_reference = beta > 0
        self.epsilon = epsilon
        self.epsilon_high = epsilon if epsilon_high is None else epsilon_high
        self.loss_type = loss_type
        self.scale_rewards = scale_rewards
        self.mask_truncated_completions = mask_truncated_completions
        self.max_tokens_per_pass = max_tokens_per_pass
        self.tokens_per_pass = max_tokens_per_pass
        """Less, once that many did not fit into memory."""
        self.vision_cache = VisionCache(vision_cache_gib * 2**30)

        self.rollouts: Rollouts | None = None
        self.unfinished: dict[str, Any] | None = None
        """The rollout batch inside which the checkpoint was saved that training goes on from."""
        self.rollout_values: dict[str, Tensor] = {}
        self.statistics = PassStatistics()
        self.timer = Timer()
        self.loss = torch.tensor(0.0)
        self.rollout_tokens = 0
        self.decode_seconds = 0.0

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> Tensor:
        """One micro-batch of one pass over a rollout batch.

        The loader yields each batch ``accumulate_grad_batches * num_iterations`` times: the first draws completions,
        all train on them.
        """
        num_micro = self.trainer.accumulate_grad_batches
        window, step = divmod(batch_idx, num_micro * self.num_iterations)
        if step == 0 or self.rollouts is None:  # None inside a window: resumed there
            self.zero_grad(set_to_none=True)  # or the last step's gradients would live through the rollout
            self.rollouts = self.take_up(prompts) if step and self.unfinished else self.collect(prompts, window)
        self.timer.start("train")
        loss = self.micro_loss(self.rollouts, step % num_micro, num_micro)
        self.loss = self.loss + loss.detach()
        if not loss.isfinite():
            return loss * torch.nan  # so that the gradient is not finite on any rank, and all skip the step
        # Undo Lightning's division by the micro-batches and the strategy's by the ranks: the weights divide already.
        return loss * num_micro * self.trainer.world_size

    @torch.no_grad()
    def collect(self, prompts: PromptBatch, window: int) -> Rollouts:
        """Draw G completions per prompt, score them, and fix everything about the loss but the policy itself."""
        with self.timer("rollout"), whole(self.policy):
            prompts, prefix = self.encode(prompts, self.vision_cache.features_of)
            started = now()
            completions = self.sample(prefix, self._generators(window, len(prompts)))
            self.decode_seconds = now() - started
            texts = self.decode(completions)
        if self.policy.sharded:
            completions = completions.widened(2)  # with one column the model would not run, on this rank alone
        with self.timer("reward"):
            total, rewards, failure = self._rewards(prompts, texts)

        mask, finished = completions.mask, completions.finished
        loss_mask = mask & finished[:, None] if self.mask_truncated_completions else mask
        skipped = torch.full_like(total, prompts.skipped)
        rows = torch.column_stack([rewards, total, mask.sum(1), finished, loss_mask.sum(1), skipped]).float()
        everywhere = self.all_gather(rows).view(-1, rows.shape[1])  # [N * W, R + 5]: the one collective of a rollout
        *all_rewards, all_total, all_lengths, all_finished, all_loss_tokens, all_skipped = everywhere.unbind(1)
        if (rank := failed_rank(all_total, self.trainer.world_size)) is not None:
            where = f"rank {rank}: " if self.trainer.world_size > 1 else ""
            raise RewardError(self.trainer.strategy.broadcast(f"{where}{failure}", rank)) from failure
        advantages = group_advantages(total, self.num_generations, self.scale_rewards, batch_rewards=all_total)
        weights = token_weights(
            loss_mask,
            self.loss_type,
            total_sequences=len(everywhere),
            total_tokens=int(all_loss_tokens.sum()),
            max_completion_length=self.max_completion_length,
        )
        can_learn = ~zero_variance(total, self.num_generations) | (self.beta > 0)
        active = can_learn & weights.view(len(prompts), -1).any(1)
        self.rollout_values = rollout_metrics(
            torch.stack(all_rewards, 1),
            [reward.name for reward in self.rewards],
            all_total,
            all_lengths,
            all_finished,
            self.num_generations,
        )
        self.rollout_tokens = int(all_lengths.sum()) + self.trainer.world_size * int(prompts.attention_mask.sum())
        self.num_tokens += self.rollout_tokens
        self.skipped_images += int(all_skipped[:: len(total)].sum())
        self.rollout_values["num_tokens"] = torch.tensor(float(self.num_tokens))
        self.rollout_values["skipped_images"] = torch.tensor(float(self.skipped_images))
        rollouts = Rollouts(prompts, completions, texts, rewards, advantages, weights, active.tolist())
        # With fewer active groups, encoding those anew (3 units of work each) is less than going back through all (2);
        # ranks that share weights have to do the same.
        is_worth_it = self.policy.sharded or 3 * sum(rollouts.active) >= 2 * len(prompts)
        if prefix.last_hidden.requires_grad and is_worth_it:
            rollouts.prefix = prefix
        del prefix
        if self.beta > 0:
            with self.timer("reference"), self.policy.as_reference():
                rollouts.ref_logps = self.reference_logps(rollouts)
        if self.num_iterations > 1:
            rollouts.old_logps = torch.full_like(completions.logps, float("nan"))
        return rollouts

    def _rewards(self, prompts: PromptBatch, texts: list[str]) -> tuple[Tensor, Tensor, RewardError | None]:
        """[N] weighted sums and [N, R] rewards; NaN where a reward failed, which the exchange tells the other ranks."""
        records = [record for record in prompts.records for _ in range(self.num_generations)]
        failure = None
        try:
            total, rewards = score_completions(self.rewards, self.reward_weights, texts, records)
        except RewardError as error:
            failure = error
            total = torch.full((len(texts),), torch.nan)
            rewards = torch.full((len(texts), len(self.rewards)), torch.nan)
        return total.to(self.device), rewards.to(self.device), failure

    def encode(
        self, prompts: PromptBatch, look: Callable[[torch.nn.Module, PromptBatch], VisionFeatures]
    ) -> tuple[PromptBatch, Prefix]:
        """Prepare prompts and encode them, with gradients when the first pass can go on from there."""
        prompts = self.policy(prepare, prompts, self.device, self.policy.freeze_vision, look)
        with torch.set_grad_enabled(self._encodes_at_once(prompts)):
            return prompts, self.policy(encode, prompts)

    def micro_loss(self, rollouts: Rollouts, micro: int, num_micro: int) -> Tensor:
        """The share of the groups of one micro-batch in the loss of the whole rollout batch."""
        groups = [p for p in self._groups(rollouts, micro, num_micro) if rollouts.active[p]]
        if self.policy.sharded:
            return self._loss_of_prompts(rollouts, groups) if groups else self._idle_loss(rollouts)
        return self._loss_in_passes(rollouts, groups)

    def _loss_in_passes(self, rollouts: Rollouts, groups: list[int]) -> Tensor:
        """A loss whose gradient is taken here, so that passes that do not fit into memory are made again, smaller."""
        lengths = rollouts.prompts.attention_mask.sum(1)
        while True:
            parts = cut_prompts(groups, lengths, self.tokens_per_pass)
            losses = [partial(self._loss_of_prompts, rollouts, part) for part in parts]
            before = copy.deepcopy(self.statistics)
            try:
                return sum_of_losses(losses, self.trained())
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Here, and not where it was caught: the error held on to the memory.
            self.statistics, rollouts.prefix = before, None
            torch.cuda.empty_cache()
            self._make_passes_smaller(rollouts, groups, reason)

    def _make_passes_smaller(self, rollouts: Rollouts, groups: list[int], reason: str) -> None:
        lengths = rollouts.completions.mask.sum(1).view(-1, self.num_generations)
        budget = half(self.tokens_per_pass, rollouts.prompts.attention_mask.sum(1)[groups], lengths[groups])
        if budget is None:
            raise SettingsError(
                "training on one prompt or one completion alone does not fit into memory: set "
                "model.policy.gradient_checkpointing=true or model.policy.quantize=nf4, or lower "
                f"model.policy.max_pixels or model.max_completion_length ({reason})"
            )
        self.tokens_per_pass = budget
        warnings.warn(
            f"a pass of training does not fit into memory: going on with at most {budget} tokens in a pass, which "
            f"changes no gradient; model.max_tokens_per_pass={budget} begins with that",
            stacklevel=2,
        )

    def _idle_loss(self, rollouts: Rollouts) -> Tensor:
        """0, by the passes that other ranks make: sharded weights are gathered, and gradients exchanged, together."""
        prefix, rollouts.prefix = rollouts.prefix, None
        prefix = prefix or self.policy(encode, rollouts.prompts.select([0]))
        rows, ids, mask = self._rows(rollouts, list(range(self.num_generations)))
        logps, _ = self.policy(score, prefix.select([0]), ids, mask, self.temperature, self.suppressed)
        return logps.sum() * 0.0

    def _loss_of_prompts(self, rollouts: Rollouts, groups: list[int]) -> Tensor:
        """Encode these prompts, unless the rollout has, and sum over their completions."""
        prefix, rollouts.prefix = rollouts.prefix, None
        prefix = self.policy(encode, rollouts.prompts.select(groups)) if prefix is None else prefix.select(groups)
        pieces = self._pieces(rollouts, groups)
        if len(pieces) == 1:
            return self._loss_of_completions(rollouts, prefix, *pieces[0])
        cut, trained = prefix.detach(), self.trained()
        losses = [partial(self._loss_of_completions, rollouts, cut, *piece) for piece in pieces]
        return sum_of_losses(losses, [*trained, *prefix.tensors()], [*trained, *cut.tensors()])

    def _loss_of_completions(self, rollouts: Rollouts, prefix: Prefix, prompts: list[int], rows: list[int]) -> Tensor:
        """The share of some completions in the loss of the whole rollout batch.

        Args:
            rollouts: the rollout batch.
            prefix: holds the completions' prompts and perhaps others.
            prompts: those prompts, as indices into ``prefix``.
            rows: the completions, equally many of each prompt.
        """
        rows, ids, mask = self._rows(rollouts, rows)
        prefix = prefix.select(prompts)
        logps, entropy = self.policy(score, prefix, ids, mask, self.temperature, self.suppressed)
        length = ids.shape[1]
        old_logps = logps.detach()
        if self.num_iterations > 1:
            stored = rollouts.old_logps[rows, :length]
            old_logps = torch.where(stored.isnan(), old_logps, stored)
            rollouts.old_logps[rows, :length] = old_logps
        per_token = token_loss(logps, old_logps, rollouts.advantages[rows], self.epsilon, self.epsilon_high)
        counted = rollouts.weights[rows, :length] > 0
        sums = {"tokens": counted.sum(), "entropy": (entropy * counted).sum()}
        if self.beta > 0:
            kl = kl_k3(logps, rollouts.ref_logps[rows, :length])
            per_token = per_token + self.beta * kl
            sums["kl"] = (kl * counted).sum()
        difference = (logps.detach() - rollouts.completions.logps[rows, :length]).abs() * counted
        clipped = clip_ratios(logps, old_logps, rollouts.advantages[rows], counted, self.epsilon, self.epsilon_high)
        self.statistics.add(
            sums | clipped | {"sampling/sampling_logp_difference/mean": difference.sum()},
            {"sampling/sampling_logp_difference/max": difference.max()},
        )
        return (rollouts.weights[rows, :length] * per_token).sum()

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of ``rollout.sample`` that say how completions are drawn."""
        names = ("temperature", "top_p", "top_k", "min_completion_length")
        return {name: getattr(self, name) for name in names}

    def sample(self, prefix: Prefix, generator: list[torch.Generator]) -> Completions:
        """G completions per prompt with the training settings."""
        return self.policy(
            sample,
            prefix,
            num_generations=self.num_generations,
            max_completion_length=self.max_completion_length,
            stop_ids=self.stop_ids,
            suppressed=self.suppressed,
            pad_id=self.processor.tokenizer.pad_token_id,
            generator=generator,
            static=self.policy.decodes_static,
            on_token=self.on_rollout_token,
            **self.sampling,
        )

    def _generators(self, window: int, num_prompts: int) -> list[torch.Generator]:
        # From the place of the prompt in training, not from global state: resuming draws what an uninterrupted run
        # draws, and several ranks draw what one would.
        place = (self.seed, self.current_epoch, window)
        first = self.global_rank * num_prompts
        states = [np.random.SeedSequence((*place, first + p)).generate_state(1)[0] for p in range(num_prompts)]
        return [torch.Generator().manual_seed(int(state)) for state in states]

    def reference_logps(self, rollouts: Rollouts) -> Tensor:
        """[N, C] log-probabilities of the completions; called where the policy is the reference."""
        logps = torch.zeros_like(rollouts.completions.logps)
        prompts = rollouts.prompts
        num_micro = self.trainer.accumulate_grad_batches
        for micro in range(num_micro):
            groups = self._groups(rollouts, micro, num_micro)
            for part in cut_prompts(groups, prompts.attention_mask.sum(1), self.tokens_per_pass):
                prefix = self.policy(encode, prompts.select(part))
                for prompts_of_piece, rows in self._pieces(rollouts, part):
                    rows, ids, mask = self._rows(rollouts, rows)
                    some = prefix.select(prompts_of_piece)
                    scored, _ = self.policy(score, some, ids, mask, self.temperature, self.suppressed)
                    logps[rows, : ids.shape[1]] = scored
        return logps

    def _encodes_at_once(self, prompts: PromptBatch) -> bool:
        tokens = prompts.attention_mask.sum(1)
        parts = cut_prompts(range(len(prompts)), tokens, self.tokens_per_pass)
        return self.trainer.accumulate_grad_batches == len(parts) == 1

    def _pieces(self, rollouts: Rollouts, groups: list[int]) -> list[tuple[list[int], list[int]]]:
        lengths = rollouts.completions.mask.sum(1).view(-1, self.num_generations)
        pieces = cut_completions(groups, lengths, self.tokens_per_pass)
        return [([groups.index(p) for p in part], rows) for part, rows in pieces]

    def trained(self) -> list[Tensor]:
        """All parameters that have gradients."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    @staticmethod
    def _groups(rollouts: Rollouts, micro: int, num_micro: int) -> list[int]:
        size = len(rollouts.prompts) // num_micro
        return list(range(micro * size, (micro + 1) * size))

    def _rows(self, rollouts: Rollouts, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, ids and mask of these rows, without the columns that only longer completions need."""
        rows = torch.tensor(rows, device=self.device)
        mask = rollouts.completions.mask[rows]
        length = max(int(mask.sum(1).max()), 2 if self.policy.sharded else 1)
        return rows, rollouts.completions.ids[rows, :length], mask[:, :length]

    def on_train_start(self) -> None:
        """Measure what this device can do."""
        self.limits = Limits.measure(self.policy, "bf16" in str(self.trainer.precision))

    def on_after_backward(self) -> None:
        """Training pauses here: what callbacks do at the end of a batch is none of it."""
        self.timer.stop("train")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It goes on where there is an optimizer step."""
        self.timer.start("train")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Clip and step."""
        super().optimizer_step(*args, **kwargs)
        self.timer.stop("train")

    def on_train_batch_end(self, outputs: Any, batch: PromptBatch, batch_idx: int) -> None:
        """Log once per optimizer step: Lightning drops what is logged while it accumulates."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return
        self.trainer.fit_loop._results.clear()  # Lightning would log what this step lacks with an earlier step's value
        timing = self.timer.pop()
        iteration = batch_idx // self.trainer.accumulate_grad_batches % self.num_iterations
        values = self.rollout_values | self.statistics.pop() | timing
        values |= self.limits.shares(self.rollouts, timing, self.decode_seconds, iteration, self.num_iterations)
        values["loss"], self.loss = self.loss, torch.tensor(0.0)
        values["grad_norm"] = self.grad_norm
        values["nonfinite_steps"] = float(self.nonfinite_steps)
        values["perf/tokens_per_second"] = self.rollout_tokens / timing["step_time"]
        values["perf/peak_memory_gib"] = peak_memory_gib()
        self.log("reward", values.pop("reward"), prog_bar=True, batch_size=len(batch))
        self.log_dict(values, batch_size=len(batch))

    def resume_state(self) -> dict[str, Any]:
        """Beside counts: the rollout batch, inside of one."""
        state = super().resume_state()
        # What ran out of memory before does not have to do so again; None is what the option says.
        state["tokens_per_pass"] = None if self.tokens_per_pass == self.max_tokens_per_pass else self.tokens_per_pass
        if (self.trainer.fit_loop.batch_idx + 1) % (self.trainer.accumulate_grad_batches * self.num_iterations):
            options = {name: getattr(self, name) for name in IN_A_ROLLOUT}
            state["unfinished"] = pack(self.rollouts, self.rollout_values, self.rollout_tokens, options)
        return state

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Also take up the rollout batch, when its prompts come."""
        super().load_resume_state(state)
        self.tokens_per_pass = state["tokens_per_pass"] or self.max_tokens_per_pass
        self.unfinished = state.get("unfinished")

    def take_up(self, prompts: PromptBatch) -> Rollouts:
        """The rollout batch on these prompts, inside which the run was stopped."""
        unfinished, self.unfinished = self.unfinished, None
        self.rollout_values, self.rollout_tokens = unfinished["values"], unfinished["tokens"]
        look = self.vision_cache.features_of
        prompts = self.policy(prepare, prompts, self.device, self.policy.freeze_vision, look)
        return unpack(unfinished, prompts, {name: getattr(self, name) for name in IN_A_ROLLOUT})

    def on_train_epoch_end(self) -> None:
        """Rollouts never outlive the pass over the data that drew them."""
        self.rollouts = None
