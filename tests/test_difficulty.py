"""``medgrpo data difficulty``: counts by hand, runs that die and go on, settings that must not change; text alone."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from test_cli import write_config, write_data
from tiny import record, tiny_folder

from data_modules.curriculum import question_hash, read_pass_counts
from medgrpo.blind import Share
from medgrpo.difficulty import (
    DifficultyModule,
    PassCountWriter,
    count_passes,
    main,
    text_only_share,
    without_images,
)
from medgrpo.policy_module import PolicyModule, _generator
from medgrpo.predictions import Prediction
from medgrpo.types import UserError

NUM_RECORDS = 8
BATCH = 3

DIES = """
import os, signal, sys
from test_difficulty import letters
from medgrpo.difficulty import DifficultyModule, PassCountWriter, main
write, batches = PassCountWriter.on_predict_batch_end, []
DifficultyModule.decode = letters

def die(self, *args):
    batches.append(args)
    if len(batches) < 2:
        return write(self, *args)
    with self.file.open("ab") as file:
        file.write(b'{"id": "torn')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

PassCountWriter.on_predict_batch_end = die
main(sys.argv[1:])
"""


def letters(module, drawn):
    """Random weights answer nothing: read A or B off the tokens that were drawn."""
    return [f"<answer>{'AB'[total % 2]}</answer>" for total in (drawn.ids * drawn.mask).sum(1).tolist()]


@pytest.fixture(scope="module", autouse=True)
def parsed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DifficultyModule, "decode", letters)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("difficulty")
    write_data(folder, NUM_RECORDS)
    write_config(folder, data__init_args__eval_batch_size=BATCH, model__max_completion_length=4)
    return folder


@pytest.fixture(scope="module")
def args(folder):
    return ["--config", str(folder / "config.yaml"), "--model.num_generations", "4"]


@pytest.fixture(scope="module")
def whole(folder, args):
    """What a run writes that nothing interrupts."""
    main(["--out", str(folder / "whole.jsonl"), *args])
    return folder / "whole.jsonl"


@pytest.fixture
def half(whole, tmp_path):
    """A file as a run leaves it that died after its first batch of three, while it wrote the second."""
    lines = whole.read_text().splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_text("".join(lines[:BATCH]) + lines[BATCH][:9])
    settings = whole.with_name("whole.settings.json").read_text()
    (tmp_path / "half.settings.json").write_text(settings)
    return tmp_path / "half.jsonl"


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_to_one_question_are_counted():
    texts = ("<answer>A</answer>", "<answer>cyst</answer>", "<answer>B</answer>", "A", "<answer>A")
    prediction = Prediction(record(0), texts, truncated=(False, False, True, False, True))
    counted = {"id": "r0", "pass_count": 2, "num_samples": 5, "unparsed": 2, "truncated": 2}
    assert count_passes(prediction) == counted | {"question": question_hash(record(0))}


def test_answers_are_judged_with_their_own_question(whole, folder, args, monkeypatch):
    """Gold is A, B, A, B ...: of the answers A, A, A, B to each question, three or one are right."""
    letters = [f"<answer>{letter}</answer>" for letter in "AAAB"]
    monkeypatch.setattr(DifficultyModule, "decode", lambda self, drawn: letters * (len(drawn.ids) // 4))
    main(["--out", str(folder / "judged.jsonl"), *args])
    assert [row["pass_count"] for row in rows(folder / "judged.jsonl")] == [3, 1] * 4


def test_every_record_has_one_row(whole):
    written = rows(whole)
    assert len({row["id"] for row in written}) == len(written) == NUM_RECORDS
    for row in written:
        assert row["num_samples"] == 4
        assert row["pass_count"] <= 4
        assert row["truncated"] <= 4
    assert len({row["pass_count"] for row in written}) > 2  # or equal files below would say little
    assert list(read_pass_counts(whole)) == [row["id"] for row in written]
    assert json.loads(whole.with_name("whole.settings.json").read_text())["model.num_generations"] == 4


def test_nothing_else_is_written(whole, folder):
    assert not list(folder.rglob("predictions*"))
    assert list(folder.rglob("config.yaml")) == [folder / "config.yaml"]  # the one that was read


def test_a_killed_run_goes_on_to_the_same_file(whole, folder, args):
    out = folder / "killed.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", DIES, "--out", str(out), *args], env=environment, check=False)
    assert killed.returncode == -9
    assert out.read_text() == "".join(whole.read_text().splitlines(keepends=True)[:BATCH]) + '{"id": "torn'
    main(["--out", str(out), *args])
    assert out.read_text() == whole.read_text()


def test_a_run_that_raises_goes_on_too(whole, folder, args, monkeypatch):
    out = folder / "raised.jsonl"
    step = DifficultyModule.predict_step

    def fail(self, prompts, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("out of memory")
        return step(self, prompts, batch_idx)

    monkeypatch.setattr(DifficultyModule, "predict_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        main(["--out", str(out), *args])
    monkeypatch.setattr(DifficultyModule, "predict_step", step)
    assert len(rows(out)) == 2 * BATCH
    main(["--out", str(out), *args, "--data.init_args.eval_batch_size", "8"])
    assert [row["id"] for row in rows(out)] == [row["id"] for row in rows(whole)]


def test_a_finished_file_stays_as_it_is(whole, args, capsys):
    before = whole.read_bytes()
    main(["--out", str(whole), *args])
    assert whole.read_bytes() == before
    assert f"0 of {NUM_RECORDS} records have no row" in capsys.readouterr().out


def test_rows_of_other_ranks_are_done(half, whole, args, capsys):
    lines = whole.read_text().splitlines(keepends=True)
    half.with_stem("half-rank1").write_text("".join(lines[BATCH + 1 :]))
    main(["--out", str(half), *args])
    assert [row["id"] for row in rows(half)] == [json.loads(line)["id"] for line in lines[: BATCH + 1]]
    assert set(read_pass_counts(half)) == {json.loads(line)["id"] for line in lines}
    assert f"1 of {NUM_RECORDS} records have no row" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model.num_generations", "3", "model.num_generations was 4, is 3"),
        ("--model.temperature", "0.7", "model.temperature was 1.0, is 0.7"),
        ("--data.init_args.resize", "[9, 8]", "data.resize was None, is [9, 8]"),
        ("--data.init_args.frames_per_volume", "2", "data.frames_per_volume was 1, is 2"),
        ("--data.init_args.prompt", "nothink", "data.prompt was think, is nothink"),
        ("--model.policy.model_name_or_path", tiny_folder("qwen2_vl"), "model.policy.model_name_or_path was "),
    ],
)
def test_other_settings_are_refused(half, args, option, value, said):
    before = half.read_bytes()
    with pytest.raises(UserError, match=f"half.jsonl was made with other settings: {re.escape(said)}"):
        main(["--out", str(half), *args, option, value])
    assert half.read_bytes() == before


def test_other_questions_under_the_same_ids_are_refused(half, args, folder, tmp_path):
    questions = json.loads((folder / "questions.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps(questions[1:]))
    with pytest.raises(UserError, match="3 of 3 records are not the questions that were counted .*'questions-0'"):
        main(["--out", str(half), *args, "--data.init_args.predict", str(tmp_path / "questions.json")])


def test_rows_that_nobody_knows_the_settings_of_are_refused(half, args):
    half.with_name("half.settings.json").unlink()
    with pytest.raises(UserError, match=r"half\.jsonl has rows, but nothing beside it says how they were made"):
        main(["--out", str(half), *args])


def test_a_file_without_rows_takes_new_settings(tmp_path):
    writer = PassCountWriter(str(tmp_path / "n.jsonl"))
    for k in (4, 8):
        writer._check({"k": k}, has_rows=False, writes=True)
    writer._check({"k": 8}, has_rows=True, writes=True)
    assert [path.name for path in tmp_path.iterdir()] == ["n.settings.json"]


def test_settings_come_back_from_disk_as_they_were(folder, args, capsys):
    with_sizes = [*args, "--data.init_args.resize", "[56, 84]", "--data.init_args.window", "[40.0, 400.0]"]
    for _ in range(2):
        main(["--out", str(folder / "sizes.jsonl"), *with_sizes])
    assert f"0 of {NUM_RECORDS} records" in capsys.readouterr().out


def test_a_folder_is_no_file(tmp_path, args):
    with pytest.raises(UserError, match="out: expected a file"):
        main(["--out", str(tmp_path), *args])


def test_out_must_be_given(args, capsys):
    with pytest.raises(SystemExit):
        main(args)
    assert "out" in capsys.readouterr().err


def test_help_says_what_is_done(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("usage: medgrpo data difficulty --out FILE.jsonl --config CONFIG.yaml --data.predict")
    assert "count the right ones" in said


def test_draws_depend_on_the_seed_and_the_question_only():
    def draws(seed, id):
        return torch.rand(4, generator=_generator(seed, id)).tolist()

    assert draws(1, "a") == draws(1, "a")
    assert len({tuple(d) for d in (draws(1, "a"), draws(2, "a"), draws(1, "b"))}) == 3


def test_the_cut_into_batches_changes_no_draw(whole, folder, args):
    main(["--out", str(folder / "cut.jsonl"), *args, "--data.init_args.eval_batch_size", "2"])
    assert rows(folder / "cut.jsonl") == rows(whole)


def test_a_question_without_its_images():
    asked = replace(
        record(1, num_images=2), problem="<image> <image>\nIs it A) x", question="In <image 1>, <image_2>: is it?"
    )
    alone = without_images(asked)
    assert (alone.images, alone.problem, alone.question) == ((), "Is it A) x", "In,: is it?")
    assert replace(alone, images=asked.images, problem=asked.problem, question=asked.question) == asked


def test_text_alone_is_judged(monkeypatch):
    asked = []
    answer = PolicyModule.answer

    def spy(self, prompts):
        asked.append(prompts)
        return answer(self, prompts)

    monkeypatch.setattr(PolicyModule, "answer", spy)
    monkeypatch.setattr(PolicyModule, "decode", lambda self, drawn: ["<answer>A</answer>"] * len(drawn.ids))
    records = [record(i, num_images=i % 3) for i in range(5)]  # gold is A, B, A, B, A; there are no such files
    assert text_only_share(tiny_folder(), records, batch_size=2, max_completion_length=3) == Share(3, 5)
    assert [len(prompts) for prompts in asked] == [2, 2, 1]
    assert all(prompts.pixel_values is None and not prompts.mm_token_type_ids.any() for prompts in asked)
