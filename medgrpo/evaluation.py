"""Accuracy with what belongs beside it: intervals, blind baselines, groups, unparsed and truncated answers.

Where one accuracy is named, it is by the lenient rule (``answers.py``); that by the strict rule stands beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from medgrpo import blind
from medgrpo.answers import extract, f1, is_correct
from medgrpo.open_answers import normalize, yes_no
from medgrpo.predictions import VIEWS, Prediction
from medgrpo.reasoning import Reasoning, check
from medgrpo.statistics import bootstrap, majority, paired_bootstrap, pass_at_k, wilson
from medgrpo.types import DataError, Record, View

UNKNOWN = "unknown"
"""Name of the group of questions that do not name theirs."""

NAMED = ("modality", "task", "dataset")
"""Kinds of groups that records name themselves: these have a macro average and a worst group."""

LOGGED = {
    "accuracy": "accuracy",
    "low": "accuracy_low",
    "high": "accuracy_high",
    "strict": "strict_accuracy",
    "blank": "blank_accuracy",
    "wrong_image": "wrong_image_accuracy",
    "shuffled": "shuffled_accuracy",
    **{name: name for name in ("n", "unparsed", "truncated", "chance", "majority", "option_prior")},
    **{name: name for name in ("f1", "majority_vote", "pass_at_k")},
}
"""Field of a `Cell` -> name that it is logged under."""


@dataclass(frozen=True)
class Judged:
    """What was read from the samples of one prediction; each field is [k]."""

    answers: tuple[str | None, ...]
    """Letter, or text where there are no options, by the lenient rule; None when unparsed."""
    correct: tuple[bool, ...]
    """By the lenient rule."""
    strict_correct: tuple[bool, ...]
    unparsed: tuple[bool, ...]
    """By the lenient rule."""
    f1: tuple[float, ...]
    """0..1, by the lenient rule."""


@dataclass(frozen=True)
class Cell:
    """Accuracy on some questions, and what belongs beside it.

    Shares are 0..1, and None where a figure does not apply or is not known. With several samples per question, a rate
    is the mean over questions of the mean over samples.
    """

    n: int
    """Questions, view ``image``."""
    images: int
    """Different images (or sets of images) among them."""
    accuracy: float
    """By the lenient rule."""
    low: float
    """95 % interval of ``accuracy``: Wilson's, as a share of n independent questions; of a mean over several samples
    that by bootstrap."""
    high: float
    boot_low: float
    """95 % bootstrap interval of ``accuracy`` over images: questions about one image are not independent."""
    boot_high: float
    strict: float
    """Accuracy by the strict rule."""
    unparsed: float
    """By the lenient rule."""
    truncated: float
    chance: float | None
    """Expected from guessing; this and the next two are of the questions with options."""
    majority: float | None
    """Of the best constant letter."""
    option_prior: float | None
    """Of the lookup of option texts learned on the training data."""
    blank: float | None
    """Accuracy with a grey image; this and the next two are of the questions asked under that view too."""
    wrong_image: float | None
    """Accuracy with another question's image."""
    shuffled: float | None
    """Accuracy with the options in another order."""
    blank_gain_low: float | None
    """95 % bootstrap interval over images of the accuracy with the image minus that with a grey one, on the questions
    asked both ways: what looking adds."""
    blank_gain_high: float | None
    blank_changed: float | None
    """Share of questions whose answer (first sample) is not the one given with the image; no answer counts as one."""
    wrong_image_changed: float | None
    order_changed: float | None
    """The same for ``shuffled``, by the text of the option: what a policy that answers by position changes."""
    f1: float | None
    """Mean F1 of open questions."""
    majority_vote: float | None
    """Accuracy of the most frequent answer; this and the next are None for single samples."""
    pass_at_k: float | None
    """Share of questions of which one of k samples is right (Chen et al. 2021, eq. 1)."""
    k: int
    """Samples per question; the fewest, where the number differs."""


@dataclass(frozen=True)
class Summary:
    """One run: everything, and by group."""

    overall: Cell
    groups: dict[str, dict[str, Cell]]
    """Kind -> name -> cell, names sorted: ``modality``, ``task``, ``dataset``, ``options`` (their number, ``closed`` or
    ``open``) and ``image`` (``seen in training`` or ``not seen``). A kind that no question names is left out."""
    macro: dict[str, float]
    """Kind -> unweighted mean of the accuracy of its groups; kinds ``modality``, ``task`` and ``dataset``."""
    worst: dict[str, str]
    """Kind -> name of the group with the lowest accuracy, of equals the first; kinds as in ``macro``."""
    reasoning: Reasoning | None
    """None when no completion reasons."""


def judge(prediction: Prediction) -> Judged:
    """Reads and grades every sample of a prediction."""
    record = prediction.record
    lenient, strict = (
        [extract(text, record.options, rule, record.closed) for text in prediction.completions]
        for rule in ("lenient", "strict")
    )
    return Judged(
        answers=tuple(answer.taken for answer in lenient),
        correct=tuple(is_correct(answer, record) for answer in lenient),
        strict_correct=tuple(is_correct(answer, record) for answer in strict),
        unparsed=tuple(answer.status == "unparsed" for answer in lenient),
        f1=tuple(f1(answer, record) for answer in lenient),
    )


def said(record: Record, answer: str | None) -> str | None:
    """What two answers to one question are compared by, whatever the order of its options: the text of the option, yes
    or no, or an open answer without case, punctuation and articles; None when unparsed."""
    if answer is None:
        return None
    if record.options:
        return record.options[record.letters.index(answer)]
    return (record.closed and yes_no(answer)) or normalize(answer)


def group_names(prediction: Prediction) -> dict[str, str]:
    """Kind -> name of the group that a question is counted in, empty when it does not say; kinds as in `Summary`."""
    record = prediction.record
    seen = {True: "seen in training", False: "not seen", None: ""}[prediction.seen]
    size = str(len(record.options)) if record.options else record.answer_type
    return {kind: getattr(record, kind) for kind in NAMED} | {"options": size, "image": seen}


def summarize(predictions: Iterable[Prediction]) -> Summary:
    """The figures of one run, all its views together; the order of the predictions does not matter.

    Raises:
        DataError: no prediction under the view ``image``, or two of one question under one view.
    """
    questions = _questions(predictions)
    members: dict[str, dict[str, list[_Question]]] = defaultdict(lambda: defaultdict(list))
    for question in questions:
        for kind, name in group_names(question.prediction).items():
            members[kind][name or UNKNOWN].append(question)
    groups = {
        kind: {name: _cell(named[name]) for name in sorted(named, key=_rank)}
        for kind, named in members.items()
        if set(named) != {UNKNOWN}
    }
    accuracy = {kind: {name: cell.accuracy for name, cell in groups[kind].items()} for kind in NAMED if kind in groups}
    return Summary(
        overall=_cell(questions),
        groups=groups,
        macro={kind: _mean(list(shares.values())) for kind, shares in accuracy.items()},
        worst={kind: min(shares, key=shares.__getitem__) for kind, shares in accuracy.items()},
        reasoning=check([question.prediction for question in questions]),
    )


def flat(summary: Summary) -> dict[str, float]:
    """Figures by name, as they are logged; those that are None are left out.

    The names are those of `LOGGED`, ``macro/KIND``, ``worst/KIND`` (an accuracy, too) and ``accuracy/KIND/NAME``, where
    KIND is ``modality``, ``task`` or ``dataset``.
    """
    values = {name: getattr(summary.overall, field) for field, name in LOGGED.items()}
    values |= {f"macro/{kind}": share for kind, share in summary.macro.items()}
    values |= {f"worst/{kind}": summary.groups[kind][name].accuracy for kind, name in summary.worst.items()}
    for kind in summary.macro:
        values |= {f"accuracy/{kind}/{name}": cell.accuracy for name, cell in summary.groups[kind].items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def by_id(predictions: Iterable[Prediction], view: View = "image") -> dict[str, Prediction]:
    """The predictions under one view, by the id of the question.

    Raises:
        DataError: a question that has two.
    """
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.view == view:
            if prediction.record.id in found:
                raise DataError(
                    f"expected one prediction per question and view, got two of {prediction.record.id!r} under "
                    f"{view!r}: name the predictions of one run alone"
                )
            found[prediction.record.id] = prediction
    return found


@dataclass(frozen=True)
class _Question:
    """One question under the view ``image``, and what was said to it under the others."""

    prediction: Prediction
    judged: Judged
    others: dict[View, tuple[float, bool]]
    """View -> accuracy, and whether the first sample's answer differs from the one given with the image."""


def _questions(predictions: Iterable[Prediction]) -> list[_Question]:
    """Sorted by id, so that no figure depends on the order of the predictions."""
    predictions = list(predictions)
    views = {view: by_id(predictions, view) for view in VIEWS}
    if not views["image"]:
        others = ", ".join(view for view in VIEWS if views[view])
        raise DataError(
            f"expected predictions under the view 'image', the ones that accuracy is counted on; got "
            f"{f'only {others}' if others else 'none at all'}: finish the run with `medgrpo test`"
        )
    return [
        _question(views["image"][id_], [views[view][id_] for view in VIEWS[1:] if id_ in views[view]])
        for id_ in sorted(views["image"])
    ]


def _question(prediction: Prediction, others: Sequence[Prediction]) -> _Question:
    judged = judge(prediction)
    answer = said(prediction.record, judged.answers[0])
    seen: dict[View, tuple[float, bool]] = {}
    for other in others:
        again = judge(other)
        seen[other.view] = _mean(again.correct), said(other.record, again.answers[0]) != answer
    return _Question(prediction, judged, seen)


def _cell(questions: Sequence[_Question]) -> Cell:
    def mean(of: Callable[[_Question], Sequence[float]]) -> float:
        return _mean([_mean(of(question)) for question in questions])

    records = [question.prediction.record for question in questions]
    images = [question.prediction.image_key for question in questions]
    shares = [_mean(question.judged.correct) for question in questions]
    boot_low, boot_high = bootstrap(shares, images)
    prior = [
        question.prediction.option_prior == question.prediction.record.answer
        for question in questions
        if question.prediction.option_prior is not None
    ]
    both = [
        (question.others["blank"][0], share, image)
        for question, share, image in zip(questions, shares, images, strict=True)
        if "blank" in question.others
    ]
    gain_low, gain_high = paired_bootstrap(*zip(*both, strict=True)) if both else (None, None)
    blank, blank_changed = _under("blank", questions)
    wrong_image, wrong_image_changed = _under("wrong_image", questions)
    shuffled, order_changed = _under("shuffled", questions)
    overlap = [_mean(q.judged.f1) for q in questions if q.prediction.record.answer_type == "open"]
    k = min(len(question.judged.correct) for question in questions)
    low, high = wilson(sum(shares), len(questions)) if k == 1 else (boot_low, boot_high)
    return Cell(
        n=len(questions),
        images=len(set(images)),
        accuracy=_mean(shares),
        low=low,
        high=high,
        boot_low=boot_low,
        boot_high=boot_high,
        strict=mean(lambda question: question.judged.strict_correct),
        unparsed=mean(lambda question: question.judged.unparsed),
        truncated=mean(lambda question: question.prediction.truncated),
        chance=_of(blind.chance(records)),
        majority=_of(blind.majority_letter(records)),
        option_prior=_mean(prior) if prior else None,
        blank=blank,
        wrong_image=wrong_image,
        shuffled=shuffled,
        blank_gain_low=gain_low,
        blank_gain_high=gain_high,
        blank_changed=blank_changed,
        wrong_image_changed=wrong_image_changed,
        order_changed=order_changed,
        f1=_mean(overlap) if overlap else None,
        majority_vote=mean(lambda question: [_vote(question)]) if k > 1 else None,
        pass_at_k=mean(lambda question: [_pass(question, k)]) if k > 1 else None,
        k=k,
    )


def _under(view: View, questions: Sequence[_Question]) -> tuple[float | None, float | None]:
    """Accuracy under a view and the share of changed answers, of the questions that have it."""
    pairs = [question.others[view] for question in questions if view in question.others]
    if not pairs:
        return None, None
    return _mean([accuracy for accuracy, _ in pairs]), _mean([changed for _, changed in pairs])


def _vote(question: _Question) -> bool:
    """Whether the most frequent answer is right."""
    answers = [said(question.prediction.record, answer) for answer in question.judged.answers]
    return question.judged.correct[answers.index(majority(answers))]


def _pass(question: _Question, k: int) -> float:
    correct = question.judged.correct
    return pass_at_k(len(correct), sum(correct), k)


def _of(share: blind.Share) -> float | None:
    return share.right / share.n if share.n else None


def _rank(name: str) -> tuple[bool, str]:
    """Sorts numbers of options by size, and what is unknown last."""
    return name == UNKNOWN, name.zfill(2) if name.isdigit() else name


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
