"""What every training of a policy shares: loading it, judging its answers, stepping safely, saving what trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.fsdp import FSDPModule

from medgrpo.group_accuracy import GroupAccuracy
from medgrpo.policy import Policy, loading
from medgrpo.predictions import Prediction, to_row
from medgrpo.prefix import encode, prepare
from medgrpo.rollout import sample
from medgrpo.sharding import check_strategy, clean_names, clip_by_norm, is_sharded, shard, whole
from medgrpo.types import Completions, PromptBatch, SettingsError
from medgrpo.unfinished import gathered, of_rank

STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Any of these ends a completion."""


class PolicyModule(LightningModule):
    """A LightningModule around a `Policy`; subclasses add ``training_step``.

    Args:
        policy: what is trained; see ``Policy``.
        optimizer: called with the trainable parameters.
        lr_scheduler: called with the optimizer, stepped once per optimizer step; None keeps the learning rate.
        max_completion_length: tokens; longer completions are cut off.
        num_generations_eval: completions per question in validation, tests and predictions; 1 is greedy decoding, more
            are sampled, with ``sampling``.
        max_nonfinite_steps: stop after this many steps in a row without a finite gradient; each is skipped and counted.
        seed: of what is sampled.
    """

    num_iterations: int = 1
    """Optimizer steps per batch of the loader."""
    max_tokens_per_pass: int | None = None
    """Tokens that go through the model at once."""
    needs_reference: bool = False
    """Whether training compares with the policy as it was at the start."""

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of ``rollout.sample`` that say how completions are drawn."""
        return {}

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        max_completion_length: int,
        max_nonfinite_steps: int,
        num_generations_eval: int = 1,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.max_completion_length = max_completion_length
        self.max_nonfinite_steps = max_nonfinite_steps
        self.num_generations_eval = num_generations_eval
        self.seed = seed
        self.fitting_batch: int | None = None
        """Questions answered at once, once more did not fit into memory."""
        self.grad_norm = 0.0
        self.num_tokens = 0
        self.nonfinite_steps = 0
        self.nonfinite_in_a_row = 0
        self.skipped_images = 0
        self.on_rollout_token: Callable[[int, int], None] | None = None
        """Called while completions are drawn, with (tokens so far, rows still alive); a progress bar sets it."""
        self.evaluation = ExitStack()
        self.keeps_answers = False
        """Whether somebody keeps what a test answers; `PredictionWriter` sets it."""
        self.strict_loading = False  # checkpoints hold only what trains; on_load_checkpoint compares the names

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's processor: tokenizer, chat template and image settings."""
        from transformers import AutoProcessor

        self.policy.check_folders()
        with loading("model.policy.model_name_or_path", self.policy.model_name_or_path):
            processor = AutoProcessor.from_pretrained(self.policy.model_name_or_path, trust_remote_code=False)
        processor.tokenizer.padding_side = "left"
        return processor

    def setup(self, stage: str) -> None:
        """Refuse a strategy that does not go with the policy, before weights are loaded."""
        check_strategy(self.trainer, self.policy, self.max_tokens_per_pass)
        self.policy.sharded = is_sharded(self.trainer.strategy)

    def configure_model(self) -> None:
        """Load the policy, once; FSDP2 spreads it where it trains.

        Evaluation would gather it for as long as it lasts, and a rank without a question would not take part.
        """
        fits = self.trainer.state.fn == "fit"
        if self.policy.model is None:
            self.load_policy(with_reference=self.needs_reference and fits)
        if fits and self.device_mesh is not None and not isinstance(self.policy, FSDPModule):
            shard(self.policy, self.device_mesh["data_parallel"])

    def load_policy(self, with_reference: bool) -> None:
        """Weights, and the tokens that end a completion or are never drawn."""
        self.policy.load(with_reference)
        vocabulary = self.processor.tokenizer.get_vocab()
        stop = [vocabulary[token] for token in STOP_TOKENS if token in vocabulary]
        if not stop:
            raise SettingsError(
                f"the tokenizer of {self.policy.model_name_or_path} has none of {', '.join(STOP_TOKENS)}"
            )
        self.register_buffer("stop_ids", torch.tensor(stop), persistent=False)
        self.register_buffer("suppressed", torch.tensor(self.policy.suppressed_ids()), persistent=False)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over what trains, and the scheduler stepped with it."""
        with naming("model.optimizer"):
            optimizer = self.optimizer([p for p in self.policy.parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        with naming("model.lr_scheduler"):
            scheduler = self.lr_scheduler(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the Trainer says; a step whose gradient is not finite is skipped and counted."""
        by_norm = gradient_clip_algorithm in (None, "norm")
        self.grad_norm = clip_by_norm(self.trainer, self.policy, gradient_clip_val if by_norm else None)
        if np.isfinite(self.grad_norm):
            self.nonfinite_in_a_row = 0
            if not by_norm:
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self.zero_grad(set_to_none=True)  # the optimizer leaves parameters without a gradient as they are
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            raise FloatingPointError(
                f"{self.nonfinite_in_a_row} steps in a row had no finite gradient: lower the learning rate, raise "
                "beta, or set trainer.gradient_clip_val (max_nonfinite_steps says when to give up)"
            )

    def answer(self, prompts: PromptBatch, num_generations: int | None = None) -> list[Prediction]:
        """What the policy says to each question: greedily, or several samples of it.

        A batch that does not fit into memory is answered in halves, and so are later ones of that size.

        Args:
            prompts: [P] the questions.
            num_generations: answers to each, 1 is greedy; None is ``num_generations_eval``.

        Returns:
            [P] what was said, in the order of the questions.

        Raises:
            SettingsError: one question alone does not fit into memory.
        """
        if self.fitting_batch is None or len(prompts) <= self.fitting_batch:
            try:
                return self._answer(prompts, num_generations or self.num_generations_eval)
            except torch.OutOfMemoryError as error:
                if len(prompts) == 1:
                    raise SettingsError(
                        f"question {prompts.records[0].id} alone does not fit into memory: lower "
                        "model.policy.max_pixels, model.max_completion_length or model.num_generations_eval"
                    ) from error
            # Here, and not where it was caught: the error held on to the memory.
            self.fitting_batch = (len(prompts) + 1) // 2
            torch.cuda.empty_cache()
            rank_zero_warn(
                f"{len(prompts)} questions at once do not fit into memory: going on with {self.fitting_batch} "
                "(data.eval_batch_size)"
            )
        size = self.fitting_batch
        parts = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
        return [prediction for part in parts for prediction in self.answer(prompts.select(part), num_generations)]

    def _answer(self, prompts: PromptBatch, k: int) -> list[Prediction]:
        completions = self.complete(prompts, k)
        texts, lengths = self.decode(completions), completions.mask.sum(1).tolist()
        cut = (~completions.finished).tolist()
        groups = [slice(p * k, (p + 1) * k) for p in range(len(prompts))]
        return [
            Prediction(record, tuple(texts[g]), tuple(cut[g]), tuple(lengths[g]), prompts.view, prompt)
            for record, prompt, g in zip(prompts.records, prompts.texts, groups, strict=True)
        ]

    @torch.no_grad()
    def complete(self, prompts: PromptBatch, num_generations: int) -> Completions:
        """Completions of questions outside of training: greedily, or several that are drawn.

        What is drawn for a question depends on it and the seed alone.
        """
        prepared = self.policy(prepare, prompts, self.device, self.policy.freeze_vision)
        return self.policy(
            sample,
            self.policy(encode, prepared),
            num_generations=num_generations,
            max_completion_length=self.max_completion_length,
            stop_ids=self.stop_ids,
            suppressed=self.suppressed,
            pad_id=self.processor.tokenizer.pad_token_id,
            generator=[_generator(self.seed, record.id, prompts.view) for record in prompts.records],
            static=self.policy.decodes_static,
            on_token=self.on_rollout_token,
            **({"temperature": 0.0} if num_generations == 1 else self.sampling),
        )

    def decode(self, completions: Completions) -> list[str]:
        """[N] texts without special tokens."""
        rows = [ids[mask] for ids, mask in zip(completions.ids.cpu(), completions.mask.cpu(), strict=True)]
        return self.processor.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def gather_weights(self) -> None:
        """Evaluate on whole weights: ranks may then have different numbers of batches."""
        self.evaluation.enter_context(whole(self.policy))

    def release_weights(self) -> None:
        """Back to shards, if there are any."""
        self.evaluation.close()

    on_test_end = on_predict_end = on_validation_end = release_weights
    on_predict_start = gather_weights

    def on_validation_start(self) -> None:
        """Name the groups of the records that will be judged."""
        self.gather_weights()
        self.accuracy = GroupAccuracy(self.trainer.datamodule.records["val"]).to(self.device)

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> list[Prediction]:
        """Answers to the validation questions."""
        predictions = self.answer(prompts)
        self.accuracy.update(predictions)
        return predictions

    def on_test_start(self) -> None:
        """A test without a `PredictionWriter` leaves nothing."""
        self.gather_weights()
        if not self.keeps_answers:
            rank_zero_warn(
                "the answers of this test are neither kept nor counted: add "
                "medgrpo.prediction_writer.PredictionWriter() to the callbacks of the Trainer"
            )

    def test_step(self, prompts: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[Prediction]:
        """Answers to the test questions; `PredictionWriter` keeps and counts them."""
        return self.answer(prompts)

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Answers, which `PredictionWriter` keeps, as the rows of its file: see ``predictions.to_row``."""
        return [to_row(prediction) for prediction in self.answer(prompts)]

    def on_validation_epoch_end(self) -> None:
        """``val/accuracy``, by modality and question type, and the rates of unparsed and truncated answers."""
        self.log_dict({f"val/{name}": value for name, value in self.accuracy.compute().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains and what resuming needs, nothing else."""
        trained = self._trained_names()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        if "grpo" not in checkpoint:
            checkpoint["grpo"] = gathered(self.resume_state(), self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not hold exactly what trains here."""
        expected, got = self._trained_names(), set(checkpoint["state_dict"])
        if expected != got:
            raise SettingsError(
                f"the checkpoint does not fit this policy: {len(expected & got)} of {len(expected)} trained tensors "
                f"are in it, {len(got - expected)} others are too, e.g. {sorted(expected ^ got)[0]}; use_peft, "
                "lora_target_modules, freeze_vision and model_name_or_path must be those of the run that saved it"
            )
        self.load_resume_state(of_rank(checkpoint["grpo"], self.global_rank, self.trainer.world_size))

    def resume_state(self) -> dict[str, Any]:
        """What this rank needs to go on as if never stopped, beside weights, optimizer and position in the data.

        Taken at the end of an optimizer step; it holds strings, numbers and tensors of its own only.
        """
        names = ("num_tokens", "nonfinite_steps", "nonfinite_in_a_row", "skipped_images")
        return {name: getattr(self, name) for name in names}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take up where ``state`` was taken."""
        self.num_tokens = state["num_tokens"]
        self.nonfinite_steps = state["nonfinite_steps"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        self.skipped_images = state["skipped_images"]

    def _trained_names(self) -> set[str]:
        return {name for name, parameter in clean_names(self) if parameter.requires_grad}


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Name the option whose class does not take its arguments."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{option}: {error}") from error


def _generator(seed: int, *names: str) -> torch.Generator:
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
