"""What others wrote cannot act: no program starts from a configuration, no path leaves its root, no text is markup."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
import yaml
from tensorboard.plugin_util import markdown_to_safe_html
from test_cli import change_record, write_config, write_data
from test_cli import scalars as events_of

from medgrpo.rewards import Reward
from medgrpo.trainer_cli import main

PLACES = ["data", "trainer.logger", "trainer.callbacks", "trainer.strategy", "trainer.profiler", "trainer.plugins"]
PLACES += ["trainer.accelerator", "model.policy", "model.optimizer", "model.lr_scheduler", "model.rewards"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_no_program_starts_from_a_configuration(folder, place):
    run, shell = f"touch {folder / 'hit'}", "__import__('os').system"
    calls = [("os.system", {"command": run}), ("subprocess.Popen", {"args": ["touch", str(folder / "hit")]})]
    calls += [
        ("subprocess.getoutput", {"cmd": run}),
        ("builtins.eval", {"source": f"__import__('os').system({run!r})"}),
    ]
    values = [{"class_path": path, "init_args": arguments} for path, arguments in calls]
    values += [{"class_path": path, "init_args": {}, "dict_kwargs": arguments} for path, arguments in calls]
    for value in [*values, "os.system", f"{shell}({run!r})", f"$({run})"]:
        listed = [value] if place == "model.rewards" else value
        with pytest.raises(SystemExit) as error:
            main(["fit", "--config", write_config(folder, **{place.replace(".", "__"): listed})])
        assert error.value.code != 0
        assert not (folder / "hit").exists(), value


def test_nor_from_what_a_class_in_it_is_given(folder):
    for path, arguments in (("os.system", {"command": "touch hit"}), ("subprocess.Popen", {"args": ["touch", "hit"]})):
        call = {"class_path": path, "init_args": arguments}
        callback = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": call}}
        optimizer = {"class_path": "torch.optim.AdamW", "dict_kwargs": {"betas": call}}
        for changes in ({"trainer__callbacks": [callback]}, {"model__optimizer": optimizer}):
            with pytest.raises(SystemExit) as error:
                main(["fit", "--config", write_config(folder, **changes)])
            assert error.value.code != 0
            assert not (folder / "hit").exists(), changes


@pytest.mark.parametrize("tag", ["apply:os.system [{}]", "apply:subprocess.getoutput [{}]", "new:os.system [{}]"])
def test_yaml_makes_no_objects(folder, tag):
    config = Path(write_config(folder))
    command = f'"touch {folder / "hit"}"'
    config.write_text(config.read_text() + f"ckpt_path: !!python/object/{tag.format(command)}\n")
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", str(config)])
    assert error.value.code != 0
    assert not (folder / "hit").exists()


def test_paths_of_records_stay_in_their_root(folder):
    (folder / "secret.png").write_bytes((folder / "images/0 0.png").read_bytes())
    (folder / "images/out.png").symlink_to(folder / "secret.png")
    root = str(folder / "images")
    for image in ("../secret.png", str(folder / "secret.png"), "out.png", "0 0.png/../../secret.png", "..\\secret.png"):
        for index in range(8):
            change_record(folder, index, image=["0 0.png"])
        change_record(folder, 3, image=[image])
        with pytest.raises(
            SystemExit, match="record questions-3: image .*(below image_root|leads out of|no such file)"
        ):
            main(["fit", "--config", write_config(folder, data__init_args__image_root=root)])


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=http://evil.example/a.png onerror=alert(1)>",
    "![x](http://evil.example/a.png)",
    "[x](javascript:alert(1)) [y](http://evil.example)",
    "`a` **b** _c_ | d | \\<b> &lt;i&gt; # e",
]


class Echo(Reward):
    """Not of interest."""

    name = "echo"

    def __call__(self, completions, records):
        return [float(len(text) % 2) for text in completions]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_panel_in_tensorboard_shows_texts_as_they_are(folder, monkeypatch, text):
    """Rendered as TensorBoard does: Markdown to HTML, of which it keeps images and links."""
    for index in range(8):
        change_record(folder, index, problem=f"{text}\nA) x\nB) y", question=text, options=["x", "y"], answer="x")
        change_record(folder, index, solution="A", id=text + str(index))
    monkeypatch.setattr("medgrpo.module.GRPOModule.decode", lambda self, completions: [text] * len(completions.ids))
    rewards = [{"class_path": "test_security.Echo"}]
    config = write_config(folder, trainer__max_steps=1, model__rewards=rewards, data__init_args__val=None)
    main(["fit", "--config", config])
    events = events_of(folder / "runs/run")
    panel = events.Tensors("samples/0/completions/text_summary")[0].tensor_proto.string_val[0].decode()
    page = markdown_to_safe_html(panel)
    assert set(re.findall(r"<(\w+)", page)) <= {"p", "strong", "br", "table", "thead", "tbody", "tr", "th", "td"}, page
    assert unescape(page).count(text) == 3 + 1, page  # three completions, one question


def test_a_resumed_file_with_code_in_it_is_not_run(folder):
    class Hit:
        def __reduce__(self):
            return (Path.touch, (folder / "hit",))

    import torch

    path = folder / "evil.ckpt"
    torch.save({"state_dict": {}, "callbacks": Hit()}, path)
    with pytest.raises(SystemExit) as error:
        main(["fit", "--config", write_config(folder), "--ckpt_path", str(path)])
    assert error.value.code != 0
    assert not (folder / "hit").exists()
    assert yaml.safe_load(Path(folder / "config.yaml").read_text())
