"""Changed configurations and records: each runs, or is one clear error that names what is wrong; never a traceback."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning import Trainer
from patience import no_hang
from PIL import Image
from test_cli import write_config, write_data
from tiny import tiny_folder

from data_modules import MedicalVQADataModule
from medgrpo import limits
from medgrpo.callbacks import ScheduleCheck
from medgrpo.checkpoint import Checkpoint
from medgrpo.failures import last_words
from medgrpo.health import Health
from medgrpo.module import GRPOModule
from medgrpo.parameters import ParameterCheck
from medgrpo.policy import Policy
from medgrpo.rewards import AccuracyReward, FormatReward
from medgrpo.trainer_cli import MedGRPOCLI, main

EXAMPLES = settings(
    max_examples=240,  # at least 200 different ones
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

WRONG: list[Any] = [None, True, False, 0, -1, 3, 2.5, -0.5, float("nan"), float("inf"), 10**30, -(10**30), 1e-320]
WRONG += [
    "",
    " ",
    "x",
    "3",
    "nan",
    "auto",
    "none",
    "\0",
    "ü\u202e漢",
    "x" * 5000,
    "{Question}",
    "${HOME}",
    "!!python/object",
]
WRONG += [[], [[]], [None], ["x", 3], [0.5, -2], {}, {"x": 1}, {"class_path": "no.such.Class"}, {"class_path": 3}]
WRONG += [{"class_path": "builtins.dict", "init_args": {}}, {"class_path": "os.system", "init_args": {"command": "x"}}]
WRONG += [
    {"class_path": "torch.optim.SGD", "init_args": {"lr": -1}},
    {"class_path": "torch.optim.Adam", "init_args": 3},
]
WRONG += [[{"class_path": "medgrpo.rewards.FormatReward", "init_args": {"style": "x"}}]]
WRONG += [
    "/proc/nowhere",
    "{folder}/questions.json",
    "{folder}/images",
    "{folder}/images/0 0.png",
    "{folder}/nowhere",
    "..",
]
"""Values that no option or few may have."""

SIZES = ("num_generations", "max_completion_length", "num_workers", "lora_r", "num_generations_eval", "max_steps")
SIZES += ("devices", "num_nodes", "profile")
"""Options of which a great value is right and takes memory, time or other machines."""

SMALL = ("0", "-1", "True", "False", "x", "2.5")
"""What they get of the numbers and texts."""


def defaults(prefix: str, owner: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": parameter.default for name, parameter in inspect.signature(owner).parameters.items()}


DEFAULTS = defaults("model", GRPOModule) | defaults("model.policy", Policy) | defaults("health", Health)
DEFAULTS |= defaults("data.init_args", MedicalVQADataModule) | defaults("checkpoint", Checkpoint.__mro__[1])
KEYS = list(DEFAULTS)
KEYS += [f"trainer.{name}" for name in ("accelerator", "strategy", "devices", "num_nodes", "precision", "logger")]
KEYS += [f"trainer.{name}" for name in ("callbacks", "max_epochs", "min_steps", "max_time", "limit_train_batches")]
KEYS += [f"trainer.{name}" for name in ("val_check_interval", "log_every_n_steps", "gradient_clip_val", "plugins")]
KEYS += [
    f"trainer.{name}" for name in ("accumulate_grad_batches", "default_root_dir", "profiler", "gradient_clip_algorithm")
]
KEYS += [f"trainer.logger.init_args.{name}" for name in ("save_dir", "name", "version", "unheard_of")]
KEYS += [f"model.optimizer.{name}" for name in ("class_path", "init_args", "init_args.lr", "init_args.betas")]
KEYS += [f"model.lr_scheduler.{name}" for name in ("class_path", "init_args.total_iters", "init_args.start_factor")]
KEYS += [
    "model",
    "data",
    "trainer",
    "checkpoint",
    "data.class_path",
    "data.init_args",
    "model.policy",
    "seed_everything",
]
KEYS += ["unheard_of", "model.unheard_of", "data.init_args.unheard_of", "trainer.unheard_of", "memory_probe.enabled"]
KEYS += ["sample_panel.every_n_steps", "sample_panel.num_prompts", "model.rewards.0", "model.rewards.0.class_path"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, Any]:
    """A configuration that runs in half a second."""
    folder = tmp_path_factory.mktemp("base")
    write_data(folder)
    quick = {"trainer__max_steps": 1, "model__max_completion_length": 2, "memory_probe__enabled": False}
    config = write_config(folder, **quick, trainer__default_root_dir=str(folder), trainer__logger=False)
    return yaml.safe_load(Path(config).read_text())


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path) -> None:
    """Without what takes time and has nothing to do with options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medgrpo"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(limits, "matrix_peak", lambda *_: 1e12)
    monkeypatch.setattr(limits, "read_bandwidth", lambda *_: 1e10)
    monkeypatch.setattr(MedGRPOCLI, "subcommands", staticmethod(lambda: {"fit": FIT}))


FIT = MedGRPOCLI.subcommands()["fit"]


def run(config: dict[str, Any]) -> str | None:
    """What the user is told, or None when the command ends as it should."""
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    out, err, code = StringIO(), StringIO(), None
    try:
        with no_hang(), redirect_stdout(out), redirect_stderr(err):
            main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"])
    except SystemExit as stopped:
        code = stopped.code
    assert "Traceback" not in out.getvalue() + err.getvalue() + str(code)
    if code == 2:  # argparse
        return err.getvalue().rpartition("error:")[2].strip()
    assert code is None or code.startswith("medgrpo: ")
    return code and code.removeprefix("medgrpo: ")


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    place = config
    for part in path:
        inner = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(inner, dict | list):  # what was there is no group
            place[part] = inner = {}
        place = inner
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return config


@EXAMPLES
@given(data=st.data())
def test_changed_configurations(base, data) -> None:
    key = data.draw(st.sampled_from(KEYS))
    alike = [value for value in WRONG if type(value) is type(DEFAULTS.get(key))]  # the parser takes most of these
    value = data.draw(st.sampled_from(alike if alike and data.draw(st.booleans()) else WRONG))
    last = key.rpartition(".")[2]
    if last in SIZES and isinstance(value, int | float | str) and str(value) not in SMALL:
        value = 0
    if isinstance(value, str):
        value = value.replace("{folder}", base["data"]["init_args"]["image_root"])
    said = run(changed(base, key, value))
    if said is not None:
        parts = [part for part in key.split(".") if part not in ("init_args", "class_path", "0")]
        assert any(part in said for part in [*parts[-2:], f"{value}"[:80]]), said


RECORD_WRONG = [value for value in WRONG if not (isinstance(value, str) and "{folder}" in value)]
RECORD_WRONG += [
    ["images/1 0.png", 3],
    ["../../etc/passwd"],
    ["images"],
    "images/1 0.png",
    ["images/none.png"],
    "A" * 40_000,
]
RECORD_WRONG += [
    ["a"] * 40,
    ["<|image_pad|>"],
    "<|im_end|>",
    "<|vision_start|>",
    "A) x\nB) y",
    {"A": "x", "B": "y"},
    "B",
    "J",
]
RECORD_WRONG += [["images/broken.png"], ["images/empty.png"], ["images/wide.png"], ["images/1 0.png"] * 30, ["x\0.png"]]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return Policy(tiny_folder())._load_base()


def train(folder: Path, questions: Path) -> str | None:
    """What the user is told of these questions; the rest of the command is the same whatever they are."""
    rewards = [AccuracyReward(), FormatReward("think")]
    policy = Policy(tiny_folder(), max_pixels=6000)
    adam = partial(torch.optim.AdamW, lr=0.01)
    module = GRPOModule(policy, rewards, adam, num_generations=3, max_completion_length=2, beta=0.04)
    data = MedicalVQADataModule(str(questions), image_root=str(folder), prompts_per_batch=4)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[ScheduleCheck(), ParameterCheck(), Health()],
    )
    try:
        with no_hang(), redirect_stdout(StringIO()):
            trainer.fit(module, data)
    except Exception as error:
        return last_words(error, "fit")
    assert trainer.global_step == 1
    return None


@EXAMPLES
@given(data=st.data())
def test_changed_records(base, network, monkeypatch, data) -> None:
    folder = Path(base["data"]["init_args"]["image_root"])
    (folder / "images/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "images/empty.png").write_bytes(b"")
    Image.new("L", (3000, 2)).save(folder / "images/wide.png")
    rows = json.loads((folder / "questions.json").read_text())
    index = data.draw(st.integers(0, len(rows) - 1))
    kind = data.draw(st.sampled_from(["value"] * 6 + ["gone", "more", "row", "twice"]))
    field = data.draw(st.sampled_from(list(rows[0])))
    value = data.draw(st.sampled_from(RECORD_WRONG))
    if kind == "value":
        rows[index][field] = value
    elif kind == "gone":
        del rows[index][field]
    elif kind == "more":
        rows[index]["unheard of"] = value
    elif kind == "row":
        rows[index] = value
    else:
        rows += [rows[index]]
    path = folder / "changed.json"
    path.write_text(json.dumps(rows))
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "_load_base", lambda _: copy.deepcopy(network))
        said = train(folder, path)
    if said is not None:
        assert not said.startswith("fit stopped"), said
        assert re.search(rf"changed-{index}\b|changed\.json", said), said
