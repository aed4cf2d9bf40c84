"""``medgrpo fit | validate | test | predict``: LightningCLI, configured from YAML and the command line."""

from __future__ import annotations

import sys
import warnings

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from data_modules.classes import MedicalVQADataModule  # and its subclasses, for --data.help
from medgrpo.callbacks import RolloutProgressBar, SamplePanel, ScheduleCheck
from medgrpo.checkpoint import Checkpoint
from medgrpo.module import GRPOModule
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.probe import MemoryProbe
from medgrpo.profiling import Profile
from medgrpo.types import UserError

NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"`is_gradient_checkpointing` is deprecated",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # on purpose: dropout is off
    r"Total length of `\w+` across ranks is zero",  # fit without data.val; a test that is done already
)
"""Warnings between libraries that a user can do nothing about."""


class MedGRPOCLI(LightningCLI):
    """The Trainer's commands with the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Each of these callbacks is a group of options; ``--checkpoint.monitor`` is ``Checkpoint``'s ``monitor``."""
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SamplePanel, "sample_panel")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_lightning_class_args(MemoryProbe, "memory_probe")
        parser.add_argument(
            "--profile",
            type=NonNegativeInt,
            default=0,
            help="Optimizer steps of fit to profile, after a first one that warms up; a trace and a table of where "
            "the time goes are written to profile/ in the run's folder. 0 is off.",
        )
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.filename": "step{step}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        """Add the callbacks that options switch; ``trainer.enable_progress_bar: false`` means ours too."""
        if self._get(self.config, "trainer.enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"].append(RolloutProgressBar())
        if steps := self._get(self.config, "profile"):
            self.trainer_defaults["callbacks"].append(Profile(steps))

    def before_test(self) -> None:
        """What answers depend on its checkpoint, too."""
        self._get(self.config_init, "predictions").ckpt_path = self._get(self.config, "ckpt_path")

    def before_predict(self) -> None:
        """Likewise."""
        self.before_test()


def main(args: list[str] | None = None) -> None:
    """Run one command; ``args`` are those of the command line by default."""
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)
    try:
        MedGRPOCLI(
            GRPOModule,
            MedicalVQADataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [ScheduleCheck()], "num_sanity_val_steps": 0},
            parser_kwargs={"epilog": "See also: medgrpo data, medgrpo grade, medgrpo compare, medgrpo report (--help)"},
            args=args,
        )
    except UserError as error:
        sys.exit(f"medgrpo: {error}")
