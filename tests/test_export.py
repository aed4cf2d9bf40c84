"""``medgrpo export``: what is written answers as the checkpoint does, holds no path, and says what it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_policy import logps
from tiny import FAMILIES, processor_of, tiny_folder, tiny_policy

import medgrpo.export as exporting
from medgrpo.export_cli import main
from medgrpo.model_card import Card, Evaluation, code, model_card, shown_settings
from medgrpo.policy import Policy
from medgrpo.runs import TrainedOn

METRICS = {"overall": {"n": 4, "accuracy": 0.75, "low": 0.3, "high": 0.95, "chance": 0.25, "blank": 0.5}}


@pytest.fixture
def run(tmp_path):
    return checkpoint(tmp_path)


def checkpoint(folder, family="qwen2_vl", **options):
    """As ``medgrpo fit`` leaves it."""
    policy = tiny_policy(family, **options)
    saved = folder / "run" / "checkpoints" / "step3"
    policy.save(saved, processor_of(family))
    saved.with_name("step3.ckpt").write_bytes(b"")
    (saved / "trained_on.json").write_text(json.dumps({"modalities": ["ct"], "datasets": ["SLAKE"], "step": 3}))
    secret = str(folder / "secret.jsonl")
    config = {
        "model": {
            "policy": {
                "class_path": "medgrpo.policy.Policy",
                "init_args": {"model_name_or_path": tiny_folder(family), "lora_r": 16},
            },
            "beta": 0.04,
        },
        "data": {"init_args": {"train": secret, "image_root": str(folder), "prompts_per_batch": 4}},
    }
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return saved


def export(*args, family="qwen2_vl"):
    return main([*map(str, args), "--base", tiny_folder(family)])


def paths_in(folder, *places):
    return [(f.name, p) for f in folder.rglob("*") for p in places if f.is_file() and str(p).encode() in f.read_bytes()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_answers_as_the_adapter(family, tmp_path, capsys):
    saved = checkpoint(tmp_path, family, freeze_vision=False)
    assert export(f"{saved}.ckpt", "--out", tmp_path / "merged", "--merge", family=family) == 0
    said = capsys.readouterr().out
    assert "answers: 4 of 4 equal" in said
    assert said.splitlines()[-1].startswith("done")
    adapter = Policy(tiny_folder(family), adapter=str(saved), freeze_vision=False)
    merged = Policy(str(tmp_path / "merged"), use_peft=False)
    for policy in (adapter, merged):
        policy.load(with_reference=False)
    suppressed = merged.suppressed_ids()
    expected = logps(adapter.network, suppressed, family)
    assert torch.allclose(logps(merged.network, suppressed, family), expected, atol=1e-4)
    with adapter.model.disable_adapter():
        assert not torch.allclose(logps(adapter.network, suppressed, family), expected, atol=1e-2)
    assert not paths_in(tmp_path / "merged", tmp_path, Path(tiny_folder()).parent)
    assert not any("lora" in name for name in load_file(tmp_path / "merged/model.safetensors"))


def test_an_adapter_is_written_anew_with_its_card(run, tmp_path, capsys):
    out, tested = tmp_path / "out", tmp_path / "tested"
    tested.mkdir()
    (tested / "metrics.json").write_text(json.dumps(METRICS))
    weights = {"adapter": exporting.fingerprint(str(run))}
    settings = {"model.policy.adapter": "it", "weights": weights}
    (tested / "run.json").write_text(json.dumps({"settings": settings, "trained_on": {}}))
    out.mkdir()
    assert export(run, "--out", out, "--evaluation", tested) == 0
    assert {file.stat().st_mode & 0o444 for file in out.iterdir()} == {0o444}
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (run, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    card = (out / "README.md").read_text()
    assert "| `tested` | this model | `all` | `4` | 75.0 | 30.0 to 95.0 | 25.0 | - | - | 50.0 |" in card
    for part in (
        "Not for clinical use",
        "`SLAKE`",
        "`model.policy.init_args.lora_r` | `16`",
        "Base model: `qwen2_vl`",
        "`transformers`",
    ):
        assert part in card, part
    assert not paths_in(out, tmp_path, Path(tiny_folder()).parent, "secret")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run", "tested"]


def test_a_whole_model_and_a_bfloat16_base(tmp_path, capsys):
    saved = checkpoint(tmp_path, use_peft=False)
    assert main([str(saved), "--out", str(tmp_path / "whole")]) == 0
    assert load_file(saved / "model.safetensors").keys() == load_file(tmp_path / "whole/model.safetensors").keys()
    card = (tmp_path / "whole/README.md").read_text()
    assert "Base model: `qwen2_vl`" in card
    assert "model_name_or_path" not in card
    assert main([str(saved), "--out", str(tmp_path / "again"), "--merge"]) == 1
    assert "drop --merge" in capsys.readouterr().err
    half = tmp_path / "half"
    policy = tiny_policy("qwen2_vl", use_peft=False, dtype="bfloat16")
    policy.save(half, processor_of("qwen2_vl"))
    adapter = checkpoint(tmp_path / "adapter")
    assert main([str(adapter), "--out", str(tmp_path / "merged"), "--merge", "--base", str(half)]) == 0
    with safe_open(tmp_path / "merged/model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_an_adapter_on_four_bits_is_merged_in_bfloat16(tmp_path, capsys):
    saved = checkpoint(tmp_path, quantize="nf4")
    assert json.loads((saved / "made_with.json").read_text())["quantize"] == "nf4"
    assert export(saved, "--out", tmp_path / "merged", "--merge") == 0
    assert "merged into the unquantised weights in bfloat16" in capsys.readouterr().out
    assert "unquantised weights in bfloat16" in (tmp_path / "merged/README.md").read_text()
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == "bfloat16"
    assert "quantization_config" not in (tmp_path / "merged/config.json").read_text()


@pytest.mark.parametrize("fault", ["written", "merged"])
def test_a_result_that_answers_otherwise_is_not_kept(run, fault, tmp_path, monkeypatch, capsys):
    if fault == "merged":  # the adapter is dropped in place of merged
        monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *args, **options: None)
    else:
        saving = Policy.save

        def save(policy, folder, processor):
            saving(policy, folder, processor)
            file = Path(folder) / "adapter_model.safetensors"
            save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file)

        monkeypatch.setattr(Policy, "save", save)
    assert export(run, "--out", tmp_path / "out", *["--merge"] * (fault == "merged")) == 1
    message = {"merged": "medgrpo: merging model.", "written": "does not answer as the checkpoint does"}[fault]
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_cannot_be_exported_is_said(run, tmp_path, capsys, monkeypatch):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("x")
    for args, message in (
        ([str(tmp_path / "nothing.ckpt"), "--out", "o"], "expected NAME.ckpt with the folder NAME beside it"),
        ([str(run), "--out", str(full), "--base", "b/b"], "is there already"),
        ([str(run), "--out", str(tmp_path / "o")], "set model_name_or_path to the base model"),
        (
            [str(run), "--out", str(tmp_path / "o"), "--base", tiny_folder("qwen3_vl")],
            "trained on a Qwen2VLForConditionalGeneration",
        ),
        ([str(run), "--out", str(tmp_path / "o"), "--evaluation", str(full)], "expected metrics.json"),
    ):
        assert main(args) == 1
        assert message in capsys.readouterr().err
    assert (full / "mine").read_text() == "x"

    def no_space(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Policy, "save", no_space)
    assert export(run, "--out", tmp_path / "o") == 1
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("last", ["ckpt_path", "model.policy.adapter"])
def test_answers_are_of_what_was_loaded_last(run, last, tmp_path):
    """Of a checkpoint before an adapter, and of an adapter before its base."""
    own = exporting.fingerprint(str(run))
    before = {"ckpt_path": "model.policy.adapter", "model.policy.adapter": "model.policy.model_name_or_path"}[last]
    weights = {before.rsplit(".", 1)[-1]: own, last.rsplit(".", 1)[-1]: "other"}
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "run.json").write_text(
        json.dumps({"settings": {before: "a", last: "b", "weights": weights}, "trained_on": {}})
    )
    assert not exporting._evaluation(tmp_path, run).of_this_model
    (tmp_path / "run.json").write_text(json.dumps({"settings": {before: "a", "weights": weights}}))
    assert exporting._evaluation(tmp_path, run).of_this_model


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("metrics.json", {"groups": []}),
        ("metrics.json", {"groups": {"modality": [1]}}),
        ("metrics.json", {"groups": {"modality": {"ct": 3}}}),
        ("metrics.json", {"overall": {"accuracy": "x"}}),
        ("run.json", {"settings": [1]}),
        ("run.json", {"settings": {"weights": [1]}}),
    ],
)
def test_malformed_evaluations_are_one_clear_error(run, file, wrong, tmp_path, capsys):
    tested = tmp_path / "tested"
    tested.mkdir()
    (tested / "metrics.json").write_text(json.dumps(METRICS))
    (tested / file).write_text(json.dumps((METRICS if file == "metrics.json" else {}) | wrong))
    assert export(run, "--out", tmp_path / "o", "--evaluation", tested) == 1
    assert f"--evaluation {tested}: expected {file}" in capsys.readouterr().err


def test_a_full_disk_and_odd_places(run, tmp_path, capsys, monkeypatch):
    """safetensors has an error of its own for a full disk; here files may have 100 kB only."""
    code = (
        "import resource, sys\nfrom medgrpo.export_cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\nsys.exit(main(sys.argv[1:]))"
    )
    args = [str(run), "--out", str(tmp_path / "o"), "--base", tiny_folder("qwen2_vl"), "--merge"]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=Path(__file__).parents[1], capture_output=True)
    assert done.returncode == 1
    assert b"cannot be written: Error while serializing" in done.stderr
    assert b"Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert export(run, "--out", run / "inside") == 1
    assert "is inside the checkpoint" in capsys.readouterr().err
    assert export(run, "--out", tmp_path / ("x" * 300)) == 1
    assert "cannot be written: File name too long" in capsys.readouterr().err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert export(run, "--out", ".") == 0
    assert (tmp_path / "here" / "adapter_config.json").is_file()


def test_an_output_layer_that_is_the_embedding_cannot_be_merged(tmp_path, capsys):
    run = checkpoint(tmp_path, lora_target_modules=["q_proj", "lm_head"])
    assert export(run, "--out", tmp_path / "o", "--merge") == 1
    assert "lm_head shares its weights with the embedding" in capsys.readouterr().err


def test_old_layouts_leave_in_todays(run, tmp_path):
    file = run / "adapter_model.safetensors"
    old = {name.replace("model.model.language_model.", "model.model."): t for name, t in load_file(file).items()}
    new = load_file(file)
    save_file(old, file)
    config = json.loads((run / "adapter_config.json").read_text())
    config["target_modules"] = config["target_modules"].replace(r"language_model\.", "")
    (run / "adapter_config.json").write_text(json.dumps(config))
    assert export(run, "--out", tmp_path / "out") == 0
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {name: t.sum() for name, t in written.items()} == {name: t.sum() for name, t in new.items()}


def test_the_card_takes_nothing_for_markup():
    evil = "a`b|<script>alert(1)</script>\n# x\x1b[31m\u202e[l](http://e)"
    assert code(evil) == "`a'b\N{BROKEN BAR}<script>alert(1)</script> # x [31m [l](http://e)`"
    card = Card(
        name=evil,
        kind="adapter",
        base=f"{evil}/\nlicense: mit",
        dtype="float32",
        trained_on=TrainedOn(modalities=(evil,), datasets=(evil,), prompt=evil),
        settings={evil: evil},
        evaluations=[Evaluation(evil, {"overall": {"n": evil, "accuracy": evil}}, True)],
        trained_with={evil: evil},
        exported_with={},
    )
    text = model_card(card)
    front, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(front).keys() == {"library_name", "pipeline_tag", "tags"}
    outside = "".join(part for i, part in enumerate(body.split("`")) if i % 2 == 0)
    assert "<" not in outside
    assert "http" not in outside
    lines = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)
    known = yaml.safe_load(model_card(Card(**{**card.__dict__, "base": "Qwen/Qwen2-VL-2B-Instruct"})).split("---\n")[1])
    assert known["base_model"] == "Qwen/Qwen2-VL-2B-Instruct"


def test_settings_are_shown_without_places():
    config = {
        "seed_everything": 1,
        "trainer": {"max_steps": 3, "logger": {"init_args": {"save_dir": "/home/me"}}, "default_root_dir": "/home/me"},
        "model": {
            "policy": {"model_name_or_path": "/home/me/base", "adapter": "x/y", "lora_r": 8},
            "rewards": [{"class_path": "mine.Reward", "init_args": {"words": "/home/me/words.txt"}}],
        },
        "data": {"init_args": {"train": ["data/t.jsonl"], "prompt": "{Question}\n</x>", "modalities": ["ct"]}},
        "ckpt_path": "/home/me/last.ckpt",
    }
    assert shown_settings(config) == {
        "seed_everything": 1,
        "trainer.max_steps": 3,
        "model.policy.lora_r": 8,
        "model.rewards.0.class_path": "mine.Reward",
        "model.rewards.0.init_args.words": "words.txt",
        "data.init_args.prompt": "{Question}\n</x>",
        "data.init_args.modalities": ["ct"],
    }


def test_help_loads_no_model():
    code = (
        "import sys\nfrom medgrpo.cli import main\nsys.argv = ['medgrpo', 'export', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print([name for name in ('lightning', 'transformers', 'peft') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
