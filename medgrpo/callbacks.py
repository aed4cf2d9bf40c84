"""What a run shows, and what it checks before the first step."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import RunningStage

from medgrpo.answers import extract
from medgrpo.types import PromptBatch, Rollouts, SettingsError

SECONDS_BETWEEN_TOKENS_SHOWN = 0.5


class RolloutProgressBar(TQDMProgressBar):
    """Lightning's bar, which also moves while completions are drawn: tokens drawn so far and rows still alive."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.next_shown = 0.0
        pl_module.on_rollout_token = self.show_token

    def show_token(self, tokens: int, alive: int) -> None:
        """Called by the rollout after each token position."""
        if self.is_disabled or (alive and time.monotonic() < self.next_shown):
            return
        self.next_shown = time.monotonic() + SECONDS_BETWEEN_TOKENS_SHOWN
        bars = {
            RunningStage.TRAINING: lambda: self.train_progress_bar,
            RunningStage.SANITY_CHECKING: lambda: self.val_progress_bar,
            RunningStage.VALIDATING: lambda: self.val_progress_bar,
            RunningStage.TESTING: lambda: self.test_progress_bar,
            RunningStage.PREDICTING: lambda: self.predict_progress_bar,
        }
        bar = bars[self.trainer.state.stage]()
        bar.set_postfix_str(f"rollout: token {tokens}, {alive} completions open" if alive else "")


class SamplePanel(Callback):
    """Writes image, question, completions, extracted answers and rewards to TensorBoard.

    Args:
        every_n_steps: optimizer steps between panels; the first step always gets one.
        num_prompts: prompts in a panel.
    """

    def __init__(self, every_n_steps: int = 50, num_prompts: int = 2) -> None:
        self.every_n_steps = every_n_steps
        self.num_prompts = num_prompts
        self.last_step = 0

    def state_dict(self) -> dict[str, int]:
        """So that going on draws no panel twice."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take it up."""
        self.last_step = state_dict["last_step"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        """Draw the panel of the rollout batch that has just been trained on."""
        step = trainer.global_step
        if step == self.last_step or not (step == 1 or step % self.every_n_steps == 0):
            return
        self.last_step = step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                self._write(logger.experiment, pl_module, step)

    def _write(self, writer: Any, pl_module: LightningModule, step: int) -> None:
        rollouts: Rollouts = pl_module.rollouts
        names = [reward.name for reward in pl_module.rewards]
        for p, record in enumerate(rollouts.prompts.records[: self.num_prompts]):
            thumbnail = rollouts.prompts.thumbnails[p] if rollouts.prompts.thumbnails else None
            if thumbnail is not None:
                writer.add_image(f"samples/{p}/image", thumbnail, step)
            header = ["completion", "extracted", *names, "advantage"]
            lines = [
                f"**{_cell(record.id)}**: {_cell(rollouts.prompts.texts[p])}",
                f"gold: **{_cell(record.answer)}**",
                "",
                "| " + " | ".join(header) + " |",
                "|---" * len(header) + "|",
            ]
            for row in range(p * pl_module.num_generations, (p + 1) * pl_module.num_generations):
                extracted = extract(rollouts.texts[row], record.options, closed=record.closed).taken
                cells = [_cell(rollouts.texts[row]), _cell(extracted or "unparsed")]
                cells += [f"{value:g}" for value in rollouts.rewards[row].tolist()]
                lines.append("| " + " | ".join([*cells, f"{rollouts.advantages[row].item():+.2f}"]) + " |")
            writer.add_text(f"samples/{p}/completions", "\n".join(lines), step)


def _cell(text: str) -> str:
    """A text as it is, in a table of Markdown: no tag, link or emphasis, and no image that a browser would fetch."""
    return "".join(c if c.isalnum() or c == " " else "<br>" if c == "\n" else f"&#{ord(c)};" for c in text)


class ScheduleCheck(Callback):
    """Refuses, before the first step, settings that would cut a rollout batch in two."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect all problems and raise once."""
        num_micro, num_iterations = trainer.accumulate_grad_batches, pl_module.num_iterations
        window = num_micro * num_iterations
        reason = f"accumulate_grad_batches ({num_micro}) * num_iterations ({num_iterations})"
        problems = []
        for name in ("limit_train_batches", "val_check_interval"):
            value = getattr(trainer, name)
            if isinstance(value, int) and not isinstance(value, bool) and value % window:
                problems.append(f"trainer.{name}: expected a multiple of {window} = {reason}, got {value}")
        if problems:
            raise SettingsError("\n".join(problems))
