"""Completions -> rewards.

A reward is a subclass of ``Reward``, reached by ``class_path``; this is a whole one::

    class ShortReward(Reward):
        name = "short_reward"

        def __call__(self, completions, records):
            return [1.0 if len(text) < 400 else 0.0 for text in completions]

``MedR1*`` and ``MedVLMR1*`` score as those projects do, faults included, for runs that reproduce theirs.
"""

from __future__ import annotations

import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set, Sized
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from medgrpo.answers import verdict
from medgrpo.types import Record, UserError

MAX_QUOTED = 80
"""Characters of a completion that an error shows."""

MAX_REASON = 400
"""Characters of what a reward raised or returned."""


class RewardError(UserError):
    """A reward that raised, or that returned something else than one finite number per completion."""


class Reward(ABC):
    """Scores completions, each with the record that it answers."""

    name: str
    """Unique in a run; the metrics are ``rewards/NAME/mean`` and ``rewards/NAME/std``."""

    @abstractmethod
    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        """One finite number per completion.

        Args:
            completions: [N] decoded texts.
            records: [N] the record of each completion.
        """


class AccuracyReward(Reward):
    """1 when the answer that the strict rule of ``answers.extract`` reads is right, 0 when it is wrong or unparsed.

    Two answer blocks are unparsed: a policy that hedges is paid nothing.
    """

    name = "accuracy_reward"

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        return [float(verdict(r, c) == "right") for c, r in zip(completions, records, strict=True)]


# A run of text without any think or answer tag.
_PLAIN = r"(?:(?!</?(?i:think|answer)>).)*"
_THINK = rf"<think>{_PLAIN}</think>"
_ANSWER = rf"<answer>(?P<answer>{_PLAIN})</answer>"


class FormatReward(Reward):
    """1 when the completion is exactly the blocks asked for, 0 otherwise.

    ``think``: one think block, then one answer block; ``think_after``: the reverse; ``nothink``: one answer block.
    Tags in lower case, as the prompts ask; nothing but white space around and between; the answer is not empty.
    """

    name = "format_reward"

    def __init__(self, style: Literal["think", "nothink", "think_after"]) -> None:
        patterns = {
            "think": rf"\s*{_THINK}\s*{_ANSWER}\s*",
            "nothink": rf"\s*{_ANSWER}\s*",
            "think_after": rf"\s*{_ANSWER}\s*{_THINK}\s*",
        }
        if style not in patterns:
            raise ValueError(f"style: expected one of {', '.join(patterns)}; got {style!r}")
        self.pattern = re.compile(patterns[style], re.DOTALL)

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        matches = [self.pattern.fullmatch(text) for text in completions]
        return [float(match is not None and match["answer"].strip() != "") for match in matches]


class MedR1Accuracy(Reward):
    """Med-R1: the first one-line answer block, or the whole completion without one, equals the letter exactly.

    Med-R1 first tries ``math_verify`` on the whole completion; on letters that never succeeds, so it is left out.
    """

    name = "med_r1_accuracy_reward"

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        blocks = [re.search(r"<answer>(.*?)</answer>", text) for text in completions]
        said = [block[1] if block else text for block, text in zip(blocks, completions, strict=True)]
        return [float(text.strip() == record.answer) for text, record in zip(said, records, strict=True)]


class MedR1Format(Reward):
    """Med-R1 and, with ``style="think"``, MedVLM-R1: lazy full match that lets further blocks and empty ones pass."""

    name = "med_r1_format_reward"

    def __init__(self, style: Literal["think", "nothink"]) -> None:
        patterns = {"think": r"<think>.*?</think>\s*<answer>.*?</answer>", "nothink": r"\s*<answer>.*?</answer>"}
        if style not in patterns:
            raise ValueError(f"style: expected one of {', '.join(patterns)}; got {style!r}")
        self.pattern = re.compile(patterns[style], re.DOTALL)

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        return [float(self.pattern.fullmatch(text) is not None) for text in completions]


class MedVLMR1Accuracy(Reward):
    """MedVLM-R1: the first answer block holds exactly one character A to J and it is the gold letter.

    1 when nothing else is in the block, 0.5 when other text is, which also pays ``CT`` for C.
    """

    name = "medvlm_r1_accuracy_reward"

    def __call__(self, completions: list[str], records: list[Record]) -> list[float]:
        return [self._score(text, record.answer) for text, record in zip(completions, records, strict=True)]

    def _score(self, completion: str, gold: str) -> float:
        block = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL | re.IGNORECASE)
        said = "".join(block[1].upper().split()) if block else ""
        if re.findall(r"[A-J]", said) != ["".join(gold.upper().split())]:
            return 0.0
        return 1.0 if len(said) == 1 else 0.5


def weighted_sum(rewards: Tensor, weights: Sequence[float]) -> Tensor:
    """Combines the rewards of each completion.

    Args:
        rewards: [N, R] float32.
        weights: [R], the option ``reward_weights``.

    Returns:
        [N] float32.

    Raises:
        ValueError: There is not one weight per reward.
    """
    if len(weights) != rewards.shape[1]:
        raise ValueError(f"reward_weights: expected {rewards.shape[1]}, one per reward; got {len(weights)}")
    return (rewards * torch.tensor(weights, dtype=torch.float32, device=rewards.device)).sum(dim=1)


def score_completions(
    rewards: list[Reward], weights: list[float] | None, completions: list[str], records: list[Record]
) -> tuple[Tensor, Tensor]:
    """Scores completions with every reward.

    Args:
        rewards: R rewards.
        weights: [R], the option ``reward_weights``; None counts each reward once.
        completions: [N] decoded texts.
        records: [N] the record of each completion.

    Returns:
        The weighted sum [N] and its parts [N, R] in the order of ``rewards``, float32 on the CPU, all finite.

    Raises:
        ValueError: The weights are not one per reward.
        RewardError: A reward raises, returns a wrong number of values or one that is no finite number, or the weights
            make such a sum; it names the reward and the sample.
    """
    parts = torch.empty(len(completions), len(rewards), dtype=torch.float32)
    for column, reward in enumerate(rewards):
        parts[:, column] = torch.tensor(_scores(reward, completions, records), dtype=torch.float32)
    total = weighted_sum(parts, [1.0] * len(rewards) if weights is None else weights)
    if not total.isfinite().all():
        row = int((~total.isfinite()).nonzero()[0])
        raise RewardError(
            f"reward_weights: expected finite sums, got {total[row].item()} from the weights {weights} and the rewards "
            f"{parts[row].tolist()} of {_sample(completions[row], records[row])}"
        )
    return total, parts


def failed_rank(totals: Tensor, world_size: int) -> int | None:
    """The first rank that has no rewards to show, and so has put NaN in their place.

    Args:
        totals: [W * N] weighted sums of all ranks, one rank after the other; those of `score_completions` are finite.
        world_size: W.
    """
    failed = totals.view(world_size, -1).isnan().any(1).nonzero()
    return int(failed[0]) if len(failed) else None


def _scores(reward: Reward, completions: list[str], records: list[Record]) -> list[float]:
    who = f"reward {reward.name} ({type(reward).__module__}.{type(reward).__qualname__})"
    try:
        values = reward(list(completions), list(records))  # its own lists: what it does to them stays with it
        if isinstance(values, Tensor):
            values = values.tolist()
        elif isinstance(values, Sized) and not isinstance(values, str | bytes | Set | Mapping):
            values = list(values)
    except (Exception, SystemExit) as error:  # whatever a reward of a user's own may raise
        raise RewardError(f"{who}: {_blame(reward, completions, records, error)}") from error
    if not isinstance(values, list) or len(values) != len(completions):
        got = len(values) if isinstance(values, list) else _cut(repr(values))
        raise RewardError(
            f"{who}: expected a list of {len(completions)} values, one per completion, got {got}; the first completion "
            f"is {_sample(completions[0], records[0])}"
        )
    for value, text, record in zip(values, completions, records, strict=True):
        if not isinstance(value, Real) or not abs(value) <= torch.finfo(torch.float32).max:
            got = "an integer beyond float32" if isinstance(value, int) else _cut(repr(value))
            raise RewardError(f"{who}: expected finite numbers, got {got} for {_sample(text, record)}")
    return list(values)


def _blame(reward: Reward, completions: list[str], records: list[Record], error: BaseException) -> str:
    """What a reward raised, and the first completion that it raises on alone."""
    for text, record in zip(completions, records, strict=True):
        try:
            reward([text], [record])
        except (Exception, SystemExit) as alone:  # as in `_scores`
            return f"{_told(alone)}, for {_sample(text, record)}"
    return (
        f"{_told(error)}, for {len(completions)} completions together, for none alone; the first is "
        f"{_sample(completions[0], records[0])}"
    )


def _told(error: BaseException) -> str:
    """Type and message on one line, also of an error that cannot be printed."""
    return _cut(" ".join(traceback.format_exception_only(error)[-1].split()))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + " ..."


def _sample(completion: str, record: Record) -> str:
    shown = repr(completion) if len(completion) <= MAX_QUOTED else repr(completion[:MAX_QUOTED]) + " ..."
    return f"record {record.id}, completion {shown}"
