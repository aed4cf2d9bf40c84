"""The benchmarks' shapes, figures, tables and options; what they measure is not tested here."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medgrpo.demo.model import QWEN2_5_VL_3B, QWEN2_5_VL_7B, build_model, build_tokenizer, real_config

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """Imports a script by name, as Python does when it runs one beside it."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def step_of(step: float, *phases: float) -> dict[str, float]:
    return dict(zip(("images", "rollout", "reference", "train"), phases, strict=True)) | {"step": step, "cpu": 2 * step}


def step_result(steps: list[dict], peak: float) -> dict:
    return {"steps": steps, "peak_gib": peak}


OURS = [
    step_result([step_of(3.0, 0.5, 1.0, 0.0, 1.5), step_of(2.0, 0.1, 0.5, 0.0, 1.4)], 2.0),
    step_result([step_of(2.5, 0.2, 0.8, 0.0, 1.5)], 1.0),
]
TRL = [step_result([step_of(10.0, 0.4, 4.0, 0.0, 6.0)], 5.0)]


def step_figures(vs_trl) -> tuple[dict, dict]:
    args = argparse.Namespace(prompts=2, generations=5)
    return vs_trl.figures(args, OURS), vs_trl.figures(args, TRL)


@pytest.mark.parametrize(
    ("sizes", "parameters", "head_dim", "tied"),
    [(QWEN2_5_VL_3B, 3_754_622_976, 128, True), (QWEN2_5_VL_7B, 8_292_166_656, 128, False)],
)
def test_real_shapes_have_as_many_parameters_as_the_published_models(sizes, parameters, head_dim, tied):
    tokenizer = build_tokenizer()
    config = real_config(tokenizer, **sizes)
    with torch.device("meta"):
        model = build_model(config, tokenizer, dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    attention = model.model.language_model.layers[0].self_attn
    assert attention.head_dim == head_dim == 2 * sum(config.text_config.rope_parameters["mrope_section"])
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert config.text_config.rms_norm_eps == 1e-6
    assert config.vision_config.fullatt_block_indexes == [7, 15, 23, 31]
    assert len(tokenizer) < config.text_config.vocab_size
    assert tokenizer.convert_ids_to_tokens(config.image_token_id) == "<|image_pad|>"


def test_step_figures_are_medians_over_the_steps_of_all_runs(script):
    ours, _ = step_figures(script("bench_vs_trl"))
    assert ours["step_s"] == 2.5
    assert ours["steps_s"] == [3.0, 2.0, 2.5]
    assert ours["phases_s"] == {"images": 0.2, "rollout": 0.8, "reference": 0.0, "train": 1.5}
    assert ours["completions_per_s"] == 4.0  # 2 prompts x 5 completions in 2.5 s
    assert ours["peak_gib"] == 2.0


def test_step_ratios_above_1_are_in_our_favour(script):
    vs_trl = script("bench_vs_trl")
    ratio = vs_trl.ratios(*step_figures(vs_trl))
    assert ratio["step_s"] == 4.0
    assert ratio["phases_s"] == {"images": 2.0, "rollout": 5.0, "reference": None, "train": 4.0}
    assert ratio["completions_per_s"] == 4.0
    assert ratio["peak_gib"] == 2.5


def test_step_table_shows_the_figures_of_the_json(script):
    vs_trl = script("bench_vs_trl")
    ours, trl = step_figures(vs_trl)
    lines = vs_trl.table({"ours": ours, "trl": trl, "ratio": vs_trl.ratios(ours, trl)}).splitlines()
    assert lines[1].split() == ["step", "(s)", "2.50", "10.00", "4.0"]
    assert lines[4].split() == ["reference", "0.00", "0.00"]
    assert lines[-2:] == ["ours: 3 steps of 2.00 to 3.00 s", "TRL: 1 steps of 10.00 to 10.00 s"]


def test_step_table_of_one_system_leaves_the_other_empty(script):
    vs_trl = script("bench_vs_trl")
    ours, _ = step_figures(vs_trl)
    text = vs_trl.table({"ours": ours, "trl": None, "ratio": None})
    assert text.splitlines()[1].split() == ["step", "(s)", "2.50"]
    assert "TRL:" not in text


@pytest.mark.parametrize(("only", "missing"), [("ours", "trl"), ("trl", "ours")])
def test_a_system_that_did_not_run_is_null(script, monkeypatch, only, missing):
    vs_trl = script("bench_vs_trl")
    result = OURS[0] | {"same": {"threads": 1}}
    monkeypatch.setattr(vs_trl.common, "run_processes", lambda *_: {only: [result]})
    out = vs_trl.run(argparse.Namespace(prompts=2, generations=5, runs=1, only=only, json=None))
    assert set(out) == {"settings", "ours", "trl", "ratio"}
    assert out[missing] is None
    assert out["ratio"] is None
    assert out[only]["peak_gib"] == 2.0
    assert out["settings"] == {"prompts": 2, "generations": 5, "runs": 1, "only": only, "threads": 1}


def test_decoding_seconds_are_those_of_all_steps_but_the_first_token(script):
    decode = script("bench_decode")
    ticks = decode.Ticks(argparse.Namespace(new_tokens=9))
    ticks.seen = [(1, 10.0), (9, 14.0)]
    assert ticks.seconds() == 4.0
    ticks.seen = [(5, 10.0), (9, 14.0)]  # reported in two bunches: 1 s a token, 8 steps
    assert ticks.seconds() == 8.0
    ticks.seen = [(9, 14.0)]
    with pytest.raises(RuntimeError, match="at once"):
        ticks.seconds()
    ticks.seen = [(1, 10.0), (8, 14.0)]
    with pytest.raises(RuntimeError, match="expected 9, got 8"):
        ticks.seconds()


def test_ticks_take_the_time_of_the_first_and_the_last_token_only(script):
    decode = script("bench_decode")
    ticks = decode.Ticks(argparse.Namespace(new_tokens=4, device="cpu"))
    for num_tokens in (1, 2, 3, 4):
        ticks.tick(num_tokens)
    assert [num_tokens for num_tokens, _ in ticks.seen] == [1, 4]


def test_decode_figures(script):
    decode = script("bench_decode")
    times = {"ours": [1.0, 2.0, 9.0], "generate": [4.0, 3.0, 2.0]}
    result = decode.figures({"new_tokens": 5}, times, weight_bytes=3 * 2**30)
    assert (result["ours_s"], result["generate_s"], result["ratio"]) == (2.0, 3.0, 1.5)
    assert result["weights_gib_per_s"] == 6.0  # 4 steps of 3 GiB in 2 s
    assert "500.00 ms a step" in decode.table(result)


def test_validation_ratios_and_table(script):
    validate = script("bench_validate")
    ours = {"seconds": 2.0, "records_per_s": 100.0, "completions": 200, "tokens": 400, "peak_gib": 1.0}
    trl = {"seconds": 10.0, "records_per_s": 20.0, "completions": 1600, "tokens": 3200, "peak_gib": 3.0}
    ratio = validate.ratios(ours, trl)
    assert ratio == {"seconds": 5.0, "records_per_s": 5.0, "tokens": 8.0, "peak_gib": 3.0}
    lines = validate.table({"ours": ours, "trl": trl, "ratio": ratio}).splitlines()
    assert lines[1].split() == ["seconds", "2.00", "10.00", "5.0"]
    assert lines[4].split() == ["tokens", "drawn", "400", "3200", "8.0"]


def test_curve_tables(script, tmp_path):
    bench_table = script("bench_table")
    fixed = {"model": "small", "tuning": "full", "beta": 0.04, "new_tokens": 64, "image_size": 384, "prompts": 1}

    def write(generations, ours, trl, **settings):
        result = {
            "settings": fixed | {"generations": generations} | settings,
            "ours": {"step_s": ours, "peak_gib": 1.0},
            "trl": trl and {"step_s": trl, "peak_gib": 2.5},
            "ratio": trl and {"step_s": trl / ours},
        }
        (tmp_path / f"generations-{generations}.json").write_text(json.dumps(result))

    write(16, 3.0, None)
    write(8, 2.0, 9.0)
    (curve,) = bench_table.read_curves(tmp_path).items()
    lines = bench_table.table(*curve).splitlines()
    assert lines[0].endswith("model small, tuning full, beta 0.04, new_tokens 64, image_size 384, prompts 1")
    assert lines[-2:] == ["| 8 | 2.00 |  | 9.00 | 4.50 | 1.00 | 2.50 |", "| 16 | 3.00 | 1.50 |  |  | 1.00 |  |"]
    assert {line.count("|") for line in lines[2:]} == {8}

    write(16, 3.0, None, beta=0.0)
    with pytest.raises(SystemExit, match=r"beta 0\.0"):
        bench_table.table("generations", bench_table.read_curves(tmp_path)["generations"])


def test_curve_tables_need_files(script, tmp_path):
    with pytest.raises(SystemExit, match=r"generations-8\.json"):
        script("bench_table").read_curves(tmp_path)


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [("small", "auto", "cpu"), ("3b", "auto", "cuda"), ("7b", "cpu", "cpu"), ("runs/model", "cuda", "cuda")],
)
def test_device(script, model, device, expected):
    common = script("bench_common")
    args = argparse.Namespace(model=model, device=device)
    assert common.device_of(args) == expected
    assert common.dtype_of(args) == {"cpu": "float32", "cuda": "bfloat16"}[expected]


def test_a_cpu_run_sees_no_gpu_and_a_gpu_run_one(script, monkeypatch):
    common = script("bench_common")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert common.environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert common.environment("cuda")["CUDA_VISIBLE_DEVICES"] == "2"


def test_rewards_differ_within_a_group_of_equal_texts(script):
    common = script("bench_common")
    values = [common.pay("", row) for row in range(64)]
    assert len(set(values)) == 64
    assert all(0 <= value < 1 for value in values)
    assert values == common.hash_reward()([""] * 64, [None] * 64)
    assert values == common.trl_hash_reward([[{"content": ""}]] * 64)


def test_the_same_work_is_demanded(script):
    common = script("bench_common")
    common.expect("steps", 3, 3)
    with pytest.raises(RuntimeError, match="steps: expected 3, got 4"):
        common.expect("steps", 3, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bench_vs_trl", ["--steps", "2"], "at least 3 counted steps"),
        ("bench_vs_trl", ["--prompts", "4", "--micro-batches", "3"], "divisor of 4 prompts, got 3"),
        ("bench_vs_trl", ["--only", "both"], "invalid choice"),
        ("bench_decode", ["--repeats", "4"], "at least 5 counted runs"),
        ("bench_decode", ["--new-tokens", "1"], "2 tokens"),
        ("bench_validate", ["--records", "2", "--warmup", "3"], "warm-up record"),
    ],
)
def test_bad_options(script, monkeypatch, capsys, name, options, message):
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit) as stop:
        script(name).parse()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_large_model_without_a_gpu_is_refused(script, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = argparse.Namespace(model="3b", device="auto", folder=tmp_path, image_size=28)
    with pytest.raises(SystemExit, match="expected a GPU"):
        script("bench_common").make_inputs(args, 1)


@pytest.mark.parametrize("arguments", [["bench_curves.sh", "trl", "x"], ["bench_gpu.sh", "no-such-folder", "x"]])
def test_shell_scripts_say_how_they_are_used(arguments, tmp_path):
    run = subprocess.run(["bash", SCRIPTS / arguments[0], *arguments[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"usage: bash scripts/{arguments[0]}")
    assert not list(tmp_path.iterdir())


def test_data_tasks_run_on_what_is_made_for_them(script, tmp_path):
    data = script("bench_data")
    data.make_inputs(tmp_path, num_records=40, num_images=3, pixels=64)
    for task in data.TASKS:
        figures = data.measure(task, tmp_path)
        assert set(figures) == {"seconds", "before", "peak_gib"}
        assert figures["seconds"] > 0
