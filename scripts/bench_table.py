"""Markdown tables of the growth curves that ``bench_curves.sh`` measured: ``python scripts/bench_table.py FOLDER``.

A curve is the files ``OPTION-VALUE.json`` of the folder, each written by ``bench_vs_trl.py --json``. Needs the standard
library alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TITLES = {
    "generations": "completions per prompt (G)",
    "new-tokens": "completion length (C)",
    "image-size": "image size (pixels per side)",
    "prompts": "prompts per step (P)",
}
HEAD = ("medgrpo (s)", "times the row above", "TRL (s)", "TRL / medgrpo", "medgrpo (GiB)", "TRL (GiB)")
FIXED = ("model", "tuning", "beta", "generations", "new_tokens", "image_size", "prompts")


def read_curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by option, each curve in order of its option's values.

    Raises:
        SystemExit: the folder has no such file.
    """
    curves = {}
    for option in TITLES:
        results = [json.loads(path.read_text()) for path in folder.glob(f"{option}-*.json")]
        if results:
            curves[option] = sorted(results, key=lambda result: result["settings"][_key(option)])
    if not curves:
        raise SystemExit(f"{folder}: expected files such as generations-8.json, found none; run bench_curves.sh first")
    return curves


def table(option: str, results: list[dict[str, Any]]) -> str:
    """One row per value of the option; what did not run stays empty.

    Raises:
        SystemExit: the points differ in another setting too.
    """
    seen = {", ".join(f"{k} {result['settings'][k]}" for k in FIXED if k != _key(option)) for result in results}
    if len(seen) > 1:
        raise SystemExit(f"{option}: expected points that differ in this alone, got {sorted(seen)}; measure them anew")
    fixed = seen.pop()
    head = (TITLES[option], *HEAD)
    lines = [f"Seconds a step by {TITLES[option]}; {fixed}", "", _row(head), _row("---" for _ in head)]
    before = None
    for result in results:
        ours, trl, ratio = (result[part] or {} for part in ("ours", "trl", "ratio"))
        step = ours.get("step_s")
        growth = step / before if step and before else None
        figures = (step, growth, trl.get("step_s"), ratio.get("step_s"), ours.get("peak_gib"), trl.get("peak_gib"))
        cells = ("" if figure is None else f"{figure:.2f}" for figure in figures)
        lines.append(_row((str(result["settings"][_key(option)]), *cells)))
        before = step
    return "\n".join(lines)


def _key(option: str) -> str:
    return option.replace("-", "_")


def _row(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print all curves of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path)
    curves = read_curves(parser.parse_args().folder)
    print("\n\n".join(table(option, results) for option, results in curves.items()))


if __name__ == "__main__":
    main()
