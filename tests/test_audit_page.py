"""The audit's page: whole, harmless whatever files say, and with the pictures of leaking pairs."""

from __future__ import annotations

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_modules.audit import Audit, audit
from data_modules.audit_page import spread, why, write_page
from data_modules.formats import Reading
from data_modules.image_hashes import ImageHash
from data_modules.leaks import LeakPair
from medgrpo.types import DataError, Record

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def record(id: str, *images: str, question: str = "What is it?", options=("cyst", "mass"), answer="A", modality="ct"):
    return Record(id, question, question, tuple(options), answer, images, modality=modality)


def both(train: list[Record], test: list[Record], hashes=None, name: str = "a.json") -> Audit:
    return audit([(name, Reading(train, [], []))], [(name, Reading(test, [], []))], hashes=hashes)


def red(reference: str) -> Image.Image:
    if "missing" in reference:
        raise DataError(f"image {reference!r}: no such <file>")
    return Image.new("RGBA" if "clear" in reference else "RGB", (448, 112), "red")


def written(path: Path, found: Audit, **options) -> tuple[str, Page]:
    write_page(path / "page.html", found, **options)
    source = (path / "page.html").read_text(encoding="utf-8")
    return source, Page(source)


def test_page_shows_pairs_side_by_side(tmp_path: Path) -> None:
    found = both([record("train-7", "x/1.png", answer="B")], [record("test-9", "x/1.png", question="Where?\nSay.")])
    source, page = written(tmp_path, found, open_image=red)
    images = page.all("img")
    assert [image["alt"] for image in images] == [
        "Test image x/1.png of record test-9",
        "Training image x/1.png of record train-7",
    ]
    picture = Image.open(BytesIO(base64.b64decode(images[0]["src"].removeprefix("data:image/jpeg;base64,"))))
    assert (picture.format, picture.size) == ("JPEG", (224, 56))
    assert picture.getpixel((9, 9))[0] > 200
    assert "same path, same file name" in page.text
    assert page.text.index("test-9") < page.text.index("Where?\nSay.") < page.text.index("train-7")
    assert re.findall(r"<li class=gold>(\w+) <strong>\(right\)", source) == ["cyst", "mass"]
    assert "1 examples; 1 test records are concerned." in page.text


def test_page_has_the_findings_and_tables(tmp_path: Path) -> None:
    found = both([record("0", "a/1.png")], [record("1", "b/1.png"), record("2", "c.png")])
    _, page = written(tmp_path, found)
    assert "1 of 2 test records (50.0 %) show an image that is also in training: same file name" in page.text
    assert "lookup of option texts" in page.text
    assert len(page.all("caption")) == len(page.all("table")) >= 5
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_page_asks_for_nothing(tmp_path: Path) -> None:
    found = both([record("0", "1.png")], [record("1", "1.png")])
    source, page = written(tmp_path, found, open_image=red)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not re.search(r"https?://|url\(|@import", source)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in source


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path) -> None:
    hashes = {"missing.png": ImageHash("s", 1), "clear.png": ImageHash("s", 1)}
    found = both([record("0", "clear.png")], [record("1", "missing.png")], hashes)
    _, page = written(tmp_path, found, open_image=red)
    assert [image["alt"] for image in page.all("img")] == ["Training image clear.png of record 0"]
    assert "No picture: image 'missing.png': no such <file>" in page.text
    _, page = written(tmp_path, found)
    assert page.text.count("No picture: images were not opened") == 2


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\x1b[2J\ud800<!-- body --></main>"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def hostile(id: str, **more) -> Record:
        return record(id + HOSTILE, HOSTILE + "missing", question=HOSTILE, options=(HOSTILE, HOSTILE), **more)

    bad = Reading([hostile("0"), hostile("1", answer="B")], [(0, HOSTILE)], [(1, HOSTILE)])
    found = audit([(HOSTILE, bad)], [(HOSTILE, bad)], hashes={HOSTILE + "missing": ImageHash("", None, HOSTILE)})
    _, page = written(tmp_path, found, open_image=red)
    assert page.all("script") == []
    assert page.all("img") == []
    assert "<script>alert(1)</script>" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    _, page = written(tmp_path, found, open_image=lambda reference: Image.new("RGB", (4, 4)))
    assert len(page.all("img")) == 2
    assert all(set(image) == {"src", "alt"} for image in page.all("img"))


@given(st.text(max_size=40))
def test_any_text_gives_a_page_that_parses(tmp_path_factory, text: str) -> None:
    found = both([record("0", "1.png", options=())], [record(text, "1.png", question=text, answer=text, options=())])
    _, page = written(tmp_path_factory.getbasetemp(), found, open_image=red)
    assert len(page.all("img")) == 2


def test_long_texts_are_cut(tmp_path: Path) -> None:
    found = both([record("0", "1.png")], [record("1", "1.png", question="word " * 20_000)])
    source, _ = written(tmp_path, found)
    assert len(source) < 20_000


def test_each_image_is_opened_once(tmp_path: Path) -> None:
    opened = Counter()

    def counted(reference: str) -> Image.Image:
        opened[reference] += 1
        return red(reference)

    found = both([record("0", "x/1.png")], [record("1", "x/1.png"), record("2", "y/1.png")])
    written(tmp_path, found, open_image=counted)
    assert opened == {"x/1.png": 1, "y/1.png": 1}


def pair(kind: str, modality: str, number: int) -> LeakPair:
    test = record(str(number), "a", modality=modality)
    return LeakPair(kind, test, test, "x/a", "y/a", same_hash=False, distance=None)


def test_pairs_are_spread_over_kinds_and_modalities() -> None:
    many = (
        [pair("path", "ct", i) for i in range(50)]
        + [pair("near", "ct", i) for i in range(3)]
        + [pair("path", "mri", 0)]
    )
    chosen = spread(many, 10)
    assert Counter((p.kind, p.test.modality) for p in chosen) == {
        ("path", "ct"): 6,
        ("near", "ct"): 3,
        ("path", "mri"): 1,
    }
    assert [p.kind for p in chosen] == ["path"] * 6 + ["near"] * 3 + ["path"]
    assert spread(many, 0) == []
    assert len(spread(many, 1000)) == 54


def test_max_pairs_is_kept(tmp_path: Path) -> None:
    records = [record(str(i), f"{i}.png") for i in range(9)]
    _, page = written(tmp_path, both(records, records), open_image=red, max_pairs=4)
    assert len(page.all("article")) == 4
    assert "4 examples; 9 test records are concerned." in page.text


def test_reasons_of_a_pair() -> None:
    found = both(
        [record("0", "x/1.png")],
        [record("1", "y/1.png")],
        {"x/1.png": ImageHash("s", 0b111), "y/1.png": ImageHash("t", 0b001)},
    )
    assert [why(p) for p in found.pairs] == ["same file name, perceptual hashes differ in 2 of 64 bits"]
