"""What accuracy is possible without looking at the image: the figures to put beside a model's.

Four baselines, none of which sees an image or a question: chance, the best constant letter, a lookup of option texts
learned on training records, and the option whose style is the odd one out. Only records with options count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medgrpo.types import Record


@dataclass(frozen=True)
class Share:
    """How many of how many, not rounded."""

    right: float
    """Records answered right; a fraction where only an expectation is known, as with chance."""
    n: int
    """Records asked."""

    @property
    def percent(self) -> float | None:
        """100 * right / n; None when nothing was asked."""
        return 100 * self.right / self.n if self.n else None


def option_key(text: str) -> str:
    """What option texts are compared by: without case, surrounding space and final periods."""
    return text.strip().lower().rstrip(".").rstrip()


def chance(records: Iterable[Record]) -> Share:
    """What guessing scores on average: the sum of 1 / number of options."""
    sizes = Counter(len(record.options) for record in records if record.options)
    return Share(sum(count / size for size, count in sorted(sizes.items())), sizes.total())


def majority_letter(records: Iterable[Record]) -> Share:
    """What the best constant letter scores on these very records: shows whether the gold letters are balanced."""
    letters = Counter(record.answer for record in records if record.options)
    return Share(max(letters.values(), default=0), letters.total())


class OptionPrior:
    """A lookup of option texts: how often was this text right when it was offered?

    It shows whether some texts are nearly always right and others are mere distractors. Where it scores high, accuracy
    is no evidence that a model uses the image, or reads the question.

    Args:
        train: records to learn from.
    """

    def __init__(self, train: Iterable[Record]) -> None:
        self.right: Counter[str] = Counter()
        """Times that a text (by ``option_key``) was the right option."""
        self.offered: Counter[str] = Counter()
        """Times that it was an option."""
        for record in train:
            if record.options:
                keys = [option_key(option) for option in record.options]
                self.offered.update(keys)
                self.right[keys[record.letters.index(record.answer)]] += 1

    def pick(self, options: Sequence[str]) -> int:
        """Index of the option with the highest (times right + 1/4) / (times offered + 1), the first of equals.

        The added constants keep a text never seen, 1/4, between those that were mostly right and mostly wrong.
        """
        keys = [option_key(option) for option in options]
        scores = [(self.right[key] + 0.25) / (self.offered[key] + 1) for key in keys]
        return scores.index(max(scores))

    def share(self, records: Iterable[Record]) -> Share:
        """What the lookup scores on these records."""
        hits = [record.letters[self.pick(record.options)] == record.answer for record in records if record.options]
        return Share(sum(hits), len(hits))


def style_cue(options: Sequence[str]) -> int | None:
    """Index of the odd one out in case or final period; None when there is none.

    The first that fires of: exactly one option starts with a lower-case letter, exactly one ends in a period, exactly
    one lacks the final period.
    """
    texts = [option.strip() for option in options]
    dotted = [text.endswith(".") for text in texts]
    for odd in ([text[:1].islower() for text in texts], dotted, [not dot for dot in dotted]):
        if sum(odd) == 1:
            return odd.index(True)
    return None


@dataclass(frozen=True)
class StyleCue:
    """What picking the odd one out scores: shows whether right options are written differently from distractors."""

    n: int
    """Records with options."""
    fires: int
    """Records in which one option is the odd one out."""
    right: int
    """Records in which that option is the right one."""

    @property
    def fired(self) -> Share:
        """Records with an odd one out, of all."""
        return Share(self.fires, self.n)

    @property
    def accuracy(self) -> Share:
        """Records in which the odd one out is right, of those that have one."""
        return Share(self.right, self.fires)


def style(records: Iterable[Record]) -> StyleCue:
    """How often ``style_cue`` fires on these records, and how often it is right."""
    n = fires = right = 0
    for record in records:
        if record.options:
            odd = style_cue(record.options)
            n += 1
            fires += odd is not None
            right += odd is not None and record.letters[odd] == record.answer
    return StyleCue(n, fires, right)
