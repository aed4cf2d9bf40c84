"""Every YAML works in every composition that its own comments name, and its values arrive."""

import re
from pathlib import Path

import pytest
import torch
from commands import arguments, configs, set_up

ROOT = Path(__file__).parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
MODALITIES = ("ct", "mri", "xray", "ultrasound", "fundus", "dermoscopy", "microscopy", "oct")


def shown(file: str) -> list[list[str]]:
    """Commands in the comments at the top of a file, indented by three blanks."""
    comments = re.findall(r"^#   (.*)", (ROOT / file).read_text(), flags=re.MULTILINE)
    return arguments("\n".join(comments))


SHOWN = [(file, command) for file in FILES for command in shown(file)]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_configs():
    assert len(FILES) >= 16


@pytest.mark.parametrize("file", FILES)
def test_file_shows_how_it_is_run(file):
    assert any(file in configs(command) for command in shown(file))


@pytest.mark.parametrize(("file", "command"), SHOWN, ids=[f"{file}: {' '.join(c)}" for file, c in SHOWN])
def test_shown_command_is_accepted(file, command, monkeypatch):
    cli = set_up(command, monkeypatch)
    assert cli.datamodule.prompts_per_batch % cli.trainer.accumulate_grad_batches == 0
    needs = {"fit": "train"}.get(command[0], command[0])
    assert cli.datamodule.paths[needs]


def composed(monkeypatch, *files, command="fit"):
    return set_up([command, *(part for file in files for part in ("--config", f"configs/{file}.yaml"))], monkeypatch)


def optimizer_settings(cli) -> dict:
    return cli.model.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults


def test_medvlm_r1_values_arrive(monkeypatch):
    cli = composed(monkeypatch, "medvlm_r1/grpo")
    model, data = cli.model, cli.datamodule
    assert (model.num_generations, model.max_completion_length, model.beta, model.top_k) == (4, 512, 0.04, 50)
    assert (model.loss_type, model.temperature, model.num_iterations) == ("grpo", 1.0, 1)
    assert [type(reward).__name__ for reward in model.rewards] == ["MedVLMR1Accuracy", "MedR1Format"]
    assert (model.policy.max_pixels, model.policy.use_peft, model.policy.freeze_vision) == (401408, False, False)
    assert (type(data).__name__, data.prompt, data.limit_train_records) == ("MRI", "medvlm_r1_think", 600)
    assert cli.trainer.max_epochs == 2
    settings = optimizer_settings(cli)
    assert (settings["lr"], settings["weight_decay"]) == (1e-6, 0.0)


def test_medvlm_r1_test_replaces_the_data(monkeypatch):
    cli = composed(monkeypatch, "medvlm_r1/grpo", "medvlm_r1/test", command="test")
    data = cli.datamodule
    assert (data.modality, data.prompt, data.max_prompt_length) == ("", "medvlm_r1_think", 1024)
    assert data.paths["test"] == ["MedVLM-R1/MRI_CT_XRAY_300each_dataset.json"]


@pytest.mark.parametrize("mode", ["think", "nothink"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_med_r1_modality_joins_the_preset(mode, modality, monkeypatch):
    file = f"configs/med_r1/{modality}.yaml"
    (command,) = (command for command in shown(file) if f"configs/med_r1/{mode}.yaml" in command)
    cli = set_up(command, monkeypatch)
    data = cli.datamodule
    assert data.modality == modality
    assert (data.prompt, data.resize, data.max_prompt_length) == (f"med_r1_{mode}", (384, 384), 1024)
    assert data.paths["train"][0].endswith("_train.json")
    assert data.paths["test"] == data.paths["predict"] == [data.paths["train"][0].replace("train", "test")]
    assert bool(cli.model.rewards[1](["<think>x</think><answer>A</answer>"], [None])[0]) == (mode == "think")
    # The learning rate reaches zero at the last step.
    num_records = int(re.search(r"(\d+) records to train on", Path(file).read_text())[1])
    num_steps = num_records // data.prompts_per_batch * cli.trainer.max_epochs
    assert cli.config.fit.model.lr_scheduler.init_args.total_iters == num_steps


@pytest.mark.parametrize(
    ("file", "use_peft", "quantize", "freeze_vision", "lr"),
    [
        ("lora", True, None, True, 1e-5),
        ("qlora", True, "nf4", True, 1e-5),
        ("full", False, None, False, 1e-6),
    ],
)
def test_policy_files_change_the_policy_and_nothing_else(file, use_peft, quantize, freeze_vision, lr, monkeypatch):
    before = composed(monkeypatch, "medvlm_r1/grpo")
    cli = composed(monkeypatch, "medvlm_r1/grpo", file)
    policy = cli.model.policy
    assert (policy.use_peft, policy.quantize, policy.freeze_vision) == (use_peft, quantize, freeze_vision)
    assert policy.max_pixels == 401408
    assert optimizer_settings(cli) == optimizer_settings(before) | {"lr": lr}
    assert cli.config.fit.data == before.config.fit.data


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("trainer: {max_epoch: 1}", "max_epoch"),
        ("model: {num_generation: 4}", "num_generation"),
        ("model: {policy: {lora_rank: 8}}", "lora_rank"),
        ("model: {optimizer: {class_path: torch.optim.AdamW, init_args: {rate: 1.0e-6}}}", "rate"),
        ("model: {rewards: [{class_path: medgrpo.rewards.FormatReward, init_args: {styl: think}}]}", "styl"),
        ("model: {loss_type: gspo}", "gspo"),
        ("data: {init_args: {promt: think}}", "promt"),
        ("data: {class_path: data_modules.CT, init_args: {modality: ct}}", "modality"),
        ("checkpoint: {save_steps: 50}", "save_steps"),
        ("num_generations: 4", "num_generations"),
    ],
)
def test_unknown_key_or_value_is_refused(wrong, named, tmp_path, monkeypatch, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(wrong)
    with pytest.raises(SystemExit):
        set_up(["fit", "--config", "configs/medvlm_r1/grpo.yaml", "--config", str(file)], monkeypatch)
    assert re.search(rf"\b{named}\b", capsys.readouterr().err.split("error:")[1])
