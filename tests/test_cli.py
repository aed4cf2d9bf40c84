"""The commands, run whole on a tiny model: what they write, how they resume, what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_folder

from medgrpo.trainer_cli import main

SUBSETS = ("CT(Computed Tomography)", "X-Ray")


def write_data(folder: Path, num_records: int = 8) -> Path:
    """Records in the MedVLM-R1 layout: one image, two images, none."""
    generator = np.random.default_rng(0)
    records = []
    for i in range(num_records):
        names = [f"images/{i} {k}.png" for k in range((1, 2, 0)[i % 3])]
        for name in names:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            size = (40 + 12 * (i % 3), 60, 3)
            Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(folder / name)
        options = ["Yes", "No", "Cyst"][: 2 + i % 2]
        letters = "\n".join(f"{letter}) {o}" for letter, o in zip("ABC", options, strict=False))
        records.append(
            {
                "image": names,
                "problem": f"Is it {i}?\n{letters}",
                "solution": "AB"[i % 2],
                "question": f"Is it {i}?",
                "options": options,
                "answer": options[i % 2],
                "dataset": "D",
                "subset": SUBSETS[i % 2],
            }
        )
    path = folder / "questions.json"
    path.write_text(json.dumps(records))
    return path


def write_config(folder: Path, **changes) -> str:
    """A complete YAML; ``changes`` are dotted keys with underscores doubled."""
    data = folder / "questions.json"
    config = {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": "", "version": "run"},
            },
        },
        "model": {
            "policy": {"model_name_or_path": tiny_folder(), "max_pixels": 6000},
            "rewards": [
                {"class_path": "medgrpo.rewards.AccuracyReward"},
                {"class_path": "test_module.LengthReward"},
            ],
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "lr_scheduler": {
                "class_path": "torch.optim.lr_scheduler.LinearLR",
                "init_args": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 4},
            },
            "num_generations": 3,
            "max_completion_length": 6,
            "beta": 0.04,
        },
        "data": {
            "class_path": "data_modules.base.MedicalVQADataModule",
            "init_args": {
                "train": str(data),
                "val": str(data),
                "test": str(data),
                "predict": str(data),
                "image_root": str(folder),
                "prompts_per_batch": 4,
            },
        },
        "checkpoint": {"every_n_train_steps": 2, "save_top_k": -1},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def scalars(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_fit_validate_test_predict(folder, capsys):
    config = write_config(folder, trainer__accumulate_grad_batches=2)
    main(["fit", "--config", config])
    run = folder / "runs" / "run"
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert saved == ["last", "last.ckpt", "step2", "step2.ckpt", "step4", "step4.ckpt"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in (run / "checkpoints/step4").iterdir()
    }
    assert "rollout: " not in capsys.readouterr().out
    assert (run / "config.yaml").is_file()

    logged = scalars(run)
    names = {
        "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "grad_norm", "num_tokens", "step_time",
        "completions/mean_length", "completions/clipped_ratio", "clip_ratio/region_mean",
        "rewards/accuracy_reward/mean", "rewards/length_reward/std", "sampling/sampling_logp_difference/max",
        "timing_s/rollout", "timing_s/reward", "timing_s/reference", "timing_s/train",
        "perf/tokens_per_second", "perf/peak_memory_gib",
        "val/accuracy", "val/accuracy/modality/ct", "val/accuracy/modality/xray", "val/unparsed", "val/truncated",
    }  # fmt: skip
    assert names <= set(logged.Tags()["scalars"])
    assert [event.step for event in logged.Scalars("reward")] == [0, 1, 2, 3]
    assert max(event.value for event in logged.Scalars("sampling/sampling_logp_difference/max")) < 1e-4
    assert logged.Tags()["images"]
    panel = logged.Tensors("samples/0/completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "extracted" in panel
    assert "length_reward" in panel

    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert all("lora_" in name for name in state["state_dict"])
    assert "hyper_parameters" not in state

    last = str(run / "checkpoints/last.ckpt")
    main(["validate", "--config", config, "--ckpt_path", last])
    main(["test", "--config", config, "--ckpt_path", last])
    assert "accuracy" in capsys.readouterr().out
    out = folder / "out"
    main(["predict", "--config", config, "--ckpt_path", last, "--predictions.dirpath", str(out)])
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert {"id", "prompt", "completion", "answer", "gold", "correct"} <= rows[0].keys()
    with pytest.raises(SystemExit, match="ckpt_path was .*, is None"):
        main(["predict", "--config", config, "--predictions.dirpath", str(out)])

    adapter = ["--model.policy.adapter", str(run / "checkpoints/last"), "--predictions.dirpath", str(folder / "again")]
    main(["predict", "--config", config, *adapter])
    again = [json.loads(line) for line in (folder / "again/predictions.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in again] == [row["completion"] for row in rows]


def test_the_progress_bar_moves_during_rollouts(folder, capsys):
    main(["fit", "--config", write_config(folder, trainer__max_steps=1, trainer__enable_progress_bar=True)])
    shown = capsys.readouterr()
    assert "rollout: token 1, " in shown.out + shown.err


def test_accumulation_changes_no_update(folder):
    """Through the Trainer: Lightning's division by the micro-batches is undone. The last step is saved unasked."""
    adapters = []
    for parts in (1, 2, 4):
        sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
        config = write_config(
            folder, trainer__accumulate_grad_batches=parts, trainer__max_steps=3, model__optimizer=sgd
        )
        main(["fit", "--config", config, "--trainer.logger.init_args.version", f"parts{parts}"])
        adapters.append(load_file(folder / f"runs/parts{parts}/checkpoints/step3/adapter_model.safetensors"))
    moved = [name for name in adapters[0] if "lora_B" in name and adapters[0][name].abs().max() > 1e-3]
    assert moved
    for other in adapters[1:]:
        for name in adapters[0]:
            assert torch.allclose(adapters[0][name], other[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("changes", [{}, {"model__num_iterations": 2, "model__epsilon": 0.05}], ids=["mu1", "mu2"])
def test_resuming_continues_bit_for_bit(folder, changes):
    def run(name, steps, *more):
        config = write_config(folder, trainer__max_steps=steps, **changes)
        main(["fit", "--config", config, "--trainer.logger.init_args.version", name, *more])
        return folder / "runs" / name / "checkpoints"

    whole = run("whole", 6)
    half = run("half", 2)
    rest = run("rest", 6, "--ckpt_path", str(half / "step2.ckpt"))
    expected = load_file(whole / "step6" / "adapter_model.safetensors")
    got = load_file(rest / "step6" / "adapter_model.safetensors")
    start = load_file(half / "step2" / "adapter_model.safetensors")
    assert any(not torch.equal(expected[k], start[k]) for k in expected), "nothing was trained after the resume"
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_full_fine_tuning_and_4_bit_run_through(folder):
    full = {"model__policy__use_peft": False, "model__policy__freeze_vision": False, "trainer__max_steps": 2}
    main(["fit", "--config", write_config(folder, **full), "--trainer.logger.init_args.version", "full"])
    assert (folder / "runs/full/checkpoints/step2/model.safetensors").is_file()
    main(
        [
            "fit",
            "--config",
            write_config(folder, model__policy__quantize="nf4", trainer__max_steps=2),
            "--trainer.logger.init_args.version",
            "4bit",
        ]
    )
    assert (folder / "runs/4bit/checkpoints/step2/adapter_model.safetensors").is_file()


SHARED = Path(__file__).parents[2] / "shared" / "data" / "medvlm_r1"


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real MedVLM-R1 examples are not beside this checkout")
def test_the_medvlm_preset_runs_on_real_images(tmp_path):
    configs = Path(__file__).parents[1] / "configs"
    files = [configs / "medvlm_r1/grpo.yaml", configs / "lora.yaml"]
    common = [f"--config={file}" for file in files]
    examples = SHARED / "examples.json"
    common += [
        f"--model.policy.model_name_or_path={tiny_folder('qwen2_vl')}",
        "--model.max_completion_length=8",
        "--data=data_modules.MedicalVQADataModule",
        f"--data.image_root={SHARED}",
        "--data.num_workers=0",
        "--data.max_prompt_length=2048",
        "--trainer.precision=32-true",
        "--trainer.accelerator=cpu",
        f"--trainer.logger.save_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
    ]
    main(["fit", *common, f"--data.train={examples}", f"--data.val={examples}", "--trainer.max_steps=2"])
    run = tmp_path / "medvlm_r1" / "version_0"
    assert "val/accuracy/modality/mri" in scalars(run).Tags()["scalars"]
    last = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    main(["validate", *common, f"--data.val={examples}", last])
    main(["predict", *common, f"--data.predict={examples}", f"--predictions.dirpath={tmp_path / 'p'}", last])
    rows = [json.loads(line) for line in (tmp_path / "p/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"examples-{i}" for i in range(8)]


def refused(folder, capsys, *, match: str, **changes):
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", write_config(folder, **changes)])
    text = str(error.value) + capsys.readouterr().err
    assert match in text, text
    assert not (folder / "runs" / "run" / "checkpoints").exists(), "training had begun"


def change_record(folder, index, **fields):
    path = folder / "questions.json"
    records = json.loads(path.read_text())
    records[index] |= fields
    path.write_text(json.dumps(records))


def test_all_missing_images_are_listed(folder, capsys):
    (folder / "images/0 0.png").unlink()
    (folder / "images/4 1.png").unlink()
    refused(folder, capsys, match="0 0.png")
    refused(folder, capsys, match="4 1.png")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"image": ["../secret.png"]}, "image_root"),
        ({"solution": "F"}, "solution"),
        ({"problem": 3}, "problem"),
    ],
    ids=["leaves-the-root", "gold-not-offered", "wrong-type"],
)
def test_bad_records_are_named(folder, capsys, fields, match):
    change_record(folder, 5, **fields)
    refused(folder, capsys, match=match)


def test_bad_files_and_settings_are_named(folder, capsys, tmp_path):
    refused(folder, capsys, match="max_prompt_length", data__init_args__max_prompt_length=20)
    refused(folder, capsys, match="max_image_pixels", data__init_args__max_image_pixels=1000)
    refused(folder, capsys, match="num_generations", model__num_generations=1)
    refused(folder, capsys, match="reward_weights", model__reward_weights=[1.0])
    refused(folder, capsys, match="prompts_per_batch", trainer__accumulate_grad_batches=3)
    refused(
        folder, capsys, match="limit_train_batches", trainer__accumulate_grad_batches=2, trainer__limit_train_batches=3
    )
    refused(folder, capsys, match="do not fill one batch", data__init_args__prompts_per_batch=16)
    refused(folder, capsys, match="nope", data__init_args__prompt="nope")
    refused(folder, capsys, match="model_name_or_path", model__policy__model_name_or_path="/no/such/folder")
    refused(folder, capsys, match="adapter", model__policy__adapter="./no-such-adapter")
    (folder / "images/1 0.png").write_bytes(b"not an image")
    refused(folder, capsys, match="1 0.png")
    (folder / "questions.json").write_text('[{"image": ')
    refused(folder, capsys, match="questions.json")


def test_a_checkpoint_of_another_policy_is_refused(folder):
    main(["fit", "--config", write_config(folder, trainer__max_steps=2)])
    last = folder / "runs/run/checkpoints/last.ckpt"
    other = write_config(folder, model__policy__freeze_vision=False)
    with pytest.raises(SystemExit, match="42 of .* trained tensors"):
        main(["test", "--config", other, "--ckpt_path", str(last)])
