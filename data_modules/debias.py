"""Multiple-choice records rewritten so that the options say less about the answer when nobody looks at the image."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Literal

from data_modules.fields import with_options
from data_modules.labels import modality_of, task_of
from data_modules.options import REFERS, option_key
from data_modules.split import draw_order
from medgrpo.types import LETTERS, Record

Weights = Literal["frequency", "uniform"]

_TECHNIQUE = re.compile(
    r"modalit|techni|technolog|procedure|equipment|device|scanner"
    r"|(by|in) what (means|manner|way)|(imaging|diagnostic) (method|process|test|exam|tool|approach)"
    r"|(type|kind|form) of (\w+ )?(imaging|image|scan|photograph|picture)\b|(obtain|acquire|produce|take) th(is|e) "
)
_PLACE = re.compile(
    r"\borgans?\b|anatom|\bbody\b|\bbones?\b|\bjoints?\b|\bregion|\bstructure|\b(which|what) part|\btissue"
)
_MIXED_CASE = re.compile(r"[a-z]{1,3}[A-Z]|[α-ω]")
_NORMAL = re.compile(r"\b(normal|healthy)\b|^no (\w+ )*(abnormalit|finding|lesion|disease|patholog)")
_ABNORMAL = re.compile(r"^(an )?abnormalit(y|ies)( (is |are )?(present|detected|visible))?$|^abnormal (\w+ )*\w+$")
_NEGATIVE = re.compile(r"\bnegative\b")
_EMPTY_WORDS = frozenset({"a", "an", "and", "in", "is", "of", "the", "with", "positive", "present"})
"""Words that do not tell answers apart: ``COVID-19 positive`` says no more than ``COVID-19 pneumonia``."""


@dataclass(frozen=True)
class Report:
    """What `debias` did, in records."""

    redrawn: int = 0
    """Distractors drawn anew."""
    small_pool: int = 0
    """Not redrawn, since too few other right answers fit: distractors kept, or left out with ``drop_small_pool``."""
    fixed: int = 0
    """Options that speak of each other, such as "all of the above": neither redrawn nor reordered."""
    balanced_away: int = 0
    """Yes-or-no items left out."""
    restyled: int = 0
    """Case or final period of some published option changed."""


@dataclass(frozen=True)
class Debiased:
    """The rewritten records, in the order of the given ones, and what was done."""

    records: list[Record]
    report: Report


def debias(
    records: Sequence[Record],
    *,
    redraw: bool = True,
    normalize_style: bool = True,
    balance_binary: bool = True,
    balance_letters: bool = True,
    shuffle: bool = True,
    weights: Weights = "frequency",
    drop_small_pool: bool = False,
    seed: int,
) -> Debiased:
    """Rewrite the options of multiple-choice records; others pass unchanged.

    Published items can be answered from the options alone: the distractors are never right anywhere, the right one is
    written differently, and "no" is the answer to nearly all yes-or-no questions. The steps, in this order:

    Args:
        normalize_style: every option begins with a capital and ends without a period. Names that begin with small and
            capital letters or a Greek letter (``pH``, ``mRNA``, ``β-blocker``) stay.
        redraw: distractors of items with three or more options are drawn from the right answers of such items of the
            same modality and task; where too few fit, of the same task in any modality of ``records``. Left out are
            answers that are right together with the right one for any image, what may be another name for it, and what
            only says that something else is absent (``COVID-19 negative``). An unknown task is guessed (`guess_task`).
        weights: draw distractors in proportion to how often they are right, so that the frequency of an answer says
            nothing, or all alike.
        drop_small_pool: leave out items that ``redraw`` could not do, instead of keeping their distractors.
        balance_binary: leave out yes-or-no items at random until both answers are equally frequent in each modality
            and task; none is left of those where only one answer occurs.
        shuffle: order of the options at random, by the seed and the record's id alone.
        balance_letters: right letters as equally frequent as can be, per number of options.
        seed: the same seed and records, in any order, give the same records.

    An ``explanation`` in the metadata that names a letter is not rewritten. Redrawing suits labels that recur, not
    examination questions with distractors of their own.
    """
    items = [_restyle(record) if normalize_style else record for record in records]
    restyled = sum(new is not old for new, old in zip(items, records, strict=True))
    fixed = [any(REFERS.search(option) for option in record.options) for record in items]
    redrawn, small = 0, [False] * len(items)
    if redraw:
        pools = _pools([item for item, stays in zip(items, fixed, strict=True) if not stays], weights)
        for i, item in enumerate(items):
            if len(item.options) > 2 and not fixed[i]:
                new = _redraw(item, pools, Random(f"{seed}/{item.id}/redraw"))
                small[i] = new is None
                redrawn += new is not None
                items[i] = new or item
    away = _one_sided(items, seed) if balance_binary else set()
    kept = [i for i in range(len(items)) if i not in away and not (small[i] and drop_small_pool)]
    places = _even_letters([items[i] for i in kept], [fixed[i] for i in kept], seed) if balance_letters else {}
    arranged = []
    for rank, i in enumerate(kept):
        rng = Random(f"{seed}/{items[i].id}/order") if shuffle and not fixed[i] else None
        arranged.append(_arrange(items[i], rng, places.get(rank)))
    return Debiased(arranged, Report(redrawn, sum(small), sum(fixed), len(away), restyled))


def guess_task(question: str) -> str:
    """Task of a question by its words: imaging technique, anatomy, else finding, under OmniMedVQA's names.

    A guess that is wrong for some questions; good enough to draw like answers from. Lesion grading and other attributes
    count as findings.
    """
    words = question.lower()
    if _TECHNIQUE.search(words):
        return "Modality Recognition"
    return "Anatomy Identification" if _PLACE.search(words) else "Disease Diagnosis"


def normalized(option: str) -> str:
    """The option with a capital first letter and without final periods; see `debias` for what stays."""
    text = re.sub(r"[\s.]+$", "", option.strip()) or option
    first = text[:1].upper()
    return text if len(first) != 1 or _MIXED_CASE.match(text) else first + text[1:]


def _restyle(record: Record) -> Record:
    options = tuple(normalized(option) for option in record.options)
    return record if options == record.options else replace(record, options=options)


def _task(record: Record) -> str:
    return task_of(record.task) or record.task or guess_task(record.question)


def _gold(record: Record) -> str:
    return record.options[record.letters.index(record.answer)]


@dataclass(frozen=True)
class _Meaning:
    """What of an answer is compared, to find other names for the same thing."""

    words: frozenset[str]
    modality: str
    normal: bool
    abnormal: bool
    negative: bool

    def may_be(self, other: _Meaning) -> bool:
        """True when both may be right at once: one says all that the other says, or they name the same thing."""
        return (
            self.words <= other.words
            or other.words <= self.words
            or (self.modality != "" and self.modality == other.modality)
            or (self.normal and other.normal)
            or (self.abnormal and not other.normal)
            or (other.abnormal and not self.normal)
        )


def _meaning(key: str) -> _Meaning:
    said = (w.removesuffix("s") if len(w) > 3 else w for w in re.findall(r"[^\W_]+", key))
    words = frozenset(said) - _EMPTY_WORDS or frozenset({key})
    patterns = (_NORMAL, _ABNORMAL, _NEGATIVE)
    return _Meaning(words, modality_of(key), *(bool(pattern.search(key)) for pattern in patterns))


@dataclass(frozen=True)
class _Pool:
    """Right answers to draw from, in the order of their keys."""

    keys: list[str]
    weights: list[int]
    cumulative: list[int]

    def draw(self, num: int, fits: Callable[[str, list[str]], bool], rng: Random) -> list[str] | None:
        """``num`` keys by weight, each of which fits those before it; None when there are not so many."""
        drawn: list[str] = []
        for _ in range(8 * num):  # nearly always enough, and does not look at all keys of a large pool
            key = rng.choices(self.keys, cum_weights=self.cumulative)[0]
            if fits(key, drawn):
                drawn.append(key)
            if len(drawn) == num:
                return drawn
        while len(drawn) < num:
            left = {key: weight for key, weight in zip(self.keys, self.weights, strict=True) if fits(key, drawn)}
            if not left:
                return None
            drawn += rng.choices(list(left), weights=list(left.values()))
        return drawn


@dataclass(frozen=True)
class _Pools:
    by_task: Mapping[tuple[str, str], _Pool]
    """(modality, task) -> right answers; modality ``*`` is all of them."""
    texts: Mapping[str, str]
    """Key of an answer -> its most frequent spelling."""
    meanings: Mapping[str, _Meaning]
    together: Mapping[str, set[str]]
    """Key of an answer -> keys of all that are right for an image for which it is right, under the same task."""


def _pools(records: Sequence[Record], weights: Weights) -> _Pools:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    right: dict[tuple[str, str], set[str]] = defaultdict(set)
    together: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if not record.options:
            continue
        task, gold = _task(record), _gold(record)
        key = option_key(gold)
        for image in record.images:
            right[image, task].add(key)
        if len(record.options) > 2:
            for modality in (record.modality, "*"):
                counts[modality, task][key] += 1
            spellings[key][gold] += 1
    for keys in right.values():
        for key in keys:
            together[key] |= keys
    pools = {}
    for name, count in counts.items():
        keys = sorted(count)
        chances = [count[key] if weights == "frequency" else 1 for key in keys]
        pools[name] = _Pool(keys, chances, list(accumulate(chances)))
    texts = {key: min(found, key=lambda text: (-found[text], text)) for key, found in spellings.items()}
    return _Pools(pools, texts, {key: _meaning(key) for key in texts}, together)


def _redraw(record: Record, pools: _Pools, rng: Random) -> Record | None:
    """The record with other distractors, its gold in place; None when no pool has enough."""
    task, gold = _task(record), option_key(_gold(record))
    right = {gold} | pools.together.get(gold, set())

    def fits(key: str, drawn: list[str]) -> bool:
        meaning = pools.meanings[key]
        named = record.modality != "" and meaning.modality == record.modality
        return (
            key not in right
            and not named
            and not meaning.negative
            and not any(meaning.may_be(pools.meanings[k]) for k in (gold, *drawn))
        )

    for modality in (record.modality, "*"):
        keys = pools.by_task[modality, task].draw(len(record.options) - 1, fits, rng)
        if keys is not None:
            texts = iter(pools.texts[key] for key in keys)
            options = (_gold(record) if letter == record.answer else next(texts) for letter in record.letters)
            return replace(record, options=tuple(options))
    return None


def _one_sided(records: Sequence[Record], seed: int) -> set[int]:
    """Yes-or-no items to leave out, so that both answers are equally frequent per modality and task."""
    sides: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: {"yes": [], "no": []})
    for i in draw_order(records, seed):
        firsts = [re.split(r"\W", option_key(option), maxsplit=1)[0] for option in records[i].options]
        if sorted(firsts) == ["no", "yes"]:
            sides[records[i].modality, _task(records[i])][firsts[LETTERS.index(records[i].answer)]].append(i)
    fewest = {name: min(map(len, found.values())) for name, found in sides.items()}
    return {i for name, found in sides.items() for items in found.values() for i in items[fewest[name] :]}


def _even_letters(records: Sequence[Record], fixed: Sequence[bool], seed: int) -> dict[int, int]:
    """Where among the options the gold of each record goes: the rarest place so far, for each number of options."""
    sizes = sorted({len(record.options) for record in records} - {0})
    counts = {size: [0] * size for size in sizes}
    turn = {size: Random(f"{seed}/{size}/letters").sample(range(size), size) for size in sizes}
    for record, stays in zip(records, fixed, strict=True):
        if record.options and stays:
            counts[len(record.options)][LETTERS.index(record.answer)] += 1
    places = {}
    for i in draw_order(records, seed):
        size = len(records[i].options)
        if size and not fixed[i]:
            count = counts[size]
            places[i] = min(turn[size], key=count.__getitem__)
            count[places[i]] += 1
    return places


def _arrange(record: Record, rng: Random | None, place: int | None) -> Record:
    """The record with its options in a random order (or as they are) and its gold at a place (or where it falls)."""
    if not record.options:
        return record
    gold = LETTERS.index(record.answer)
    others = [option for i, option in enumerate(record.options) if i != gold]
    chosen = gold
    if rng is not None:
        rng.shuffle(others)
        chosen = rng.randrange(len(record.options))
    if place is not None:
        chosen = place
    options = (*others[:chosen], record.options[gold], *others[chosen:])
    return replace(record, options=options, answer=LETTERS[chosen], problem=with_options(record.question, options))
