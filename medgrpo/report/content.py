"""What a report says, in words and tables: warnings in plain language, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from medgrpo.comparison import Comparison
from medgrpo.evaluation import Cell, Summary
from medgrpo.reasoning import Reasoning
from medgrpo.runs import Run
from medgrpo.tables import warning

MARGIN = 0.05
"""Share from which on unparsed, truncated or format-dependent answers are called a finding."""

FEW = 2
"""Names of modalities, question types or datasets that are listed; more are counted."""

PROMPT = 40
"""Characters of a prompt's text that are shown."""

KIND_NAMES = {
    "modality": "Modality",
    "task": "Question type",
    "dataset": "Dataset",
    "options": "Number of options",
    "image": "Image in the training data",
}


@dataclass(frozen=True)
class Finding:
    """One sentence, and for which runs it holds."""

    serious: bool
    """True when the accuracy would mislead."""
    text: str
    details: tuple[str, ...] = ()
    """One per run."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``labels`` columns are names, the others figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1


def findings(
    summaries: Mapping[str, Summary], text_only: Collection[str] = (), untrained: Collection[str] = ()
) -> list[Finding]:
    """What hampers reading the accuracies, the worst first.

    Args:
        summaries: by name of the run.
        text_only: names of runs without images.
        untrained: names of runs of a base model, which has seen no training image.
    """
    cells = {name: summary.overall for name, summary in summaries.items()}
    found = [
        _finding(
            True,
            "No evidence that the image is used: accuracy may be no higher than what is possible without looking.",
            {name: warning(summary) or None for name, summary in summaries.items() if name not in text_only},
        ),
        _finding(
            True,
            "No evidence that the question is understood: accuracy may be no higher than what a guess reaches.",
            {name: warning(summary) or None for name, summary in summaries.items() if name in text_only},
        ),
        _finding(
            True,
            "Images of the test are also in the training data: what is remembered counts as right there.",
            {name: _seen(summary) for name, summary in summaries.items() if name not in untrained},
        ),
        _finding(
            True,
            "Many answers could not be read, and count as wrong.",
            {name: _rate(cell.unparsed, "unparsed") for name, cell in cells.items()},
        ),
        _finding(
            True,
            "Many completions were cut off at the limit of their length; raise it, or read accuracy as a lower bound.",
            {name: _rate(cell.truncated, "truncated") for name, cell in cells.items()},
        ),
        _finding(
            False,
            "Strict and lenient accuracy differ: a gain over such a run may be one of format alone.",
            {
                name: f"strict {percent(cell.strict)}, lenient {percent(cell.accuracy)}"
                for name, cell in cells.items()
                if cell.accuracy - cell.strict > MARGIN
            },
        ),
        _finding(
            False,
            "Not tested with a blank image: whether the image is used is not known.",
            {name: "" for name, cell in cells.items() if cell.blank is None and name not in text_only},
        ),
    ]
    return [finding for finding in found if finding is not None]


def run_table(runs: Sequence[Run], summaries: Mapping[str, Summary]) -> Table:
    """One line per run."""
    head = ("run", "n", "accuracy [95 %]", "strict", "blank image", "another image", "trained on", "step", "prompt")
    rows = []
    for run in runs:
        cell, trained = summaries[run.name].overall, run.trained_on
        rows.append(
            (
                run.name,
                f"{cell.n:,}",
                interval(cell.accuracy, cell.low, cell.high),
                percent(cell.strict),
                percent(cell.blank),
                percent(cell.wrong_image),
                _trained_on(run),
                f"{trained.step:,}" if trained else "-",
                _prompt(run.prompt),
            )
        )
    return Table("Runs", head, tuple(rows))


def overall_table(summaries: Mapping[str, Summary]) -> Table:
    """All figures of each run."""
    cells = {(name,): summary.overall for name, summary in summaries.items()}
    return _cells("Overall", ("run",), cells)


def group_tables(summaries: Mapping[str, Summary]) -> list[Table]:
    """One per kind of group: all figures of each group and run."""
    kinds = {kind: None for summary in summaries.values() for kind in summary.groups}
    tables = []
    for kind in kinds:
        names = {group: None for summary in summaries.values() for group in summary.groups.get(kind, {})}
        cells = {
            (group, name): summary.groups[kind][group]
            for group in names
            for name, summary in summaries.items()
            if group in summary.groups.get(kind, {})
        }
        tables.append(_cells(KIND_NAMES.get(kind, kind), (KIND_NAMES.get(kind, kind).lower(), "run"), cells))
    return tables


def macro_table(summaries: Mapping[str, Summary]) -> Table | None:
    """Unweighted means over groups, and the worst group."""
    rows = tuple(
        (
            name,
            KIND_NAMES[kind].lower(),
            percent(mean),
            summary.worst[kind],
            percent(summary.groups[kind][summary.worst[kind]].accuracy),
        )
        for name, summary in summaries.items()
        for kind, mean in summary.macro.items()
    )
    head = ("run", "groups", "mean over groups", "worst group", "its accuracy")
    return Table("Mean over groups, each with equal weight, and the worst", head, rows, labels=2) if rows else None


def comparison_table(compared: Sequence[tuple[str, str, Comparison]]) -> Table:
    """Runs against the first, on the questions that both have."""
    head = ("first run", "second run", "n", "first", "second", "difference [95 %]", "only first", "only second")
    rows = tuple(
        (
            first,
            second,
            f"{c.n:,}",
            percent(c.first),
            percent(c.second),
            f"{100 * c.difference:+.1f} [{100 * c.low:+.1f}, {100 * c.high:+.1f}]",
            f"{c.only_first:,}",
            f"{c.only_second:,}",
            "< 0.0001" if c.p_value < 0.0001 else f"{c.p_value:.4f}",
            f"{c.missing:,}",
        )
        for first, second, c in compared
    )
    return Table("Pairs of runs on the same questions", (*head, "McNemar p", "not shared"), rows, labels=2)


def reasoning_table(summaries: Mapping[str, Summary]) -> Table | None:
    """None when no run reasons."""
    columns: dict[str, Callable[[Reasoning], str]] = {
        "completions that reason": lambda r: f"{r.n:,}",
        "come to a conclusion": lambda r: percent(r.concluded),
        "conclusion is the answer": lambda r: percent(r.agreement),
        "words": lambda r: _number(r.mean_words),
        "words if right": lambda r: _number(r.mean_words_right),
        "words if wrong": lambda r: _number(r.mean_words_wrong),
        "tokens": lambda r: _number(r.mean_tokens),
        "repeated 4-grams": lambda r: percent(r.repetition),
    }
    rows = tuple(
        (name, *(of(summary.reasoning) for of in columns.values()))
        for name, summary in summaries.items()
        if summary.reasoning
    )
    return Table("Reasoning", ("run", *columns), rows) if rows else None


def percent(share: float | None) -> str:
    """``61.2 %``; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def interval(share: float, low: float, high: float) -> str:
    """``61.2 % [58.1, 64.2]``"""
    return f"{percent(share)} [{100 * low:.1f}, {100 * high:.1f}]"


COLUMNS: dict[str, tuple[Callable[[Cell], str], str]] = {
    "n": (lambda c: f"{c.n:,}", "Questions."),
    "accuracy [95 %]": (
        lambda c: interval(c.accuracy, c.low, c.high),
        "Questions answered right, and the 95 % interval of that share (Wilson), or of a mean over several answers "
        "(bootstrap over images). The last closed answer block counts; without one, a boxed answer, what follows "
        '"the answer is", or all of an output that is nothing but an answer. The reasoning is not searched for one.',
    ),
    "by image [95 %]": (
        lambda c: f"[{100 * c.boot_low:.1f}, {100 * c.boot_high:.1f}]" if c.images < c.n else "-",
        "The interval of the accuracy by a bootstrap over images: questions on one image are not independent.",
    ),
    "images": (lambda c: f"{c.images:,}" if c.images < c.n else "-", "Different images; fewer than questions."),
    "strict": (lambda c: percent(c.strict), "Right, and in exactly one closed answer block with one offered answer."),
    "unparsed": (lambda c: percent(c.unparsed), "No answer could be read; counts as wrong."),
    "truncated": (lambda c: percent(c.truncated), "Cut off at the limit of length."),
    "chance": (lambda c: percent(c.chance), "Expected from guessing among the options."),
    "constant letter": (
        lambda c: percent(c.majority),
        "Accuracy of always saying the letter that is right most often.",
    ),
    "option lookup": (
        lambda c: percent(c.option_prior),
        "Accuracy of choosing, without the image, the option that was right most often in the training data.",
    ),
    "blank image": (
        lambda c: percent(c.blank),
        "Accuracy with a grey image in place of the right one. Near the accuracy, the image is hardly used.",
    ),
    "another image": (lambda c: percent(c.wrong_image), "Accuracy with the image of another question."),
    "other order": (lambda c: percent(c.shuffled), "Accuracy with the options in another order."),
    "changed: blank": (lambda c: percent(c.blank_changed), "Answers that are not the same with the grey image."),
    "changed: another": (lambda c: percent(c.wrong_image_changed), "Answers that are not the same with another image."),
    "changed: order": (
        lambda c: percent(c.order_changed),
        "Answers that are not the same in another order of options.",
    ),
    "F1, open": (lambda c: percent(c.f1), "Overlap of words with the right answer, mean over open questions."),
    "majority vote": (lambda c: percent(c.majority_vote), "Accuracy of the most frequent of k answers."),
    "pass@k": (lambda c: percent(c.pass_at_k), "Questions of which at least one of k answers is right."),
    "k": (lambda c: f"{c.k}" if c.k > 1 else "-", "Answers drawn for each question."),
}


def glossary(summaries: Mapping[str, Summary]) -> Table:
    """What the columns mean that `overall_table` has."""
    rows = tuple((head, COLUMNS[head][1]) for head in overall_table(summaries).head[1:])
    return Table("What the columns mean", ("column", "meaning"), rows)


def _cells(title: str, labels: Sequence[str], cells: Mapping[tuple[str, ...], Cell]) -> Table:
    """Columns that no cell fills are left out."""
    columns = {head: [of(cell) for cell in cells.values()] for head, (of, _) in COLUMNS.items()}
    columns = {head: values for head, values in columns.items() if set(values) != {"-"}}
    rows = tuple((*names, *figures) for names, figures in zip(cells, zip(*columns.values(), strict=True), strict=True))
    return Table(title, (*labels, *columns), rows, len(labels))


def _trained_on(run: Run) -> str:
    if run.trained_on is None:
        return "nothing (base)" if run.settings else "unknown"
    about = run.trained_on
    parts = [_few(about.modalities, "modalities"), _few(about.tasks, "question types")]
    return "; ".join(filter(None, parts)) or _few(about.datasets, "datasets") or "unnamed data"


def _few(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{len(names)} {what}"


def _prompt(prompt: str) -> str:
    """The name of a preset, or the first words of a text."""
    if "{Question}" not in prompt:
        return prompt or "-"
    words = " ".join(prompt.replace("{Question}", " ").split())
    return f"own text: {words[:PROMPT]}{'…' if len(words) > PROMPT else ''}" if words else "the question alone"


def _finding(serious: bool, text: str, details: Mapping[str, str | None]) -> Finding | None:
    concerned = tuple(f"{name}: {detail}" if detail else name for name, detail in details.items() if detail is not None)
    return Finding(serious, text, concerned) if concerned else None


def _seen(summary: Summary) -> str | None:
    cells = summary.groups.get("image", {})
    seen, rest = cells.get("seen in training"), cells.get("not seen")
    if seen is None:
        return None
    other = f"; {percent(rest.accuracy)} on the {rest.n:,} others" if rest else ""
    return f"{seen.n:,} of {summary.overall.n:,} questions, {percent(seen.accuracy)} right{other}"


def _rate(share: float, what: str) -> str | None:
    return f"{percent(share)} {what}" if share > MARGIN else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
