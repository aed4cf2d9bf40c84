"""The report of saved predictions: files, examples, and the page in a real browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from browser import chromium, needs_chromium
from PIL import Image

from medgrpo.evaluation import summarize
from medgrpo.predictions import Prediction, to_row, write_predictions
from medgrpo.report.build import write_report
from medgrpo.report.content import findings
from medgrpo.report.examples import MAX_TEXT, choose, questions, shown, thumbnail, to_json
from medgrpo.runs import Run
from medgrpo.types import DataError, Record

OPTIONS = ("Breast tissue", "Lung", "Skin")
HOSTILE = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\u202eabc\0"


def record(i: int, **fields) -> Record:
    known = {
        "question": f"What is shown, {i}?",
        "options": OPTIONS,
        "answer": "A",
        "images": (f"{i}.png",),
        "modality": ("ct", "mri")[i % 2],
        "task": "Lesion Grading",
        "dataset": "demo",
    } | fields
    return Record(f"q{i}", known["question"], **known)


def said(*letters: str, words: str = "It is dense.") -> tuple[str, ...]:
    return tuple(f"<think>{words}</think><answer>{letter}</answer>" if letter else words for letter in letters)


def prediction(i: int, *letters: str, words: str = "It is dense.", **fields) -> Prediction:
    of = fields.pop("record", None) or record(i)
    cut = fields.pop("truncated", (False,) * len(letters))
    return Prediction(of, said(*letters, words=words), cut, **fields)


def save(folder: Path, predictions: list[Prediction], image_root: Path, **settings) -> str:
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.jsonl", predictions)
    about = {"settings": settings, "image_root": str(image_root), "trained_on": None}
    (folder / "run.json").write_text(json.dumps(about))
    return str(folder)


def run(name: str, predictions: list[Prediction], image_root: Path = Path("nowhere")) -> Run:
    return Run(Path(name), name, {}, str(image_root), None, tuple(predictions))


def noise(seed: int, size: int = 224) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def data_of(folder: Path) -> dict:
    source = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1])


def two_runs(root: Path) -> list[str]:
    """Four questions: gained, lost, both right, both wrong; the fourth image is missing, the third text hostile."""
    for i in range(3):
        noise(i).save(root / f"{i}.png")
    before = [prediction(0, "B"), prediction(1, "A"), prediction(2, "A"), prediction(3, "", truncated=(True,))]
    before += [prediction(i, "C", view="blank") for i in range(4)]
    after = [prediction(0, "A"), prediction(1, "C"), prediction(2, "A", words=HOSTILE), prediction(3, "B")]
    return [save(root / "before", before, root), save(root / "after", after, root)]


def test_report_has_the_figures_of_the_predictions(tmp_path):
    write_report(two_runs(tmp_path), str(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["runs"]) == ["before", "after"]
    overall = metrics["runs"]["before"]["overall"]
    assert (overall["n"], overall["accuracy"], overall["blank"], overall["truncated"]) == (4, 0.5, 0.0, 0.25)
    (compared,) = metrics["comparisons"]
    assert compared["runs"] == ["before", "after"]
    assert (compared["only_first"], compared["only_second"], compared["p_value"]) == (1, 1, 1.0)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "50.0 % [15.0, 85.0]" in page  # Wilson, 2 of 4
    assert "All 4 questions." in page
    assert (tmp_path / "out" / "table.csv").read_text().startswith("run,")
    assert "tabular" in (tmp_path / "out" / "table.tex").read_text()


def test_examples_hold_what_each_run_said(tmp_path):
    write_report(two_runs(tmp_path), str(tmp_path / "out"))
    data = data_of(tmp_path / "out")
    gained, lost, same, last = data["examples"]
    assert [answer["right"] for answer in gained["answers"]] == [0, 1]
    assert [answer["right"] for answer in lost["answers"]] == [1, 0]
    assert [answer["read"] for answer in lost["answers"]] == ["Breast tissue", "Skin"]
    assert same["answers"][0]["views"] == [{"name": "with a blank image", "read": "Skin", "verdict": "wrong"}]
    assert last["answers"][0]["verdicts"] == ["truncated", "unparsed"]
    assert last["answers"][0]["samples"][0]["read"] is None
    assert "no such file" in last["images"][0]["why"]
    assert len(data["images"]) == 3
    assert "⟨U+202E⟩abc⟨U+0000⟩" in same["answers"][1]["samples"][0]["text"]


def test_folder_keeps_what_is_not_the_report_s(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "index.html").write_text("old")
    write_report(two_runs(tmp_path), str(out))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "index.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not list(out.glob("*.partial"))


def trained(root: Path, name: str, step: int, *letters: str, prompt: str = "think") -> str:
    """A run that was trained on ct."""
    folder = save(root / name, [prediction(i, letter) for i, letter in enumerate(letters)], root)
    about = {"modalities": ["ct"], "tasks": ["Lesion Grading"], "step": step}
    settings = {"data.prompt": prompt}
    Path(folder, "run.json").write_text(json.dumps({"settings": settings, "image_root": ".", "trained_on": about}))
    return folder


def test_files_of_an_earlier_report_go_and_no_others(tmp_path):
    out = tmp_path / "out"
    write_report([trained(tmp_path, f"step{i}", i, "A", "B") for i in (10, 20)], str(out))
    first = json.loads((out / "metrics.json").read_text())["files"]
    assert {"accuracy_by_step.png", "heatmap_accuracy_modality_think.tex", "table.csv"} <= set(first)
    assert {path.name for path in out.iterdir()} == {*first, "index.html", "metrics.json"}
    (out / "modes.png").write_text("mine: no report wrote it")
    others = ["notes.txt", "../notes.txt", "../step10/run.json", "index.html", 7, None]
    for folder in (out, tmp_path):
        (folder / "notes.txt").write_text("mine")
    (out / "metrics.json").write_text(json.dumps({"files": first + others}))
    write_report(two_runs(tmp_path), str(out))
    assert {path.name for path in out.iterdir()} == {
        *("table.csv", "table.tex", "index.html", "metrics.json"),
        *("modes.png", "notes.txt"),
    }
    assert (tmp_path / "notes.txt").is_file()
    assert (tmp_path / "step10" / "run.json").is_file()


@pytest.mark.parametrize("old", ["no JSON", "[]", "{}", '{"files": 3}', '{"files": {"table.csv": 1}}', "\xff"])
def test_metrics_of_somebody_else_are_no_list(tmp_path, old):
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text(old, encoding="latin-1")
    (out / "modes.png").write_text("mine")
    write_report(two_runs(tmp_path), str(out))
    assert (out / "modes.png").is_file()


def test_accuracy_by_step_is_drawn_of_two_steps_of_one_training(tmp_path):
    two_runs(tmp_path)
    paths = [str(tmp_path / "before"), trained(tmp_path, "ct", 60, "A", "B"), trained(tmp_path, "ct2", 70, "A", "B")]
    write_report(paths[:2], str(tmp_path / "out"))
    assert not (tmp_path / "out" / "accuracy_by_step.png").exists()
    write_report(paths, str(tmp_path / "out"))
    assert (tmp_path / "out" / "accuracy_by_step.png").exists()


def test_a_folder_of_a_run_is_no_place_for_a_report(tmp_path):
    path = two_runs(tmp_path)[0]
    with pytest.raises(DataError, match="expected a folder of its own"):
        write_report([path], path)
    assert sorted(file.name for file in Path(path).iterdir()) == ["predictions.jsonl", "run.json"]


def test_a_run_named_twice_is_one_and_two_of_one_name_are_refused(tmp_path, monkeypatch):
    paths = two_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_report([*paths, "before", "after/../before", str(tmp_path / "before" / "predictions.jsonl")], "out")
    assert list(json.loads(Path("out/metrics.json").read_text())["runs"]) == ["before", "after"]
    write_predictions(tmp_path / "before.jsonl", [prediction(0, "B")])
    with pytest.raises(DataError, match="two called 'before': rename"):
        write_report([*paths, "before.jsonl"], "out")


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    odd = record(0, task="\ud800", dataset="\udcff")
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "predictions.jsonl").write_text(json.dumps(to_row(prediction(0, "A", record=odd))))
    write_report([str(folder)], str(tmp_path / "out"))
    assert "\\ud800" in (tmp_path / "out" / "table.csv").read_text(encoding="utf-8")


def test_the_base_comes_first_and_what_differs_from_it_is_said(tmp_path):
    two_runs(tmp_path)
    base = save(tmp_path / "z", [prediction(i, "B") for i in range(2)], tmp_path, **{"data.prompt": "nothink"})
    text = "{Question}\nAnswer <b>at once</b>, in words of one's own choice."
    paths = [trained(tmp_path, "ct", 60, "A", "B"), trained(tmp_path, "mri", 60, "A", "B", prompt=text), base]
    write_report(paths, str(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [pair["runs"] for pair in metrics["comparisons"]] == [["z", "ct"], ["z", "mri"]]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "come from these settings.<ul><li>ct: data.prompt</li><li>mri: data.prompt</li></ul>" in page
    assert "own text: Answer &lt;b&gt;at once&lt;/b&gt;, in words of one" in page
    assert ">nothing (base)</td>" in page
    assert ">ct; Lesion Grading</td>" in page


def test_path_without_anything_is_named(tmp_path):
    paths = two_runs(tmp_path)
    (tmp_path / "empty").mkdir()
    for path in ("empty", "nowhere"):
        with pytest.raises(DataError, match=path):
            write_report([*paths, str(tmp_path / path)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_event_files_alone_give_curves(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            writer.add_scalar("reward", step / 10, step)
    for path in (tmp_path / "logs", next((tmp_path / "logs").iterdir())):
        write_report([str(path)], str(tmp_path / "out"))
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert page.count("<img") == 1
        assert 'id="browser"' not in page
        assert (tmp_path / "out" / "reward.png").read_bytes().startswith(b"\x89PNG")
        assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {
            "runs": {},
            "comparisons": [],
            "files": ["reward.png"],
        }


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    paths = two_runs(tmp_path)
    other = [prediction(0, "A", record=record(0, options=OPTIONS[::-1]))]
    paths += [
        save(tmp_path / "other", other, tmp_path),
        save(tmp_path / "blank", [prediction(0, "A", view="blank")], tmp_path),
    ]
    paths += [save(tmp_path / "elsewhere", [prediction(9, "A")], tmp_path)]
    write_report(paths, str(tmp_path / "out"))
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"Not compared with the first run\.<ul><li>other: [^<]+</li></ul>", page)
    assert "no predictions with the image.<ul><li>blank</li></ul>" in page
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [pair["runs"][1] for pair in metrics["comparisons"]] == ["after"]
    assert len(data_of(tmp_path / "out")["examples"]) == 6  # "other" asks the first question with other options


def test_examples_are_spread_and_changed_ones_come_first():
    """90 ct and 10 mri questions, all answered right by the first run; the second differs in three of the ct ones."""
    records = [replace(record(i), modality="ct" if i < 90 else "mri") for i in range(100)]
    first = run("first", [prediction(i, "A", record=r) for i, r in enumerate(records)])
    second = run("second", [prediction(i, "B" if i in (40, 50, 60) else "A", record=r) for i, r in enumerate(records)])
    asked = questions([first, second])
    chosen = choose(asked, 20)
    assert Counter(question.record.modality for question in chosen) == {"ct": 10, "mri": 10}
    assert {"q40", "q50", "q60"} <= {question.record.id for question in chosen}
    places = [int(question.record.id[1:]) for question in chosen]
    assert places == sorted(places)
    assert min(places) > 10 or max(places[:10]) > 70, "the beginning of the file is preferred"
    assert choose(asked, 1000) == asked
    assert choose(asked, 0) == []
    verdicts = Counter(question.verdicts["second"][0] for question in choose(questions([second, first]), 6))
    assert verdicts == {"right": 4, "wrong": 2}  # three groups in turn: ct right, ct wrong, mri right


def test_picture_is_there_once_however_many_questions_share_it(tmp_path):
    noise(0).save(tmp_path / "0.png")
    asked = questions([run("a", [prediction(i, "A", record=record(i, images=("0.png",))) for i in range(5)], tmp_path)])
    data = to_json(asked, [run("a", [], tmp_path)])
    assert len(data["images"]) == 1
    assert {example["images"][0]["index"] for example in data["examples"]} == {0}


def test_thumbnail_is_as_small_as_asked():
    from base64 import b64decode

    for limit in (11_000, 5_500, 2_000):
        data = b64decode(thumbnail(noise(0), limit).split(",", 1)[1])
        assert len(data) <= limit
        assert max(Image.open(BytesIO(data)).size) <= 192
    assert Image.open(BytesIO(b64decode(thumbnail(Image.new("RGB", (500, 250)), 5_500).split(",")[1]))).size == (
        192,
        96,
    )


def test_long_text_keeps_head_and_tail():
    text = shown("a" * 3000 + "<answer>B</answer>", MAX_TEXT)
    assert text.startswith("a" * 1300)
    assert text.endswith("<answer>B</answer>")
    assert "[... 1,018 characters left out ...]" in text
    assert shown("a\u00a0b\u200b\r\n\tc\ud800", 99) == "a b⟨U+200B⟩ \n\tc⟨U+D800⟩"


def test_samples_are_counted_and_the_most_frequent_answer_is_compared():
    one = prediction(0, "A", "B", "B", "", "A", "B")
    (example,) = to_json(questions([run("a", [one])]), [run("a", [one])])["examples"]
    (answer,) = example["answers"]
    assert answer["right"] == 0.3333
    assert answer["read"] == "Lung"
    assert answer["note"] == "2 of 6 samples right; 4 shown"
    assert [sample["verdict"] for sample in answer["samples"]] == ["right", "wrong", "wrong", "unparsed"]


def test_completions_of_many_runs_are_cut_shorter():
    runs = [run(f"run {i}", [prediction(0, "A", words="Dense. " * 400)]) for i in range(12)]
    (example,) = to_json(questions(runs), runs)["examples"]
    assert 3000 < len(json.dumps(example["answers"])) < 6000
    assert all(answer["samples"][0]["text"].endswith("<answer>A</answer>") for answer in example["answers"])


def test_same_id_with_another_question_is_another_example():
    other = prediction(0, "A", record=record(0, question="Else?"))
    asked = questions([run("a", [prediction(0, "A")]), run("b", [other])])
    assert [list(question.predictions) for question in asked] == [["a"], ["b"]]


def test_findings_are_in_plain_words():
    """Gold letters in turn, so that always saying A has a third of them right."""
    records = [record(i, answer="ABC"[i % 3]) for i in range(50)]

    def all_a(**fields) -> list[Prediction]:
        return [prediction(i, "A", record=r, **fields) for i, r in enumerate(records)]

    seen = [replace(p, seen=i < 3) for i, p in enumerate(all_a())]
    cut = [prediction(i, "A" if i % 2 else "", record=r, truncated=(not i % 2,)) for i, r in enumerate(records)]
    asked = {"seen": seen + all_a(view="blank"), "cut": cut}
    found = {finding.text: finding.details for finding in findings({n: summarize(p) for n, p in asked.items()})}

    def details(words: str) -> tuple[str, ...]:
        (text,) = (text for text in found if words in text)
        return found[text]

    assert details("No evidence that the image is used")[0].startswith("seen: not distinguishable from answering blind")
    assert details("in the training data") == ("seen: 3 of 50 questions, 33.3 % right; 34.0 % on the 47 others",)
    assert details("could not be read") == ("cut: 50.0 % unparsed",)
    assert details("cut off") == ("cut: 50.0 % truncated",)
    assert details("Not tested with a blank image") == ("cut",)
    assert not any("Strict" in text for text in found)
    base = findings({"seen": summarize(seen)}, untrained={"seen"})
    assert not any("in the training data" in finding.text for finding in base)
    without = {finding.text for finding in findings({"cut": summarize(cut)}, text_only={"cut"})}
    assert not any("image" in text for text in without)
    assert any("No evidence that the question is understood" in text for text in without)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Folder of a report: 400 questions, 300 shown, each with its own picture of noise and two long completions."""
    root = tmp_path_factory.mktemp("large")
    (root / "images").mkdir()
    for i in range(400):
        noise(i).save(root / "images" / f"{i}.png", compress_level=1)
    for name, shift in (("before", 0), ("after", 1)):
        words = "The region is dense. " * 150
        said_ = [prediction(i, "AABC"[(i // 2 + shift) % 4], words=HOSTILE + words) for i in range(400)]
        save(root / name, said_, root / "images")
    write_report([str(root / "before"), str(root / "after")], str(root / "out"))
    return root / "out"


def test_page_of_300_examples_is_small(large):
    data = data_of(large)
    assert (len(data["examples"]), len(data["images"])) == (300, 300)
    assert 2_000_000 < (large / "index.html").stat().st_size < 5_000_000
    lengths = {len(sample["text"]) for e in data["examples"] for answer in e["answers"] for sample in answer["samples"]}
    assert min(lengths) >= 1000


@pytest.fixture(scope="module")
def tab():
    with chromium() as opened:
        yield opened


@needs_chromium
def test_page_opens_quietly_and_asks_for_nothing(large, tab):
    address = (large / "index.html").as_uri()
    tab.open(address)
    assert tab.run("document.querySelectorAll('article').length") == 20
    assert tab.run("document.getElementById('count').textContent") == "300 of 300 examples, showing 1 to 20"
    assert tab.run("Promise.all([...document.images].map((image) => image.decode())).then((all) => all.length)") >= 20
    assert tab.run("window.hit === undefined && document.querySelectorAll('.said script, .said img').length === 0")
    assert tab.run("document.querySelector('.said').textContent").startswith("<think></script><script>window.hit")
    assert tab.run("fetch('index.html').then(() => 'sent', () => 'refused')") == "refused"
    assert tab.requests() == [address]
    tab.open(address)
    assert tab.complaints() == []


@needs_chromium
def test_filters_find_what_python_finds(large, tab):
    data = data_of(large)

    def found(**filters: str) -> int:
        tab.open(f"{(large / 'index.html').as_uri()}#{'&'.join(f'{k}={quote(v)}' for k, v in filters.items())}")
        return int(tab.run("document.getElementById('examples').dataset.count"))

    both = [(example, *example["answers"]) for example in data["examples"]]
    expected = {
        ("run", "before", "verdict", "wrong"): sum("wrong" in one["verdicts"] for _, one, _ in both),
        ("run", "after", "verdict", "wrong"): sum("wrong" in other["verdicts"] for _, _, other in both),
        ("verdict", "unparsed"): 0,
        ("modality", "mri"): sum(e["modality"] == "mri" for e, _, _ in both),
        ("change", "gained", "from", "before", "to", "after"): sum(o["right"] > b["right"] for _, b, o in both),
        ("change", "lost", "from", "before", "to", "after"): sum(o["right"] < b["right"] for _, b, o in both),
        ("change", "lost", "from", "after", "to", "before"): sum(o["right"] > b["right"] for _, b, o in both),
        ("change", "answer"): sum(o["read"] != b["read"] for _, b, o in both),
        ("change", "same", "modality", "ct"): sum(o["read"] == b["read"] and e["modality"] == "ct" for e, b, o in both),
        ("q", "SHOWN, 17?"): sum("shown, 17?" in e["question"] for e, _, _ in both),
    }
    assert len(set(expected.values())) > 4
    for filters, count in expected.items():
        assert found(**dict(zip(filters[::2], filters[1::2], strict=True))) == count, filters
    assert tab.complaints() == []


@needs_chromium
def test_pages_are_turned_by_buttons_and_keys(large, tab):
    tab.open((large / "index.html").as_uri())
    first = tab.run("document.querySelector('article h3').textContent")
    tab.press("ArrowRight")
    assert tab.run("document.querySelector('.page').textContent") == "Page 2 of 15"
    assert tab.run("location.hash") == "#page=2"
    assert tab.run("document.activeElement.id") == "count"
    assert tab.run("document.querySelector('article h3').textContent") != first
    tab.run("document.querySelector('[data-step=\"-1\"]').click()")
    assert tab.run("document.querySelector('article h3').textContent") == first
    tab.run("document.querySelector('[name=q]').focus()")
    tab.press("ArrowRight")  # moves the cursor there
    assert tab.run("document.querySelector('.page').textContent") == "Page 1 of 15"
    tab.run("document.querySelector('[data-step=\"1\"]').click()")
    tab.run("f = document.forms[0]; f.elements.modality.value = 'ct'; f.dispatchEvent(new Event('input')); 0")
    assert tab.run("location.hash") == "#modality=ct"
    tab.run("document.getElementById('clear').click()")
    assert tab.run("location.hash + document.getElementById('examples').dataset.count") == "300"


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_screen(large, tab, width, scheme):
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open((large / "index.html").as_uri())
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
