"""Checkpoints: one file to go on from, and beside it a folder that other tools read."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from medgrpo.runs import TRAINED_ON, TrainedOn, trained_on, write_json


class Checkpoint(ModelCheckpoint):
    """Lightning's checkpoint, and beside ``NAME.ckpt`` a folder ``NAME/`` with the PEFT adapter (or the whole model).

    The ``.ckpt`` resumes training (``--ckpt_path``); the folder is for ``PeftModel.from_pretrained`` and for
    ``model.policy.adapter``. Arguments are those of ``ModelCheckpoint``.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step too, whatever the schedule."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step > self._last_global_step_saved and not trainer.fast_dev_run:
            candidates = self._monitor_candidates(trainer)
            self._save_checkpoint(trainer, self._get_metric_interpolated_filepath_name(candidates, trainer))
            self._save_last_checkpoint(trainer, candidates)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            folder = Path(filepath).with_suffix("")
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            module = trainer.lightning_module
            module.policy.save(partial, module.processor)
            if trainer.datamodule is not None:
                write_json(partial / TRAINED_ON, asdict(self._trained_on(trainer)))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

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

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        ModelCheckpoint._link_checkpoint(trainer, filepath, linkpath)
        folder, link = Path(filepath).with_suffix(""), Path(linkpath).with_suffix("")
        if trainer.is_global_zero and folder != link:
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name, target_is_directory=True)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            shutil.rmtree(Path(filepath).with_suffix(""), ignore_errors=True)
