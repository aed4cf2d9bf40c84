"""``medgrpo grade`` and ``compare`` from the command line: figures, verdicts, layouts, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medgrpo.eval_cli import main
from medgrpo.graders import GRADERS

OPTIONS = ["Bone marrow", "Breast tissue", "Skin"]
# Completion, gold B, and by which graders it is right: those of other projects by the first letters of their names as
# in ``WHO``, ``l`` by our lenient and ``s`` by our strict rule.
LINES = [
    ("<think>x</think>\n<answer>B</answer>", "rmtkhls"),
    ("<answer>B)</answer>", "hls"),  # MedEvalKit: "b)" is nearest to the shortest text that begins with b
    ("<answer>B. Breast tissue</answer>", "tkvhls"),
    ("<answer>b</answer>", "tkls"),  # HuatuoGPT-o1: the nearest text is Bone marrow
    ("The answer is B.", "kvhl"),
    ("so \\boxed{B}", "kvhl"),
    ("<answer>A</answer> wait <answer>B</answer>", "l"),  # HuatuoGPT-o1: its first reading, A, is right more often
    ("<think>maybe B but no</think><answer>A</answer>", "vh"),
    ("<answer>B or C</answer>", "h"),
    ("", ""),
    ("<think>It is Skin or", ""),
    ("<answer>B", "h"),
]  # fmt: skip
WHO = {"medr1": "r", "medvlmr1": "m", "medvlthinker": "t", "medevalkit": "k", "vlmevalkit": "v", "huatuo": "h"}


def write(path: Path, rows: list[dict], newline: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(row) + newline for row in rows).encode())
    return path


def rows(**changes: object) -> list[dict]:
    return [
        {"id": f"q{i}", "completion": text, "options": OPTIONS, "gold": "B"} | changes
        for i, (text, _) in enumerate(LINES)
    ]


def graded(path: Path, *args: str) -> dict:
    out = path.with_name("new") / "out.json"
    assert main(["grade", str(path), "--json", str(out), *args]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", [name for name in GRADERS if name != "ours"])
def test_figures_and_verdicts_of_each_grader(tmp_path: Path, name: str) -> None:
    report = graded(write(tmp_path / "p.jsonl", rows()), "--grader", name)
    right = [WHO[name] in graders for _, graders in LINES]
    assert [v["correct"] for v in report["verdicts"]] == right
    assert [v["strict_correct"] for v in report["verdicts"]] == right
    assert [v["id"] for v in report["verdicts"]] == [f"q{i}" for i in range(12)]
    assert (report["grader"], report["n"]) == (name, 12)
    assert report["lenient"] == report["strict"] == sum(right) / 12
    assert report["unparsed"] == sum(v["extracted"] is None for v in report["verdicts"]) / 12
    assert report["truncated"] == 2 / 12  # by the tags left open


def test_figures_and_verdicts_of_ours(tmp_path: Path) -> None:
    report = graded(write(tmp_path / "p.jsonl", rows()))
    assert [v["correct"] for v in report["verdicts"]] == ["l" in graders for _, graders in LINES]
    assert [v["strict_correct"] for v in report["verdicts"]] == ["s" in graders for _, graders in LINES]
    assert [v["extracted"] for v in report["verdicts"]] == [*"BBBBBBBA", None, None, None, None]
    assert list(report) == ["grader", "n", "strict", "lenient", "unparsed", "truncated", "verdicts"]
    assert (report["strict"], report["lenient"], report["unparsed"]) == (4 / 12, 7 / 12, 4 / 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"gold": "b"},
        {"options": dict(zip("ABC", OPTIONS, strict=True))},
        {"options": [f"{letter}. {text}" for letter, text in zip("ABC", OPTIONS, strict=True)]},
    ],
)
def test_layouts_of_a_line_mean_the_same(tmp_path: Path, changes: dict) -> None:
    expected = graded(write(tmp_path / "p.jsonl", rows()))
    assert graded(write(tmp_path / "q.jsonl", rows(**changes))) == expected


def test_every_sample_is_graded(tmp_path: Path) -> None:
    texts = ["<answer>B</answer>", "<answer>A</answer>", "The answer is B.", "Hm"]
    samples = [{"completion": text, "truncated": text == "Hm"} for text in texts]
    row = {"id": "q", "completion": texts[0], "options": OPTIONS, "gold": "B", "samples": samples}
    report = graded(write(tmp_path / "p.jsonl", [row]), "--results", str(tmp_path / "r.json"))
    figures = {name: report[name] for name in ("n", "lenient", "strict", "unparsed", "truncated")}
    assert figures == {"n": 1, "lenient": 0.5, "strict": 0.25, "unparsed": 0.25, "truncated": 0.25}
    assert [(v["id"], v["sample"], v["extracted"]) for v in report["verdicts"]] == [
        ("q", 0, "B"), ("q", 1, "A"), ("q", 2, "B"), ("q", 3, None),
    ]  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["accuracy"] == 50.0
    assert graded(tmp_path / "r.json")["lenient"] == 0.5


def test_ids_come_back_as_they_were(tmp_path: Path) -> None:
    numbered = [row | {"id": number} for number, row in enumerate(rows())]
    assert [v["id"] for v in graded(write(tmp_path / "p.jsonl", numbered))["verdicts"]] == list(range(12))


def test_marks_and_blank_lines_of_other_systems(tmp_path: Path) -> None:
    expected = graded(write(tmp_path / "p.jsonl", rows()))
    path = write(tmp_path / "q.jsonl", rows(), newline="\r\n \r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert graded(path) == expected


def test_json_on_the_standard_output_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "p.jsonl", rows())
    assert main(["grade", str(path), "--grader", "Med-R1"]) == 0
    assert (
        capsys.readouterr().out == "medr1: n 12, lenient 8.33 %, strict 8.33 %, unparsed 66.67 %, truncated 16.67 %\n"
    )
    assert main(["grade", str(path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == graded(path)


def test_any_text_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    row = {"id": "\u7532", "completion": "<answer>\ud800 \u00b5m</answer>", "gold": "x"}
    path = write(tmp_path / "p.jsonl", [row])
    (found,) = graded(path)["verdicts"]
    assert (found["id"], found["extracted"]) == ("\u7532", "\ud800 \u00b5m")
    assert main(["grade", str(path), "--json", "-", "--results", str(tmp_path / "r.json")]) == 0
    assert capsys.readouterr().out.isascii()
    assert graded(tmp_path / "r.json")["verdicts"] == [found]


def test_results_are_graded_as_the_predictions_they_are_of(tmp_path: Path) -> None:
    expected = graded(write(tmp_path / "p.jsonl", rows()))
    assert main(["grade", str(tmp_path / "p.jsonl"), "--results", str(tmp_path / "r.json")]) == 0
    assert graded(tmp_path / "r.json") == expected
    assert json.loads((tmp_path / "r.json").read_text())["accuracy"] == 100 * expected["lenient"]


def test_the_folder_of_a_test_is_graded_with_its_image_alone(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", rows())
    folder = tmp_path / "test"
    folder.mkdir()
    write(folder / "predictions.jsonl", rows() + rows(view="blank", completion="<answer>B</answer>"))
    assert graded(folder) == graded(tmp_path / "p.jsonl")


def test_a_result_file_of_med_r1(tmp_path: Path) -> None:
    question = {"image": "a.png", "problem": "What? A)Cyst, B)Mass", "solution": "<answer> B </answer>"}
    said = [{"question": question, "ground_truth": "B", "model_output": text} for text in ("B", "<answer>B</answer>")]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"accuracy": 100.0, "results": said}))
    assert graded(path, "--grader", "medr1")["lenient"] == 1.0
    ours = graded(path)
    assert (ours["lenient"], ours["strict"]) == (1.0, 0.5)


def test_compare_two_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", rows(completion="\\boxed{B}"))
    args = ["compare", str(first), str(second)]
    assert main([*args, "--json", str(tmp_path / "c.json")]) == 0
    assert "12" in capsys.readouterr().out
    assert main([*args, "--json", "-"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared == json.loads((tmp_path / "c.json").read_text())
    assert compared["runs"] == [str(first), str(second)]
    counts = [compared[name] for name in ("n", "both_right", "only_first", "only_second", "neither")]
    assert counts == [12, 7, 0, 5, 0]
    assert compared["p_value"] == 2 * 0.5**5


LINE = {"id": "1", "completion": "<answer>A</answer>", "options": ["x", "y"], "gold": "A"}


@pytest.mark.parametrize(
    ("lines", "args", "says"),
    [
        ([LINE], ["--grader", "gpt"], "grader: expected one of ours, medr1,"),
        ([LINE, LINE], [], "line 2: the id '1' has a line already"),
        ([LINE, LINE | {"id": 1}], [], "line 2: the id '1' has a line already"),
        ([LINE, LINE | {"id": 2, "options": list("abcdefghijk")}], [], "line 2: options: expected 2 to 10 texts"),
        ([LINE | {"gold": "C"}], [], "line 1: gold: expected a letter from A to B, got 'C'"),
        ([LINE | {"completion": None}], [], "line 1: expected a text in the field 'completion', got None"),
        ([LINE | {"options": []}], ["--grader", "huatuo"], "Grade them with the grader ours"),
        ([LINE | {"view": "blank"}], [], "expected predictions of questions as they are"),
        ([], [], "expected predictions of questions as they are"),
        ([LINE], ["--json", "p.jsonl/x"], "p.jsonl/x: expected a file that can be written"),
        ([LINE], ["--results", "p.jsonl/x"], "p.jsonl/x: expected a file that can be written"),
    ],
)
def test_bad_input_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, lines: list, args: list, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("p.jsonl"), lines)
    assert main(["grade", "p.jsonl", *args]) == 2
    out, told = capsys.readouterr()
    assert out == ""
    assert told.startswith("medgrpo: ")
    assert told.count("\n") == 1
    assert says in told


@pytest.mark.parametrize("args", [["grade", "none.jsonl"], ["grade", "."], ["compare", "none", "none"]])
def test_a_path_without_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, args: list
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert "expected" in capsys.readouterr().err


def test_the_console_command_exits_with_the_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medgrpo.cli", "grade", str(tmp_path / "none")]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("medgrpo: ")
    assert "Traceback" not in failed.stderr


def test_no_model_code_is_loaded() -> None:
    code = "import sys, medgrpo.eval_cli; print([m for m in sys.modules if m.startswith(('medgrpo', 'peft'))])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("peft", "medgrpo.policy", "medgrpo.rollout", "medgrpo.loading", "medgrpo.policy_module"):
        assert f"'{name}'" not in loaded
