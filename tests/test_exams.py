"""Six exams in their published layouts, tested by one command: one row of the table each."""

import json
from pathlib import Path

import pytest
import yaml
from test_cli import write_config, write_data

from medgrpo.policy_module import PolicyModule
from medgrpo.trainer_cli import main

ROOT = Path(__file__).parents[1]
NAMES = ["MedQA", "MedMCQA", "PubMedQA", "MMLU-Pro", "GPQA", "MedXpertQA"]


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_exams(folder: Path) -> list[str]:
    """Two questions each, gold A and then B but for GPQA, whose order is a hash."""
    four = {"A": "ion", "B": "ohm", "C": "erg", "D": "mol"}
    medqa = [{"question": f"Q{i}?", "options": four, "answer": four["AB"[i]], "answer_idx": "AB"[i]} for i in range(2)]
    lines(folder / "medqa.jsonl", medqa)
    opa = dict(zip(("opa", "opb", "opc", "opd"), four.values(), strict=True))
    lines(folder / "medmcqa.json", [{"id": f"m{i}", "question": f"Q{i}?", "cop": i, **opa} for i in range(2)])
    pubmed = {"QUESTION": "Is it?", "CONTEXTS": ["It was seen."], "LONG_ANSWER": "It is."}
    decisions = {"1": pubmed | {"final_decision": "yes"}, "2": pubmed | {"final_decision": "no"}}
    (folder / "pubmedqa.json").write_text(json.dumps(decisions))
    options = list(four.values())
    mmlu = {"question": "Q?", "options": options, "category": "health", "src": ""}
    rows = [mmlu | {"question_id": i, "answer": "AB"[i], "answer_index": i} for i in range(2)]
    lines(folder / "mmlu_pro.jsonl", [*rows, mmlu | {"question_id": 3, "answer": "A", "category": "law"}])
    head = (
        "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,High-level domain\n"
    )
    cells = "g{0},Q{0}?,ion,ohm,erg,mol,{1}\n"
    text = head + cells.format(1, "Biology") + cells.format(2, "Biology") + cells.format(3, "Physics")
    (folder / "gpqa.csv").write_text(text)
    ten = {letter: f"word {letter}" for letter in "ABCDEFGHIJ"}
    expert = {"options": ten, "medical_task": "Diagnosis", "body_system": "Skin", "question_type": "Reasoning"}
    asked = "Q?\nAnswer Choices: " + " ".join(f"({letter}) {text}" for letter, text in ten.items())
    lines(
        folder / "medxpertqa.jsonl",
        [expert | {"id": f"Text-{i}", "question": asked, "label": "AB"[i]} for i in range(2)],
    )
    files = ["medqa.jsonl", "medmcqa.json", "pubmedqa.json", "mmlu_pro.jsonl", "gpqa.csv", "medxpertqa.jsonl"]
    return [str(folder / name) for name in files]


def test_one_command_gives_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PolicyModule, "decode", lambda self, drawn: ["<answer>A</answer>"] * len(drawn.ids))
    write_data(tmp_path)
    config = write_config(tmp_path, data__init_args__prompt="nothink", model__max_completion_length=2)
    exams = yaml.safe_load((ROOT / "configs/exams.yaml").read_text())
    assert len(exams["data"]["init_args"]["test"]) == len(NAMES)
    exams["data"]["init_args"]["test"] = write_exams(tmp_path)
    exams["model"]["max_completion_length"] = 2
    (tmp_path / "exams.yaml").write_text(yaml.safe_dump(exams))
    out = tmp_path / "out"
    main(["test", "--config", config, "--config", str(tmp_path / "exams.yaml"), "--predictions.dirpath", str(out)])
    metrics = json.loads((out / "metrics.json").read_text())
    cells = metrics["groups"]["dataset"]
    assert sorted(cells) == sorted(NAMES)
    assert {name: cell["n"] for name, cell in cells.items()} == dict.fromkeys(NAMES, 2)
    assert {name: cells[name]["accuracy"] for name in NAMES if name != "GPQA"} == dict.fromkeys(
        [name for name in NAMES if name != "GPQA"], 0.5
    )
    assert cells["MedXpertQA"]["chance"] == pytest.approx(0.1)
    assert cells["PubMedQA"]["chance"] == pytest.approx(1 / 3)
    assert metrics["macro"]["dataset"] == pytest.approx((2.5 + cells["GPQA"]["accuracy"]) / 6)
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
