"""The report's page: whole, harmless whatever the predictions say, and closed to the outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.report import page
from medgrpo.report.content import Finding, Table

VOID = {"meta", "link", "img", "input", "option"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "\0",
    "\ud800",
    "{script}",
)


class Page(HTMLParser):
    """Tags and text of a page by element; fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self._open[-1] if self._open else ""] = self.text.get(self._open[-1] if self._open else "", "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def data_of(source: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)[1])


def example(text: str) -> dict:
    return {"runs": [{"name": text}], "images": [], "examples": [{"id": text, "answers": [{"samples": [text]}]}]}


def digest(source: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def test_policy_allows_the_page_s_own_style_and_script_alone():
    source = page.page("Evaluation", [], page.browser(example("x"), "All."))
    policies = [tag["content"] for tag in Page(source).all("meta") if tag.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["style-src"] == digest(re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1])
    assert rules["script-src"] == digest(re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1])
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert "http:" not in source
    assert "https:" not in source


def test_script_writes_text_only():
    script = (page.HERE / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", script)


@pytest.mark.parametrize("text", HOSTILE[:4])
def test_hostile_data_stays_data(text):
    source = page.page("Evaluation", [], page.browser(example(text), "All."))
    assert data_of(source) == example(text)
    assert [tag.get("type") for tag in Page(source).all("script")] == ["application/json", None]


def tags_around(text: str) -> list[str]:
    body = [
        page.heading(text),
        page.paragraph(text),
        page.finding_list([Finding(True, text, (text,))]),
        page.table(Table(text, (text, "n"), ((text, text),)), folded=True),
    ]
    return [tag for tag, _ in Page(page.page(text, body)).tags]


@given(st.text() | st.sampled_from(HOSTILE))
def test_text_cannot_leave_its_element(text):
    assert tags_around(text) == tags_around("x")


def test_parts_are_not_looked_into():
    assert "<h1>{script}{policy}</h1>" in page.page("{script}{policy}", [])


def test_table_puts_names_left_and_figures_right():
    source = page.table(Table("Runs", ("run", "n", "on"), (("a", "1", "-"), ("b", "2", "ct"))))
    assert source.count('<th scope="row" class="left">') == 2
    assert "<td>1</td><td" in source
    assert '<td class="left">-</td>' in source
    assert '<th scope="col" class="left">on</th>' in source


def test_long_tables_and_lists_say_what_they_leave_out():
    rows = tuple((f"run {i}", str(i)) for i in range(page.MAX_ROWS + 7))
    source = page.table(Table("Runs", ("run", "n"), rows))
    assert source.count("<tr>") == page.MAX_ROWS + 1
    assert "7 more rows are in the CSV file." in source
    names = tuple(f"run {i}" for i in range(page.MAX_DETAILS + 3))
    source = page.finding_list([Finding(False, "Something.", names)])
    assert "and 3 more runs" in source
    assert "Attention" not in source


def test_pictures_are_put_into_the_page(tmp_path):
    (tmp_path / "a.png").write_bytes(b"PNG")
    source = page.pictures([(tmp_path / "a.png", "Gain & loss", ("A note.",))])
    assert Page(source).all("img") == [{"src": "data:image/png;base64,UE5H", "alt": "Gain & loss"}]
    assert "Gain &amp; loss. A note." in source
