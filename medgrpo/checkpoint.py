"""Checkpoints: one file to go on from exactly, and beside it a folder that other tools read.

What a checkpoint holds is settled at the end of an optimizer step, and written before the next one changes a weight:
after the step's metrics are logged and after its validation, so that going on repeats and leaves out nothing; when the
process is told to stop (SIGTERM); or when an exception ends the run.
"""

from __future__ import annotations

import os
import shutil
import signal
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from medgrpo.checkpoint_file import PARTIAL, WholeFile, flush, newest_sound, remove_partial
from medgrpo.runs import TRAINED_ON, TrainedOn, trained_on, write_json
from medgrpo.types import SettingsError
from medgrpo.unfinished import gathered, has_rollouts

GO_ON = "go on with the same command and --ckpt_path last"
_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path", "previous_path")


@dataclass(frozen=True)
class Boundary:
    """The end of an optimizer step: where training goes on from, beside weights and optimizer."""

    step: int
    """Optimizer steps so far."""
    epoch: int
    loops: dict[str, Any]
    """Lightning's counts and the position in the data, at the end of the step's last micro-batch."""
    state: dict[str, Any]
    """``PolicyModule.resume_state()`` of this rank."""


class Checkpoint(ModelCheckpoint):
    """Lightning's checkpoint, and beside ``NAME.ckpt`` a folder ``NAME/`` with the PEFT adapter (or the whole model).

    The ``.ckpt`` resumes training (``--ckpt_path``); the folder is for ``PeftModel.from_pretrained`` and for
    ``model.policy.adapter``. Arguments are those of ``ModelCheckpoint``. The last step of a run is saved whatever they
    say, also when the run is stopped by SIGTERM or ends with an exception: as far as that is certain to be the state
    between two optimizer steps, and under several ranks if rank 0 has all of it. Where only the newest is kept, the one
    before it stays as well, in case the newest gets damaged.
    """

    previous_path: str = ""
    """The checkpoint before the newest, where no more are kept."""

    goes_on: bool = False
    """Whether this is the same run as the one that has written into its folder: it replaces what it finds there."""

    boundary: Boundary | None = None
    told_to_stop: bool = False
    """SIGTERM has come to this process."""
    _undecided = _due = _stepping = _validating = _failed = False
    _weights: dict[str, Tensor]
    _resumed_from: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Files are written and read our way, unless the Trainer was given another; SIGTERM waits for a step's end."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFile()
        if stage == TrainerFn.FITTING:
            # Lightning's handler exchanges something with the other ranks: when only one is told, all hang. It is not
            # replaced later, as a signal may come before the first hook that could.
            trainer._signal_connector._sigterm_notifier_fn = self._note_to_stop

    def go_on(self, trainer: Trainer) -> str | None:
        """Begin ``fit`` as a part of the run that has written into its folder, if one has.

        Returns:
            The newest sound checkpoint; None when there is none.
        """
        folder = Path(self._ModelCheckpoint__resolve_ckpt_dir(trainer))
        found = newest_sound(folder)
        self.goes_on = True
        rank_zero_info(f"going on from {found}" if found else f"no sound checkpoint in {folder}: starting anew")
        return str(found) if found else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed run was writing; see now whether anything can be written."""
        failure = self._prepare_folder(Path(self.dirpath)) if trainer.is_global_zero else None
        if failure := trainer.strategy.broadcast(failure):
            raise SettingsError(failure)

    @staticmethod
    def _prepare_folder(folder: Path) -> str | None:
        probe = folder / f"probe{PARTIAL}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial(folder.glob("*" + PARTIAL))
            probe.touch()
            probe.unlink()
        except OSError as error:
            return f"checkpoint.dirpath: {folder} cannot be written ({error.strerror}): allow it, or set another folder"
        return None

    def _note_to_stop(self, *_: Any) -> None:
        self.told_to_stop = True
        # It comes to workers too, when it comes to the process group: their end is no error in the middle of a step.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """From here to the end of the batch, the weights may be neither the old nor the new ones."""
        self._stepping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Settle what a checkpoint of this step would hold, and agree on whether to stop."""
        if trainer.fit_loop._should_accumulate():
            return
        self._settle(trainer, pl_module)
        self._undecided = True
        if trainer.strategy.reduce_boolean_decision(self.told_to_stop, all=False):
            trainer._signal_connector.received_sigterm = True  # Lightning stops after logging and validation

    def _settle(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loops = deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
        self.boundary = Boundary(trainer.global_step, trainer.current_epoch, loops, pl_module.resume_state())
        self._stepping = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whether to save is decided before the validation; a process that is to stop does not begin one."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._decide(trainer, pl_module)
            self._due |= self._defer_save_until_validation  # Lightning forgets it where an epoch's end follows
            self._validating, self._defer_save_until_validation = True, False
            if trainer.received_sigterm and not self._is_last_step(trainer):
                raise SIGTERMException

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop in a validation, which is begun anew later. Several ranks do not meet here: they finish it."""
        if self._validating and self.told_to_stop and trainer.world_size == 1 and not self._is_last_step(trainer):
            raise SIGTERMException

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whether to save, by what the validation says; the weights may still be gathered for it, so not here."""
        super().on_validation_end(trainer, pl_module)
        self._validating = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The step before is logged and validated by now."""
        self._decide(trainer, pl_module)
        self._save_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise."""
        self._decide(trainer, pl_module)
        super().on_train_epoch_end(trainer, pl_module)
        self._save_due(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step too, whatever the schedule."""
        if self._has_news(trainer):
            self._save_together(trainer, is_due=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last whole step, and say how to go on."""
        stopped = isinstance(exception, SIGTERMException)
        if stopped:  # other ranks of this machine end quietly: their launcher kills the first otherwise
            exception.code = 0 if trainer.local_rank else 128 + signal.SIGTERM
        if trainer.state.fn != TrainerFn.FITTING or self.boundary is None or self._failed:
            return
        if self._has_news(trainer):
            together = trainer.world_size == 1 or stopped
            if reason := self._unsure(pl_module, exception, together):
                rank_zero_warn(f"step {self.boundary.step} is not saved: {reason}; an earlier checkpoint is whole")
            elif together:
                if not self._validating:  # else the schedule's metrics are to come
                    self._decide(trainer, pl_module)
                self._save_together(trainer, is_due=self._due and not self._validating)
            elif trainer.is_global_zero:
                self._save_alone(trainer)
        why = "told to stop (SIGTERM)" if stopped else f"ended by {type(exception).__name__}"
        if self._last_checkpoint_saved:
            rank_zero_info(f"{why} after step {self.boundary.step}: {self._last_checkpoint_saved} is whole; {GO_ON}")

    def _unsure(self, module: LightningModule, exception: BaseException, together: bool) -> str:
        """Why the state at hand may not be that of the boundary; empty when it is."""
        stepped = module.global_step > self.boundary.step
        if stepped or self._stepping and not isinstance(exception, FloatingPointError):  # ours comes before the step
            return "it was stopped inside the next optimizer step"
        if not together and (module.policy.sharded or has_rollouts(self.boundary.state)):
            return "other ranks have parts of it, and they may have stopped elsewhere"
        return ""

    def _has_news(self, trainer: Trainer) -> bool:
        boundary = self.boundary
        return bool(boundary) and boundary.step > self._last_global_step_saved and not trainer.fast_dev_run

    @staticmethod
    def _is_last_step(trainer: Trainer) -> bool:
        # The Trainer would not go back into its validation: that one is finished.
        return 0 <= trainer.max_steps <= trainer.global_step

    def _decide(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._undecided:
            self._undecided = False
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        self._due = True  # the schedule says so; it is done when the time has come

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Comes with the other one."""

    def _save_due(self, trainer: Trainer) -> None:
        due, self._due = self._due, False
        if due and self._has_news(trainer):
            self._save_together(trainer)

    def _save_together(self, trainer: Trainer, is_due: bool = True) -> None:
        """On all ranks, by the schedule or because this is the last step."""
        candidates = self._monitor_candidates(trainer)
        if is_due or self.monitor is None:
            super()._save_topk_checkpoint(trainer, candidates)
        if self._has_news(trainer):  # not among the best, or none is kept
            if self.save_last:
                self._last_checkpoint_saved = ""  # `last` is a file then, and no link to an older one
            elif not is_due:
                self._save_checkpoint(trainer, self._get_metric_interpolated_filepath_name(candidates, trainer))
        super()._save_last_checkpoint(trainer, candidates)

    def _save_alone(self, trainer: Trainer) -> None:
        """On rank 0, while others are elsewhere: nothing that waits for them."""
        filepath = self.format_checkpoint_name(self._monitor_candidates(trainer))
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
        if failure := self._write(trainer, checkpoint, filepath):
            rank_zero_warn(failure)
            return
        self._last_global_step_saved, self._last_checkpoint_saved = checkpoint["global_step"], filepath
        if self.save_last == "link":
            _link(Path(filepath), Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        with trainer.profiler.profile("save_checkpoint"):
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
            failure = self._write(trainer, checkpoint, filepath) if trainer.is_global_zero else None
            if failure := trainer.strategy.broadcast(failure):
                self._failed = True
                raise SettingsError(failure)
        self._last_global_step_saved, self._last_checkpoint_saved = checkpoint["global_step"], filepath

    def _write(self, trainer: Trainer, checkpoint: dict[str, Any], filepath: str) -> str | None:
        """The folder, then the file: one that is there has its folder.

        Returns:
            What to tell the user if that failed; then nothing new is left behind.
        """
        path = Path(filepath)
        folder = path.with_suffix("")
        partial = folder.with_name(folder.name + PARTIAL)
        try:
            remove_partial([partial])
            self._write_folder(trainer, partial)
            flush(partial)
            remove_partial([folder])
            partial.rename(folder)
            trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, path)
        except Exception as error:  # a full disk is told in many ways
            remove_partial([partial, path.with_name(path.name + PARTIAL)])
            if not path.exists():
                remove_partial([folder])
            sound = newest_sound(path.parent)
            advice = f"{sound} is whole: {GO_ON}" if sound else "no earlier one is there"
            return f"{path} could not be written ({error}); free some space, or set checkpoint.dirpath; {advice}"
        finally:
            self._weights = {}
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self)
        return None

    def _write_folder(self, trainer: Trainer, folder: Path) -> None:
        module = trainer.lightning_module
        prefix = "policy.model."
        weights = {k.removeprefix(prefix): v for k, v in self._weights.items() if k.startswith(prefix)}
        module.policy.save_state(folder, module.processor, weights)
        if trainer.datamodule is not None:
            write_json(folder / TRAINED_ON, asdict(self._trained_on(trainer)))
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors leaves what only its owner may read

    @staticmethod
    def _trained_on(trainer: Trainer) -> TrainedOn:
        """The records of this run, and those that its weights had learned from before."""
        policy, data = trainer.lightning_module.policy, trainer.datamodule
        sources = [Path(policy.adapter or policy.model_name_or_path)]
        sources += [Path(trainer.ckpt_path).with_suffix("")] if trainer.ckpt_path else []
        before = [known for source in sources if (known := trained_on(source))]
        records = data.records["train"]
        return TrainedOn(
            modalities=tuple(sorted({r.modality for r in records}.union(*(b.modalities for b in before)) - {""})),
            tasks=tuple(sorted({r.task for r in records}.union(*(b.tasks for b in before)) - {""})),
            datasets=tuple(sorted({r.dataset for r in records}.union(*(b.datasets for b in before)) - {""})),
            num_records=len(records),
            prompt=data.prompt,
            step=trainer.global_step,
        )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever saves: what is saved is the boundary."""
        self._weights = checkpoint["state_dict"]  # before the module leaves out what does not train
        if self._stepping and trainer.global_step > (self.boundary.step if self.boundary else 0):
            self._settle(trainer, pl_module)  # another ModelCheckpoint, whose turn is before ours
        boundary = self.boundary
        if boundary is not None and "grpo" not in checkpoint:
            loops = _to_validate(boundary.loops) if self._validating else boundary.loops
            checkpoint |= {"epoch": boundary.epoch, "global_step": boundary.step, "loops": loops}
            checkpoint["grpo"] = gathered(boundary.state, trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, with paths as seen from the folder of the checkpoint."""
        state = super().state_dict() | {"previous_path": self.previous_path}
        paths = {name: self._relative(state[name]) for name in _PATHS}
        best = {self._relative(path): score for path, score in state["best_k_models"].items()}
        return state | paths | {"best_k_models": best, "dirpath": ""}

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self.dirpath) if path else ""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note what the paths in it start from."""
        self._resumed_from = Path(trainer.ckpt_path).absolute().parent

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Lightning does it: in another folder than before, only the best checkpoint is known."""
        if not state_dict["dirpath"]:  # absolute in checkpoints that another ModelCheckpoint has written
            here = self._resumed_from.resolve() == Path(self.dirpath).resolve()
            base = self.dirpath if here else str(self._resumed_from)
            state_dict |= {name: os.path.join(base, path) if (path := state_dict[name]) else "" for name in _PATHS}
            best = {os.path.join(base, path): score for path, score in state_dict["best_k_models"].items()}
            state_dict |= {"best_k_models": best, "dirpath": base}
            self.previous_path = state_dict.pop("previous_path") if here else ""
        super().load_state_dict(state_dict)

    def file_exists(self, filepath: str, trainer: Trainer) -> bool:
        """A run that goes on in its folder replaces what is there: nothing sound came after where it goes on."""
        return not self.goes_on and super().file_exists(filepath, trainer)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        inside = Path(self.dirpath).absolute() in Path(previous).absolute().parents
        if self.goes_on and inside:  # also the one that it went on from
            return previous != current
        return super()._should_remove_checkpoint(trainer, previous, current)

    def _save_none_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Lightning's, but the one that makes room is the one before the last: all is settled before it is saved."""
        filepath = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer, self.best_model_path)
        oldest = self.previous_path
        if filepath != self.best_model_path:
            self.previous_path, self.best_model_path = self.best_model_path, filepath
        self._save_checkpoint(trainer, filepath)
        makes_room = self.save_top_k == 1 and oldest not in ("", self.previous_path)
        if makes_room and self._should_remove_checkpoint(trainer, oldest, filepath):
            self._remove_checkpoint(trainer, oldest)

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero:
            _link(Path(filepath), Path(linkpath))
        trainer.strategy.barrier()

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            remove_partial([Path(filepath).with_suffix("")])


def _link(path: Path, link: Path) -> None:
    """Let ``link`` and its folder stand for a checkpoint and its folder; each changes at once."""
    for target, name in ((path.with_suffix(""), link.with_suffix("")), (path, link)):
        if target != name:
            partial = name.with_name(name.name + PARTIAL)
            remove_partial([partial])
            partial.symlink_to(os.path.relpath(target, name.parent))
            if name.is_dir() and not name.is_symlink():
                shutil.rmtree(name)
            partial.replace(name)


def _to_validate(loops: dict[str, Any]) -> dict[str, Any]:
    """Counts of a run that is about to validate: Lightning goes back there when it is in the middle of a validation."""
    loops = deepcopy(loops)
    training = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (training["total"], training["current"]):
        counts["completed"] += 1
    validation = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    return loops
