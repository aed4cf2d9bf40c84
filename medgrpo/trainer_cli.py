"""``medgrpo fit | validate | test | predict``: LightningCLI, configured from YAML and the command line."""

from __future__ import annotations

import signal
import sys
import warnings

from jsonargparse.typing import NonNegativeInt
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from data_modules.classes import MedicalVQADataModule  # and its subclasses, for --data.help
from medgrpo.callbacks import RolloutProgressBar, SamplePanel, ScheduleCheck
from medgrpo.checkpoint import Checkpoint
from medgrpo.checkpoint_file import check
from medgrpo.config_checks import check_options
from medgrpo.failures import stop
from medgrpo.health import Health
from medgrpo.module import GRPOModule
from medgrpo.parameters import ParameterCheck
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.probe import MemoryProbe
from medgrpo.profiling import Profile
from medgrpo.types import SettingsError

NOISE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"`is_gradient_checkpointing` is deprecated",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # on purpose: dropout is off
    r"FSDP2-wrapped module .* returned a view",  # nobody changes it in place
    r"It is recommended to use .*sync_dist=True",  # what is logged is of all ranks already
    r"Total length of `\w+` across ranks is zero",  # fit without data.val; a test that is done already
)
"""Warnings between libraries that a user can do nothing about."""


class MedGRPOCLI(LightningCLI):
    """The Trainer's commands with the callbacks that every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Each of these callbacks is a group of options; ``--checkpoint.monitor`` is ``Checkpoint``'s ``monitor``."""
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SamplePanel, "sample_panel")
        parser.add_lightning_class_args(Health, "health")
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
        """Check, and add callbacks that options switch; ``trainer.enable_progress_bar: false`` means ours too."""
        groups = {
            "trainer": Trainer,
            "model": GRPOModule,
            "data": MedicalVQADataModule,
            "checkpoint": Checkpoint,
            "sample_panel": SamplePanel,
            "health": Health,
            "predictions": PredictionWriter,
            "memory_probe": MemoryProbe,
        }
        check_options({name: (target, self._get(self.config, name)) for name, target in groups.items()})
        if self._get(self.config, "trainer.enable_progress_bar") is not False:
            self.trainer_defaults["callbacks"].append(RolloutProgressBar())
        if steps := self._get(self.config, "profile"):
            self.trainer_defaults["callbacks"].append(Profile(steps))

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no options to merge; whether they are sound is seen when the run's folder is known."""

    def before_fit(self) -> None:
        """``--ckpt_path last`` goes on from where the run's folder is, or begins: the same command does both."""
        self.find_checkpoint()

    def before_validate(self) -> None:
        """Likewise."""
        self.find_checkpoint()

    def find_checkpoint(self) -> None:
        """Refuse a damaged checkpoint before a model is loaded; ``fit`` finds the newest sound one as ``last``."""
        options = self.config_init[self.subcommand]
        options.weights_only = True
        if options.ckpt_path == "last" and self.subcommand == "fit":
            options.ckpt_path = self._get(self.config_init, "checkpoint").go_on(self.trainer)
        elif options.ckpt_path in ("best", "last", "hpc"):
            raise SettingsError(f"ckpt_path: expected the path of a checkpoint, got {options.ckpt_path!r}")
        elif options.ckpt_path:
            check(options.ckpt_path)

    def before_test(self) -> None:
        """What answers depend on its checkpoint, too."""
        self.find_checkpoint()
        self._get(self.config_init, "predictions").ckpt_path = self._get(self.config, "ckpt_path")

    def before_predict(self) -> None:
        """Likewise."""
        self.before_test()


def main(args: list[str] | None = None) -> None:
    """Run one command; ``args`` are those of the command line by default.

    Raises:
        SystemExit: with one line for the user, and status 1, where the command stops; 130 after Ctrl-C.
    """
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)
    try:
        MedGRPOCLI(
            GRPOModule,
            MedicalVQADataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": [ScheduleCheck(), ParameterCheck()], "num_sanity_val_steps": 0},
            parser_kwargs={
                "epilog": "See also: medgrpo data, grade, compare, report, export (--help)",
                # Short, as it stands before every error of the parser.
                **{n: {"usage": f"medgrpo {n} [--config FILE] [--OPTION VALUE]"} for n in MedGRPOCLI.subcommands()},
            },
            args=args,
        )
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's way to end then
            sys.exit(128 + signal.SIGINT)
        raise
    except Exception as error:
        given = sys.argv[1:] if args is None else args
        stop(error, next((name for name in MedGRPOCLI.subcommands() if name in given), "medgrpo"))
