"""Does what a policy reasons lead to what it answers? Agreement, length and repetition of its reasoning.

Words are counted, not judged: nothing here says whether the reasoning is right. Where the words do not settle which
option the reasoning ends on, it counts as having no conclusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medgrpo.answers import extract, is_correct
from medgrpo.predictions import Prediction
from medgrpo.types import LETTERS

GRAM = 4
"""Words of the runs that repetition is counted in."""

# What a conclusion is stated behind. "So" and its like are also said along the way, of other things.
_CUE = re.compile(
    r"\\boxed\{"
    r"|\b(?:answer|choice|option|conclusion|diagnosis)\s+(?:is|was|(?:would|should|must|has\s+to)\s+be)\b"
    r"|\b(?:answer|conclusion|diagnosis)\s*[:=]"
    r"|\b(?:i|we)\s+(?:would\s+|will\s+)?(?:choose|pick|select|go\s+with|conclude)\b"
    r"|\b(?P<weak>so|therefore|thus|hence)\b",
    re.IGNORECASE,
)
# What may stand between it and the option.
_FILLER = re.compile(
    r"[\s:,=*_`\"'“”‘’$({\[]+|\\text(?=\{)"
    r"|(?:the|an?|that|option|choice|letter|answer|most|likely|probably|clearly|definitely|best|correct)\b"
    r"|(?:it|this)(?:\s+is\b|['’]s\b|\s+must\s+be\b|\s+shows\b)",
    re.IGNORECASE,
)
_DENIES = r"(?:not?|never|neither|nor|cannot|unlikely|wrong|incorrect)\b"
_DENIED = re.compile(_DENIES, re.IGNORECASE)
# What may stand behind it: the end of the clause, reasons, a place, praise. "So A is out" and "so A would" say no more.
_BEHIND = re.compile(
    r"[\s)}\]*_`\"'”’$\\]*(?:$|[.,;:!(–—]|-\s"
    r"|(?:because|since|as(?!\s+well)|due|given|based|over|rather|instead|(?:and\s+)?not|of|in|on|at|here)\b"
    r"|(?:is|was|seems|looks|appears|remains)\s+(?:(?:the|most|more|clearly|indeed)\s+)*"
    r"(?:likely|probable|correct|right|best|answer|diagnosis|present|seen|shown|visible|supported|confirmed)\b"
    r"|(?:fits|matches)(?:\s+(?:best|better|well))?(?=\s*(?:$|[.,;!])))",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    rf"\b{_DENIES}|n['’]t\b|\b(?:without|unlike|instead\s+of|less|least|worst|than|against|except"
    r"|exclud\w+|eliminat\w+|absen\w+|lack\w*|fail\w*|contradict\w*|differ\w*|compar\w+|rul\w+\s+(?:\w+\s+)?out)\b",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(
    r"\b(?:if|whether|could|might|may|would(?!\s+say)|suppos\w+|perhaps|possib\w+|consider\w*)\b", re.IGNORECASE
)
# What may take a statement back that was made before.
_TURN = re.compile(
    r"\b(?:but|however|although|wait|actually|hmm+|sorry|correction|scratch|otherwise|reconsider\w*"
    r"|second\s+thoughts?|closer\s+look)\b"
    r"|(?:^|[-.!?,;:–—…])\s*no\b(?=\s*[-.!,;:–—…])",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[\s*_`\"'”’)}\]:,/&]*(?:\b(?:and|or)\b[\s/]*)*", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.,;:!?\n]|\b(?:so|therefore|thus|hence|but|and|because)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
# A bare letter in a statement, in capitals; A and I are also words, and need a mark or a conjunction behind them.
_BARE = re.compile(
    r"([AI])(?=\s*(?:$|[.,;:!?)}\]*_`\"'”’$/&\n]|(?:because|since|as|or|and|is|not|over)\b))|([B-HJ])(?![\w'’-])"
)
_MARKED = re.compile(r"\(([A-J])\)|(?<![\w(])([A-J])\)|\b(?i:option|choice|answer|letter)\s+\(?([A-J])(?!\w)\)?")


@dataclass(frozen=True)
class Reasoning:
    """Reasoning of the completions that reason; shares 0..1, None where nothing is known."""

    n: int
    """Completions with reasoning, of all samples."""
    concluded: float | None
    """Share whose reasoning comes to a conclusion, of questions that offer options; None without such questions."""
    agreement: float | None
    """Share whose conclusion is the answer, of those that have both; None when none has."""
    mean_words: float
    """Words of the reasoning."""
    mean_words_right: float | None
    """The same, of completions with a right answer."""
    mean_words_wrong: float | None
    """The same, of the others, answers that could not be read among them."""
    mean_tokens: float | None
    """Tokens of the whole completion."""
    repetition: float
    """Mean share of the 4-grams of words that occurred before in the same reasoning."""


def check(predictions: Iterable[Prediction]) -> Reasoning | None:
    """Statistics of all completions, under the view ``image``, that have text inside ``<think> </think>``.

    Answers are read and judged by the lenient rule.

    Returns:
        None when no completion reasons.
    """
    words: dict[bool, list[int]] = {True: [], False: []}
    tokens: list[int] = []
    repeated: list[float] = []
    ends: list[str | None] = []
    agrees: list[bool] = []
    for prediction in predictions:
        if prediction.view != "image":
            continue
        record = prediction.record
        for index, completion in enumerate(prediction.completions):
            answer = extract(completion, record.options, rule="lenient", closed=record.closed)
            if not answer.reasoning.strip():
                continue
            words[is_correct(answer, record)].append(len(answer.reasoning.split()))
            repeated.append(repetition(answer.reasoning))
            if prediction.num_tokens:
                tokens.append(prediction.num_tokens[index])
            if record.options:
                end = conclusion(answer.reasoning, record.options)
                ends.append(end)
                if end and answer.choice:
                    agrees.append(end == answer.choice)
    if not repeated:
        return None
    return Reasoning(
        n=len(repeated),
        concluded=_mean([end is not None for end in ends]),
        agreement=_mean(agrees),
        mean_words=sum(words[True] + words[False]) / len(repeated),
        mean_words_right=_mean(words[True]),
        mean_words_wrong=_mean(words[False]),
        mean_tokens=_mean(tokens),
        repetition=sum(repeated) / len(repeated),
    )


def repetition(text: str) -> float:
    """Share of the 4-grams of words that occurred before in the text; 0.0 when it is shorter than that.

    Words are compared without case and punctuation.
    """
    words = re.findall(r"\w+", text.casefold())
    grams = list(zip(*(words[start:] for start in range(GRAM)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def conclusion(reasoning: str, options: Sequence[str]) -> str | None:
    r"""Letter of the option that the reasoning ends on.

    It is the one that the last statement such as ``the answer is B``, ``so B``, ``therefore, CT`` or ``\boxed{B}``
    names, by the letter or the text of an option. Without such a statement, or where it denies, doubts or names
    several, it is the one that the last sentence behind it names, by the text as whole words or as ``(B)``, ``B)`` or
    ``option B``, if it names exactly one and neither denies nor supposes anything. Where the two disagree there is
    none, nor where the text turns behind the statement (``but``, ``wait``) and does not end on the same option.

    Args:
        reasoning: text without its tags.
        options: texts in letter order; empty for an open question.

    Returns:
        A letter, or None where the above does not settle it, and for open questions.
    """
    if not options:
        return None
    names = _Names.of(reasoning, options)
    text = re.sub(r":\s+", ": ", reasoning)  # "the answer is:", and the option on the next line
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]
    stated: set[str] = set()
    rest, later = "", sentences
    for index, sentence in enumerate(sentences):
        for cue in _CUE.finditer(sentence):
            if statement := _statement(sentence, cue, names):
                stated, end = statement
                rest, later = sentence[end:], sentences[index + 1 :]
    last = names.anywhere(later[-1]) if later else set()
    if stated:
        in_doubt = not last and any(_TURN.search(part) for part in (rest, *later))
    else:
        in_doubt = bool(later) and (later[-1].rstrip().endswith("?") or _HYPOTHESIS.search(later[-1]) is not None)
    settled = {letter for letters in (stated, last) if len(letters) == 1 for letter in letters}
    return settled.pop() if len(settled) == 1 and not in_doubt else None


@dataclass(frozen=True)
class _Names:
    """How the options of a question may be named in a text."""

    offered: frozenset[str]
    """Their letters."""
    letters: dict[str, set[str]]
    """Text of an option, folded, -> letters of the options that have it; only of texts that occur."""
    texts: re.Pattern[str]
    """Matches one of these texts as whole words, the longest first."""

    @staticmethod
    def of(text: str, options: Sequence[str]) -> _Names:
        folded = _folded(text)
        letters: dict[str, set[str]] = {}
        for letter, option in zip(LETTERS, map(_folded, options), strict=False):
            if option and option in folded:  # compiling the pattern is what takes time
                letters.setdefault(option, set()).add(letter)
        longest_first = sorted(letters, key=len, reverse=True)
        spelled = "|".join(r"\s+".join(map(re.escape, option.split())) for option in longest_first) or "(?!)"
        pattern = re.compile(rf"(?<![\w-])(?<!\d\.)(?:{spelled})(?!\w|\.\d)", re.IGNORECASE)
        return _Names(frozenset(LETTERS[: len(options)]), letters, pattern)

    def at(self, text: str, position: int) -> tuple[set[str], int]:
        """Letters of what is named right at a position, and where the name ends; it may also be a bare letter."""
        if found := self.texts.match(text, position):
            return self._spelled(found), found.end()
        if found := _MARKED.match(text, position) or _BARE.match(text, position):
            return self._marked(found), found.end()
        return set(), position

    def anywhere(self, sentence: str) -> set[str]:
        """Letters of all that a sentence names; none if it denies anything."""
        rest = self.texts.sub(lambda found: found[0] if _DENIED.fullmatch(found[0]) else " ", sentence)
        if _NEGATION.search(rest):  # that of an option "No", too: "no mass" may be a reason for yes
            return set()
        spelled = map(self._spelled, self.texts.finditer(sentence))
        return set().union(*spelled, *map(self._marked, _MARKED.finditer(rest)))

    def _spelled(self, found: re.Match[str]) -> set[str]:
        return self.letters.get(_folded(found[0]), set())

    def _marked(self, found: re.Match[str]) -> set[str]:
        return {found[found.lastindex]} & self.offered


def _statement(sentence: str, cue: re.Match[str], names: _Names) -> tuple[set[str], int] | None:
    """Letters named behind a cue, none if they are denied or doubted, and where they end; None when it is not about an
    option."""
    named, end, denied = _head(sentence, cue.end(), names)
    if not named:
        return None
    before = "" if cue["weak"] else _CLAUSE_END.split(sentence[: cue.start()])[-1]
    doubted = denied or sentence.rstrip().endswith("?") or _NEGATION.search(before) or _HYPOTHESIS.search(before)
    while True:
        another, further, denied = _head(sentence, _JOINED.match(sentence, end).end(), names)
        if not another or denied:
            return (set() if doubted or not _BEHIND.match(sentence, end) else named), end
        named, end = named | another, further


def _head(text: str, position: int, names: _Names) -> tuple[set[str], int, bool]:
    """What is named at once behind a position: its letters, its end, and whether it is denied ahead of it."""
    denied = False
    while True:
        named, end = names.at(text, position)
        if named:
            return named, end, denied
        if found := _DENIED.match(text, position):
            denied = True
        elif not (found := _FILLER.match(text, position)):
            return set(), position, denied
        position = found.end()


def _folded(text: str) -> str:
    return " ".join(text.split()).lower().removesuffix(".").rstrip()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
