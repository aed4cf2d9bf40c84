"""``medgrpo data convert | sample | audit | split | debias | difficulty``: make good data easy and bad data visible."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_modules.audit import Audit, audit
from data_modules.audit_limits import check_limits
from data_modules.audit_page import write_page
from data_modules.audit_text import render, render_beside
from data_modules.convert import all_records, check_name, convert, drop_missing_images, read_sources, save, write_text
from data_modules.debias import Debiased, Report, debias
from data_modules.formats import FORMATS, Reading, write_jsonl
from data_modules.image_hashes import ImageHash, hash_images
from data_modules.image_root import ImageRoot
from data_modules.images import open_rgb
from data_modules.leaks import near_pairs
from data_modules.split import group_records, sample_splits, split
from medgrpo.types import Record, SettingsError, UserError

LIMIT_PASSED = 1
"""Exit status when an audit finds more than a ``--limit`` allows."""

BAD_INPUT = 2
"""Exit status for files or options that the user can mend, as argparse has it for a wrong command line."""

MAX_NEAR_DISTANCE = 16
"""Perceptual hashes of unrelated images differ in 32 bits on average."""

HASHES = ".medgrpo_hashes"
"""Where hashes of the images below a folder are kept in it."""

SWITCHES = {
    "redraw": "draw distractors from right answers of the same modality and task",
    "normalize_style": "one style of first letters and final periods",
    "balance_binary": "leave out yes-or-no items until both answers are equally frequent",
    "balance_letters": "right letters equally frequent",
    "shuffle": "random order of options",
}
"""Steps of ``debias``, all on unless ``--no-NAME``."""


def main(args: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    try:
        if args[:1] == ["difficulty"]:
            from medgrpo.difficulty import main as difficulty  # loads models, and has the options of medgrpo predict

            difficulty(list(args[1:]))
            return 0
        options = parser().parse_args(args)
        return options.run(options)
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:  # also a full disk, a folder that may not be written, no such model
        print(f"medgrpo: {error}", file=sys.stderr)
        return BAD_INPUT


def _convert(options: argparse.Namespace) -> int:
    check_name(options.out)
    _check_new(options, options.out, *(options.out.with_suffix(end) for end in (".manifest.json", ".dropped.jsonl")))
    progress = partial(tqdm, desc="reading", unit=" rows", disable=None)
    result = convert(options.sources, options.format, options.save_images, options.keep_duplicates, progress)
    hashes = _hash(options, result.records)
    if hashes is not None:
        drop_missing_images(result, hashes)
    settings = {"format": options.format, "keep_duplicates": options.keep_duplicates}
    save(options.out, result, settings, hashes)
    print(f"{result.summary()}\nwritten to {options.out}, with its manifest beside it")
    return 0


def _sample(options: argparse.Namespace) -> int:
    wanted = {"train": options.train, "test": options.test}
    outputs = {name: options.out / f"{name}.jsonl" for name, num in wanted.items() if num}
    _check_new(options, *outputs.values())
    records = _records(options, options.sources)
    by = None if options.by == "none" else options.by
    groups = group_records(records, names=options.by_name)
    parts = sample_splits(records, options.train, options.test, options.seed, by, options.balance, groups)
    _write(options.out, outputs, dict(zip(wanted, parts, strict=True)))
    return 0


def _audit(options: argparse.Namespace) -> int:
    if not options.train and not options.test:
        raise SettingsError("audit: expected files after --train, --test or both")
    limits = dict(_pair(item, "limit") for item in options.limit)
    _check_new(options, *(path for path in (options.json, options.html) if path))
    train, test = read_sources(options.train, options.test, format=options.format)
    records = [record for _, reading in (*train, *test) for record in reading.records]
    hashes = _hash(options, records)
    text_only = None
    if options.text_model:
        from medgrpo.difficulty import text_only_share  # loads a model

        asked = [record for _, reading in test or train for record in reading.records if record.options]
        text_only = text_only_share(options.text_model, asked, options.prompt)
    found = audit(train, test, hashes=hashes, near_distance=options.near_distance, text_only=text_only)
    figures = found.to_json()
    if options.json:
        write_text(options.json, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if options.html:
        images = ImageRoot(options.images) if options.images else None
        write_page(options.html, found, images and (lambda reference: open_rgb(images.find(reference))))
    print(render(found, _width()))
    passed = check_limits(figures, limits)
    for line in passed:
        print(f"limit exceeded: {line}", file=sys.stderr)
    return LIMIT_PASSED if passed else 0


def _split(options: argparse.Namespace) -> int:
    shares = dict(_pair(item, "shares") for item in options.shares)
    outputs = {name: options.out / f"{name}.jsonl" for name in shares}
    _check_new(options, *outputs.values())
    records = _records(options, options.sources)
    hashes = _hash(options, records)
    contents = {image: found.sha256 for image, found in (hashes or {}).items() if found.sha256}
    groups = group_records(
        records,
        hashes=contents,
        near=near_pairs(hashes or {}, options.near_distance),
        names=options.by_name,
        group_field=options.group_field,
        group_pattern=options.group_pattern,
    )
    parts = split(records, shares, options.seed, groups, options.stratify)
    _write(options.out, outputs, parts)
    return 0


def _debias(options: argparse.Namespace) -> int:
    sources = {name: files for name in ("train", "test") if (files := getattr(options, name))}
    outputs = {name: options.out / f"{name}.jsonl" for name in sources}
    _check_new(options, *outputs.values())
    settings = {name: getattr(options, name) for name in (*SWITCHES, "weights", "drop_small_pool", "seed")}
    before = {name: _records(options, files) for name, files in sources.items()}
    done: dict[str, Debiased] = {name: debias(records, **settings) for name, records in before.items()}
    after = {name: result.records for name, result in done.items()}
    _write(options.out, outputs, after)
    for name, result in done.items():
        print(f"{name}: {_told(result.report)}")
    print(render_beside(_audit_of(before), _audit_of(after), _width()))
    return 0


def _told(report: Report) -> str:
    return (
        f"{report.redrawn} records with new distractors, {report.small_pool} for which "
        f"too few other right answers are known (kept, or left out with --drop_small_pool), {report.fixed} "
        f"left as they are since options speak of each other, {report.balanced_away} left out to balance yes and no, "
        f"{report.restyled} in another style"
    )


def _audit_of(records: Mapping[str, list[Record]]) -> Audit:
    readings = {name: [(f"{name}.jsonl", Reading(found, [], []))] for name, found in records.items()}
    return audit(readings.get("train", []), readings.get("test", []))


def _records(options: argparse.Namespace, sources: Sequence[str]) -> list[Record]:
    return all_records(read_sources(sources, format=options.format)[0])


def _hash(options: argparse.Namespace, records: Sequence[Record]) -> dict[str, ImageHash] | None:
    """Hashes of all images; None without a folder of images."""
    if options.images is None:
        if options.hashes:
            raise SettingsError("hashes: there is nothing to hash; name the folder of the images with --images")
        return None
    if not options.images.is_dir():
        raise SettingsError(f"images: expected a folder, got {str(options.images)!r}, which is none")
    if options.num_workers < 0:
        raise SettingsError(f"num_workers: expected 0 (no other process) or more, got {options.num_workers}")
    if not 0 <= getattr(options, "near_distance", 0) <= MAX_NEAR_DISTANCE:
        raise SettingsError(f"near_distance: expected 0 to {MAX_NEAR_DISTANCE} bits of 64, got {options.near_distance}")
    references = [image for record in records for image in record.images]
    beside = options.images / HASHES if os.access(options.images, os.W_OK) else None
    store = options.hashes or beside
    if store and references:
        print(f"image hashes are kept in {store}", file=sys.stderr)
    return hash_images(references, ImageRoot(options.images), store, options.num_workers, progress=True)


def _check_new(options: argparse.Namespace, *paths: Path) -> None:
    """Refuse to replace anything before any work is done."""
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        raise SettingsError(f"{', '.join(map(str, paths))}: expected different places for what is written")
    named = [getattr(options, name, None) or [] for name in ("sources", "train", "test")]
    sources = {Path(source).resolve() for group in named if isinstance(group, list) for source in group}
    if both := sources.intersection(places):
        raise SettingsError(f"{', '.join(map(str, both))} is read, and would be replaced: write to another place")
    folders = [source for source in sources if source.is_dir()]
    if inside := [str(place) for place in places if any(place.is_relative_to(folder) for folder in folders)]:
        raise SettingsError(f"{', '.join(inside)} would be read with its folder the next time: write to another place")
    if folders := [str(path) for path in paths if path.is_dir()]:
        raise SettingsError(f"{', '.join(folders)}: expected a place for a file, got a folder")
    there = [str(path) for path in paths if path.exists()]
    if there and not options.overwrite:
        raise SettingsError(f"{', '.join(there)} exists: name another place, or add --overwrite to replace it")


def _write(folder: Path, outputs: Mapping[str, Path], parts: Mapping[str, list[Record]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in outputs.items():
        write_jsonl(path, parts[name])
        print(f"{path}: {len(parts[name])} records")


def _pair(item: str, option: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or math.isnan(number):
        raise SettingsError(f"{option}: expected NAME=NUMBER, got {item!r}")
    return name, number


def _width() -> int:
    """Columns of the terminal, 100 at most and where there is none, as in a file."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def parser() -> argparse.ArgumentParser:
    """Of all commands but ``difficulty``, which has the options of ``medgrpo predict``."""
    parser = argparse.ArgumentParser("medgrpo data", description="Make good data easy and bad data visible.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    # Options that several commands share.
    boolean = argparse.BooleanOptionalAction
    files, images, near, output, seeded, grouped = (argparse.ArgumentParser(add_help=False) for _ in range(6))
    _option(
        files,
        "format",
        "of the files; auto looks at the fields of their first rows",
        default="auto",
        choices=("auto", *FORMATS),
    )
    _option(images, "images", "folder that the image paths start from", type=Path, metavar="ROOT")
    about = (
        f"keeps image hashes, so that a run that was stopped goes on (default ROOT/{HASHES}, where that can be written)"
    )
    _option(images, "hashes", about, type=Path, metavar="FILE")
    _option(images, "num_workers", "processes that hash images", type=int, default=2)
    about = "bits of 64 by which perceptual hashes of near duplicates differ"
    _option(near, "near_distance", about, type=int, default=4)
    output.add_argument("--overwrite", action="store_true", help="replace files that exist")
    _option(seeded, "seed", "of everything random", type=int, default=42)
    _option(grouped, "by_name", "images of equal file name stay together", action=boolean, default=True)

    def add(name: str, run: Any, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=parents, help=about, description=about)
        command.set_defaults(run=run)
        return command

    sources = {"nargs": "+", "metavar": "SRC", "help": "question file, or folder that is searched for them"}

    command = add("convert", _convert, "Any format to one JSONL file, with a manifest.", files, images, output)
    command.add_argument("sources", **sources)
    _option(command, "out", "what to write", type=Path, required=True, metavar="FILE.jsonl")
    _option(command, "save_images", "where images stored inside the files are written", type=Path, metavar="DIR")
    command.add_argument("--keep_duplicates", action="store_true", help="keep records whose content has come before")

    command = add("sample", _sample, "Seeded subsets without a common image.", files, output, seeded, grouped)
    command.add_argument("sources", **sources)
    _option(command, "out", "gets train.jsonl and test.jsonl", type=Path, required=True, metavar="DIR")
    _option(command, "train", "records to train on, of each group", type=int, default=600)
    _option(command, "test", "records to test on, of each group", type=int, default=300)
    _option(
        command, "by", "what the groups are: modality, task, dataset, a name in metadata, or none", default="modality"
    )
    _option(command, "balance", "draw equally over this: answer, letter, task, dataset ...", metavar="NAME")

    command = add("audit", _audit, "Leaks, duplicates, and what can be answered blind.", files, images, near, output)
    _option(command, "train", "training files", nargs="+", action="extend", default=[], metavar="A")
    _option(command, "test", "test files", nargs="+", action="extend", default=[], metavar="B")
    _option(command, "json", "all figures", type=Path, metavar="OUT.json")
    _option(command, "html", "a page with pictures of leaking pairs", type=Path, metavar="OUT.html")
    about = "end with status 1 if a figure of the JSON is greater, e.g. leak.path=0 blind.option_prior=50"
    _option(command, "limit", about, nargs="+", action="extend", default=[], metavar="KEY=NUMBER")
    _option(command, "text_model", "model that answers the test questions without their images", metavar="FOLDER")
    _option(command, "prompt", "what it is asked with, as data.prompt", default="nothink")

    about = "Sets without a common image, patient or volume."
    command = add("split", _split, about, files, images, near, output, seeded, grouped)
    command.add_argument("sources", **sources)
    _option(command, "out", "gets one JSONL file per set", type=Path, required=True, metavar="DIR")
    _option(command, "shares", "of the sets", nargs="+", default=["train=0.8", "test=0.2"], metavar="NAME=SHARE")
    _option(command, "group_field", "field or metadata that names patient, study or volume", metavar="NAME")
    _option(command, "group_pattern", "likewise in the image path: the first group of this", metavar="REGEX")
    _option(command, "stratify", "equal shares of these", nargs="*", default=["modality", "task", "answer_type"])

    command = add("debias", _debias, "Make blind guessing useless.", files, output, seeded)
    _option(command, "train", "training files", nargs="+", action="extend", required=True, metavar="A")
    _option(command, "test", "test files", nargs="+", action="extend", default=[], metavar="B")
    _option(command, "out", "gets train.jsonl and test.jsonl", type=Path, required=True, metavar="DIR")
    for name, about in SWITCHES.items():
        _option(command, name, about, action=boolean, default=True)
    about = "draw distractors as often as they are right, or all alike"
    _option(command, "weights", about, default="frequency", choices=("frequency", "uniform"))
    about = "leave out items for which too few other right answers are known"
    command.add_argument("--drop_small_pool", action="store_true", help=about)

    about = "Pass counts of a model's samples; takes the options of medgrpo predict, and --out."
    commands.add_parser("difficulty", help=about, add_help=False)
    return parser


def _option(parser: argparse.ArgumentParser, name: str, about: str, **settings: Any) -> None:
    shown = settings.get("default")
    if "choices" in settings:
        settings["metavar"] = "NAME"
        about += f" ({', '.join(settings['choices'])})"
    about = about.replace("%", "%%") + (f" (default {shown})" if shown not in (None, [], True) else "")
    parser.add_argument(f"--{name}", help=about, **settings)
