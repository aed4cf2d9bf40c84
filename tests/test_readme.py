"""What README.md and CONTRIBUTING.md show exists and is accepted."""

import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from commands import arguments, configs, set_up

from data_modules.formats import FORMATS
from medgrpo.data_cli import parser
from medgrpo.eval_cli import parser as eval_parser
from medgrpo.graders import GRADERS

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SHELL = "".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
COMMANDS = arguments(SHELL)
DATA_COMMANDS = [
    shlex.split(line, comments=True)[2:] for line in SHELL.splitlines() if line.strip().startswith("medgrpo data")
]
EVAL_COMMANDS = [
    shlex.split(line)[1:] for line in SHELL.splitlines() if re.match(r"\s*medgrpo (grade|compare|report) ", line)
]
SCRIPTS = sorted(set(re.findall(r"\bbash (scripts/\w+\.sh)", README + CONTRIBUTING)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader would be who made the files that the README shows: each names itself in its first line."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for _, text in BLOCKS:
        if name := re.match(r"# (\S+\.\w+)\n", text):
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_there_are_commands():
    assert {command[0] for command in COMMANDS} >= {"fit", "predict"}
    assert {"scripts/demo.sh", "scripts/test.sh"} <= set(SCRIPTS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_is_accepted(command, folder, monkeypatch):
    assert configs(command)
    set_up(command, monkeypatch)


@pytest.mark.parametrize("command", DATA_COMMANDS, ids=" ".join)
def test_data_command_is_accepted(command, folder, monkeypatch):
    name, *options = command
    if name == "difficulty":
        del options[(out := options.index("--out")) : out + 2]
        set_up(["predict", *options], monkeypatch)
    else:
        parser().parse_args(command)


@pytest.mark.parametrize("command", EVAL_COMMANDS, ids=" ".join)
def test_evaluation_command_is_accepted(command):
    eval_parser().parse_args(command)


def test_every_evaluation_command_and_grader_is_there():
    assert {command[0] for command in EVAL_COMMANDS} == set(eval_parser()._subparsers._group_actions[0].choices)
    section = README.split("## Evaluation")[1].split("\n## ")[0]
    assert set(GRADERS) <= set(re.findall(r"`(\w+)`", section))
    assert (ROOT / re.search(r"!\[.*\]\((.*)\)", section)[1]).is_file()


def test_every_data_command_and_format_is_there():
    assert set(re.findall(r"^\| `medgrpo data (\w+)", README, re.MULTILINE)) == set(
        parser()._subparsers._group_actions[0].choices
    )
    section = README.split("## Data")[1].split("\n## ")[0]
    assert set(FORMATS) <= set(re.findall(r"`(\w+)`", section))


def test_reward_of_the_readme_is_used(folder, monkeypatch):
    (command,) = (command for command in COMMANDS if "my_rewards.yaml" in command)
    cli = set_up(command, monkeypatch)
    assert [reward.name for reward in cli.model.rewards][-1] == "short_reward"
    assert cli.model.rewards[-1](["x" * 399, "x" * 400], [None, None]) == [1.0, 0.0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_there_and_parses(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_python_parses(text):
    ast.parse(text)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(medgrpo\.\w+\.\w+)`", README))))
def test_function_exists(name):
    module, function = name.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), function))


def test_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README + CONTRIBUTING)
    named = re.findall(r"`((?:medgrpo|data_modules|configs|scripts|tests)/[\w./]+)`", README + CONTRIBUTING)
    assert links
    assert named
    assert not [name for name in (*links, *named) if not (ROOT / name).exists()]


def test_options_exist(folder, monkeypatch):
    """Each option in the first column of the table of options."""
    table = README.split("## Options that matter")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert len(cells) > 10
    cli = set_up(["fit", "--config", "configs/medvlm_r1/grpo.yaml"], monkeypatch)
    config = cli.config.fit
    places = {
        "data.": config.data.init_args,
        "model.policy.": config.model.policy.init_args,
        "model.": config.model,
        "trainer.": config.trainer,
    }
    for cell in cells:
        place = None
        for option in re.findall(r"`([\w.]+)`", cell):
            prefix = next((prefix for prefix in places if option.startswith(prefix)), "")
            place = places.get(prefix, place)  # an option without a prefix is where the one before it is
            assert option.removeprefix(prefix) in place
