"""What ``medgrpo test`` and ``predict`` leave behind: every answer once, whatever happens on the way."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from test_cli import scalars, write_config, write_data
from test_difficulty import letters
from tiny import tiny_folder

from data_modules.base import MedicalVQADataModule
from medgrpo.module import GRPOModule
from medgrpo.policy import Policy
from medgrpo.policy_module import PolicyModule
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.predictions import read_predictions
from medgrpo.results import read_results
from medgrpo.resume import BLOCK, NUM_BLOCKS, fingerprint
from medgrpo.rewards import AccuracyReward
from medgrpo.runs import TrainedOn, find_runs, trained_on
from medgrpo.trainer_cli import main
from medgrpo.types import SettingsError

NUM_RECORDS = 9
BATCH = 2
VIEWS = ["blank", "wrong_image", "shuffled"]

DIES = """
import os, signal, sys
from test_difficulty import letters
from medgrpo.policy_module import PolicyModule
from medgrpo.prediction_writer import PredictionWriter
from medgrpo.trainer_cli import main
append, batches, last = PredictionWriter._append, [], int(sys.argv.pop(1))
PolicyModule.decode = letters

def die(self, *args):
    batches.append(args)
    if len(batches) <= last:
        return append(self, *args)
    with self.file.open("ab") as file:
        file.write(b'{"id": "torn')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

PredictionWriter._append = die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module", autouse=True)
def parsed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyModule, "decode", letters)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writer")
    write_data(folder, NUM_RECORDS)
    return folder


@pytest.fixture(scope="module")
def args(folder):
    changes = {"eval_batch_size": BATCH, "eval_views": VIEWS}
    config = write_config(
        folder, model__max_completion_length=4, **{f"data__init_args__{name}": value for name, value in changes.items()}
    )
    return ["--config", config, "--data.init_args.predict", str(folder / "questions.json")]


@pytest.fixture(scope="module")
def whole(folder, args):
    """What a test writes that nothing interrupts."""
    main(["test", *args, "--predictions.dirpath", str(folder / "whole")])
    return folder / "whole"


def keys(folder: Path) -> list[tuple[str, str]]:
    return [prediction.key for prediction in read_predictions(folder / "predictions.jsonl")]


def test_every_question_is_answered_once_under_each_view(whole):
    found = keys(whole)
    assert len(set(found)) == len(found)
    assert [view for view, _ in found].count("image") == NUM_RECORDS
    assert [id for view, id in found if view == "image"] == [f"questions-{i}" for i in range(NUM_RECORDS)]
    assert [view for view, _ in found].count("blank") == 6  # three in nine have no image
    assert [view for view, _ in found].count("shuffled") == NUM_RECORDS
    assert sorted(path.name for path in whole.iterdir()) == [
        "metrics.json", "predictions.jsonl", "results.json", "run.json",
    ]  # fmt: skip


def test_metrics_results_and_log_say_the_same(whole, folder):
    metrics = json.loads((whole / "metrics.json").read_text())
    predictions = [p for p in read_predictions(whole / "predictions.jsonl") if p.view == "image"]
    rows = [json.loads(line) for line in (whole / "predictions.jsonl").read_text().splitlines()]
    right = sum(row["correct"] for row in rows if row["view"] == "image")
    assert 0 < right < NUM_RECORDS
    assert metrics["overall"]["accuracy"] == pytest.approx(right / NUM_RECORDS)
    results = json.loads((whole / "results.json").read_text())
    assert results["accuracy"] == pytest.approx(100 * right / NUM_RECORDS)
    again = read_results(whole / "results.json")
    assert [(p.record.id, p.record.answer, p.completions) for p in again] == [
        (p.record.id, p.record.answer, p.completions) for p in predictions
    ]
    logged = scalars(folder / "runs" / "run")
    assert logged.Scalars("test/accuracy")[0].value == pytest.approx(right / NUM_RECORDS)
    assert logged.Scalars("test/n")[0].value == NUM_RECORDS
    assert "test/blank_accuracy" in logged.Tags()["scalars"]


def test_facts_of_training_and_of_the_run_are_kept(whole, folder):
    run = find_runs([whole])[0]
    assert run.prompt == "think"
    assert run.mode == "think"
    assert run.image_root == str(folder.resolve())
    assert run.trained_on is None
    of = {p.key: p for p in run.predictions}
    assert of["image", "questions-0"].seen is True  # train and test are the same file here
    assert of["image", "questions-2"].seen is None  # without an image
    assert of["image", "questions-0"].option_prior in ("A", "B")


@pytest.mark.parametrize("batches", [0, 1, 3, 7, 12])
def test_a_killed_test_goes_on_to_the_same_files(whole, folder, args, batches):
    out = folder / f"killed{batches}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["test", *args, "--predictions.dirpath", str(out)]
    killed = subprocess.run([sys.executable, "-c", DIES, str(batches), *command], env=environment, check=False)
    assert killed.returncode == -9
    assert not (out / "metrics.json").exists()
    main(command)
    for name in ("predictions.jsonl", "metrics.json", "results.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_test_is_not_done_again(whole, folder, args, monkeypatch, capsys):
    before = (whole / "predictions.jsonl").read_bytes()
    monkeypatch.setattr(PolicyModule, "answer", lambda *args: pytest.fail("asked again"))
    main(["test", *args, "--predictions.dirpath", str(whole)])
    assert (whole / "predictions.jsonl").read_bytes() == before
    assert f"0 of {len(keys(whole))} answers are not in" in capsys.readouterr().out


def test_a_view_can_be_added(whole, folder, args, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    out = folder / "added"
    command = ["test", *args, "--predictions.dirpath", str(out)]
    main([*command, "--data.init_args.eval_views", "[]"])
    assert {view for view, _ in keys(out)} == {"image"}
    with monkeypatch.context() as patch:
        patch.setattr(PolicyModule, "answer", stop)
        with pytest.raises(SystemExit):
            main(command)
    assert not (out / "metrics.json").exists()  # of less than is asked for
    main(command)
    assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_files_of_ranks_are_put_together(whole, folder, args, monkeypatch):
    out = folder / "ranks"
    out.mkdir()
    lines = (whole / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(lines[5:15]))
    (out / "predictions-rank1.jsonl").write_text("".join(lines[:5] + lines[15:]))
    (out / "run.json").write_text((whole / "run.json").read_text())
    main(["test", *args, "--predictions.dirpath", str(out)])
    assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert not (out / "predictions-rank1.jsonl").exists()


def test_without_a_folder_each_setting_has_its_own(folder, args):
    for length in (4, 5, 4):
        main(["test", *args, "--data.init_args.eval_views", "[]", "--model.max_completion_length", str(length)])
    assert len(list((folder / "runs").glob("test-*"))) == 2


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--model.max_completion_length", "5", "model.max_completion_length was 4, is 5"),
        ("--model.num_generations_eval", "2", "model.num_generations_eval was 1, is 2"),
        ("--data.init_args.prompt", "nothink", "data.prompt was think, is nothink"),
        ("--data.init_args.limit_eval_records", "3", "data.limit_eval_records was None, is 3"),
    ],
)
def test_other_settings_are_refused(whole, args, option, value, said):
    before = (whole / "predictions.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=f"made with other settings: {re.escape(said)}"):
        main(["test", *args, "--predictions.dirpath", str(whole), option, value])
    assert (whole / "predictions.jsonl").read_bytes() == before


def test_other_questions_under_the_same_ids_are_refused(whole, folder, args):
    questions = (folder / "questions.json").read_text()
    (folder / "questions.json").write_text(questions.replace("Is it 4?", "Is it not 4?"))
    try:
        with pytest.raises(SystemExit, match="'questions-4', which is another question now"):
            main(["test", *args, "--predictions.dirpath", str(whole)])
        (folder / "questions.json").write_text(json.dumps(json.loads(questions)[:8]))
        with pytest.raises(SystemExit, match="'questions-8', which is not among the questions"):
            main(["test", *args, "--predictions.dirpath", str(whole)])
    finally:
        (folder / "questions.json").write_text(questions)


def test_predictions_go_on_too(folder, args):
    out = folder / "predicted"
    for _ in range(2):
        main(["predict", *args, "--predictions.dirpath", str(out)])
    assert keys(out) == [("image", f"questions-{i}") for i in range(NUM_RECORDS)]
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "run.json"]


def test_samples_do_not_depend_on_the_batch(folder, args):
    found = []
    for size in (2, 5):
        out = folder / f"samples{size}"
        options = ["--model.num_generations_eval", "3", "--data.init_args.eval_views", "[]"]
        batch = ["--data.init_args.eval_batch_size", str(size)]
        main(["test", *args, *options, *batch, "--predictions.dirpath", str(out)])
        found.append((out / "predictions.jsonl").read_text())
    assert found[0] == found[1]
    row = json.loads(found[0].splitlines()[0])
    assert len(row["samples"]) == 3
    assert row["samples"][0]["completion"] == row["completion"]
    cell = json.loads((out / "metrics.json").read_text())["overall"]
    assert cell["k"] == 3
    assert cell["pass_at_k"] >= cell["accuracy"]


def test_out_of_memory_halves_the_batch_and_goes_on(whole, folder, args, monkeypatch):
    answer, tried = GRPOModule.complete, []

    def complete(self, prompts, *args, **kwargs):
        tried.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no more")
        return answer(self, prompts, *args, **kwargs)

    monkeypatch.setattr(GRPOModule, "complete", complete)
    out = folder / "oom"
    with pytest.warns(UserWarning, match="going on with"):
        main(["test", *args, "--data.init_args.eval_batch_size", "9", "--predictions.dirpath", str(out)])
    assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert tried[:4] == [9, 5, 3, 2]
    assert max(tried[4:]) == 2  # what did not fit is not tried again


def test_one_question_that_does_not_fit_says_what_to_change(folder, args, monkeypatch):
    def complete(*args, **kwargs):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(GRPOModule, "complete", complete)
    with pytest.raises(SystemExit, match="questions-0 alone does not fit into memory: lower model.policy.max_pixels"):
        main(["test", *args, "--predictions.dirpath", str(folder / "none")])


def test_what_a_policy_was_trained_on_travels_with_its_weights(folder, args):
    main(
        [
            "fit",
            *args,
            "--trainer.max_steps",
            "1",
            "--checkpoint.every_n_train_steps",
            "1",
            "--data.init_args.modalities",
            "[ct]",
        ]
    )
    adapter = folder / "runs/run/checkpoints/step1"
    out = folder / "trained"
    for option in (["--model.policy.adapter", str(adapter)], ["--ckpt_path", str(adapter) + ".ckpt"]):
        main(["test", *args, *option, "--predictions.dirpath", str(out / option[0].strip("-"))])
    for run in find_runs([out]):
        assert run.trained_on.modalities == ("ct",)
        assert (run.trained_on.step, run.trained_on.num_records, run.trained_on.prompt) == (1, 5, "think")
    first, second = find_runs([out])
    assert first.predictions == second.predictions


def test_fit_keeps_no_predictions(folder):
    writer = PredictionWriter(str(folder / "nothing"))
    writer.setup(None, None, "fit")
    writer.teardown(None, None, "fit")
    assert not (folder / "nothing").exists()


@pytest.mark.parametrize("said", ["", "{", "[]", "null", "{}", '{"settings": 3}'])
def test_a_damaged_description_of_the_run_is_named(whole, folder, args, said):
    out = folder / f"damaged{len(said)}{said[-1:] == ']'}"
    out.mkdir()
    (out / "predictions.jsonl").write_bytes((whole / "predictions.jsonl").read_bytes())
    (out / "run.json").write_text(said)
    with pytest.raises(SystemExit, match=r"how .* made.* set a new predictions\.dirpath"):
        main(["test", *args, "--predictions.dirpath", str(out)])
    (out / "predictions.jsonl").write_text('{"id": "torn')
    if said == "{":
        (out / "run.json").unlink()
        (out / "predictions.jsonl").write_text("")
        main(["test", *args, "--predictions.dirpath", str(out)])  # nothing was answered: nothing to protect
        assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["questions.json", "questions.json/below"])
def test_a_folder_that_cannot_be_is_named(folder, args, name):
    with pytest.raises(SystemExit, match=r"predictions\.dirpath: .*questions\.json.* cannot be written"):
        main(["test", *args, "--predictions.dirpath", str(folder / name)])


def test_a_full_disk_loses_nothing(whole, folder, args, monkeypatch):
    out, opened, batches = folder / "full", Path.open, []

    def full(self, mode="r", *more, **options):
        file = opened(self, mode, *more, **options)
        if mode == "ab":
            batches.append(self)
            if len(batches) == 3:
                file.write(b'{"id": "torn')
                file.close()
                raise OSError(28, "No space left on device")
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(SystemExit, match="No space left on device.* the same command goes on"):
            main(["test", *args, "--predictions.dirpath", str(out)])
    assert len(read_predictions(out / "predictions.jsonl")) == 2 * BATCH
    main(["test", *args, "--predictions.dirpath", str(out)])
    assert (out / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_other_images_are_refused(whole, folder, args):
    shutil.copytree(folder / "images", folder / "elsewhere/images")
    with pytest.raises(SystemExit, match=r"data\.image_root was"):
        main(["test", *args, "--predictions.dirpath", str(whole), "--data.init_args.image_root", f"{folder}/elsewhere"])


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_without_a_path_is_refused(folder, args, name):
    """Lightning would go on with the weights of the base model when there is none."""
    with pytest.raises(SystemExit, match=f"ckpt_path: expected the path of a checkpoint, got '{name}'"):
        main(["test", *args, "--ckpt_path", name])


def test_training_records_of_which_the_filters_leave_none_do_not_stop_a_test(folder, args):
    rows = json.loads((folder / "questions.json").read_text())
    (folder / "ct.json").write_text(json.dumps([row for row in rows if row["subset"].startswith("CT")]))
    out = folder / "xray"
    options = ["--data.init_args.train", str(folder / "ct.json"), "--data.init_args.modalities", "[xray]"]
    main(["test", *args, *options, "--predictions.dirpath", str(out)])
    found = [p for p in read_predictions(out / "predictions.jsonl") if p.view == "image"]
    assert len(found) == 4
    assert {(p.seen, p.option_prior) for p in found} == {(None, None)}


def test_weights_change_their_fingerprint_wherever_they_change(tmp_path):
    file = tmp_path / "model.safetensors"
    content = bytearray(2**20)
    file.write_bytes(content)
    before = fingerprint(str(tmp_path))
    for place in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + b"x" + content[place + 1 :])
        assert fingerprint(str(tmp_path)) != before, place
    file.write_bytes(content)
    assert fingerprint(str(tmp_path)) == before
    with file.open("wb") as opened:
        opened.truncate(3 * BLOCK * NUM_BLOCKS)
    large = fingerprint(str(tmp_path))
    with file.open("rb+") as opened:
        opened.seek(BLOCK * NUM_BLOCKS)
        opened.write(b"x" * 3 * BLOCK)
    assert fingerprint(str(tmp_path)) != large


@pytest.mark.parametrize("option", ["--model.policy.adapter", "--ckpt_path"])
def test_what_weights_had_learned_from_before_is_not_forgotten(folder, args, option):
    fit = ["fit", *args, "--data.init_args.limit_train_records", "4", "--checkpoint.every_n_train_steps", "1"]
    first, second = folder / f"ct{option}", folder / f"xray{option}"
    main([*fit, "--trainer.max_steps", "1", "--data.init_args.modalities", "[ct]", "--checkpoint.dirpath", str(first)])
    start = str(first / "step1") + (".ckpt" if option == "--ckpt_path" else "")
    more = ["--data.init_args.modalities", "[xray]", "--checkpoint.dirpath", str(second), option, start]
    main([*fit, "--trainer.max_steps", "2", *more])
    known = trained_on(second / "step2")
    assert (known.modalities, known.step) == (("ct", "xray"), 2)


def test_an_adapter_of_which_nothing_is_known_is_no_base_model(folder, args):
    main(["fit", *args, "--trainer.max_steps", "1", "--checkpoint.dirpath", str(folder / "anonymous")])
    checkpoint = folder / "anonymous/last"
    (checkpoint / "trained_on.json").unlink()
    out = folder / "unknown"
    for option in (["--model.policy.adapter", str(checkpoint)], ["--ckpt_path", str(checkpoint) + ".ckpt"]):
        main(["test", *args, *option, "--predictions.dirpath", str(out / option[0].strip("-"))])
    assert [run.trained_on for run in find_runs([out])] == [TrainedOn(), TrainedOn()]


@pytest.fixture
def by_hand(folder, tmp_path):
    """What a script has in place of the command line: a module, data, and a Trainer for some callbacks."""
    policy = Policy(tiny_folder(), max_pixels=6000)
    module = GRPOModule(
        policy, rewards=[AccuracyReward()], optimizer=torch.optim.SGD, num_generations=2, max_completion_length=4
    )
    questions = str(folder / "questions.json")
    data = MedicalVQADataModule(
        train=questions, test=questions, image_root=str(folder), prompts_per_batch=2, eval_batch_size=BATCH
    )
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"default_root_dir": tmp_path, "max_steps": 1, "num_sanity_val_steps": 0}

    def trainer(*callbacks, **more):
        return Trainer(callbacks=list(callbacks), enable_checkpointing=False, **options | more)

    return module, data, trainer


def test_without_the_command_line(by_hand, folder):
    module, data, trainer = by_hand
    out = folder / "script"
    trainer(PredictionWriter(str(out))).test(module, datamodule=data, verbose=False)
    assert len(keys(out)) == NUM_RECORDS
    asked = []
    module.answer, answer = (lambda prompts: asked.extend(prompts.records) or answer(prompts)), module.answer
    trainer(PredictionWriter(str(out))).test(module, datamodule=data, verbose=False)
    assert asked == []
    with pytest.warns(UserWarning, match="neither kept nor counted: add .*PredictionWriter"):
        trainer().test(module, datamodule=data, verbose=False)
    assert len(asked) == NUM_RECORDS  # what another test had done is not left out
    with pytest.raises(SettingsError, match="in place of dataloaders"):
        trainer(PredictionWriter()).test(module, dataloaders=data.test_dataloader(), verbose=False)


def test_weights_in_memory_are_told_apart(by_hand, folder):
    module, data, trainer = by_hand
    out = folder / "memory"
    trainer().fit(module, datamodule=data)
    for _ in range(2):
        trainer(PredictionWriter(str(out))).test(module, datamodule=data, verbose=False)
    assert len(keys(out)) == NUM_RECORDS
    assert find_runs([out])[0].trained_on == TrainedOn()  # no base model, but nothing says what
    trainer().fit(module, datamodule=data)
    with pytest.raises(SettingsError, match="weights was .*in memory"):
        trainer(PredictionWriter(str(out))).test(module, datamodule=data, verbose=False)


def test_the_checkpoint_that_is_named_is_the_one_that_answers(by_hand, folder, tmp_path):
    module, data, trainer = by_hand
    out = folder / "unnamed"
    first = trainer()
    first.fit(module, datamodule=data)
    file = tmp_path / "one.ckpt"
    first.save_checkpoint(file)
    writer = PredictionWriter(str(out))
    writer.ckpt_path = str(file)
    trainer(writer).test(module, datamodule=data, ckpt_path=file, verbose=False)
    assert len(keys(out)) == NUM_RECORDS
    (tmp_path / "two.ckpt").write_bytes(file.read_bytes())
    for finished in (True, False):
        if not finished:
            writer.dirpath = str(folder / "unnamed2")
        with pytest.raises(SettingsError, match="two.ckpt, and the answers would be kept as those of .*one.ckpt"):
            trainer(writer).test(module, datamodule=data, ckpt_path=tmp_path / "two.ckpt", verbose=False)
    assert keys(folder / "unnamed2") == []
