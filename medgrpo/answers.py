"""Completion text -> reasoning, answer, choice: the one extractor, for the reward and for evaluation.

It abstains where the text does not settle the choice; it never guesses and never takes the nearest string.

Reasoning is what stands inside ``<think> </think>``. Tags are read in any case. Three malformed cases, decided once:
an unclosed ``<think>`` runs to the end; a ``</think>`` without an opening tag ends reasoning that began with the
completion, as when the chat template opens the block; reasoning does not nest, it ends at the first ``</think>``.
Only what stands outside the reasoning, before it or after it, is ever read as an answer, by one of two rules:

``strict``, for rewards: there is one closed ``<answer> </answer>`` block, and no other answer tag.
``lenient``, for answers of models that were not trained on the tags: the last closed block. Where there is no answer
tag at all, the last ``\\boxed{}``; where there is no box either, what follows the last "the answer is" or "Answer:";
without such a phrase, a completion that is nothing but an answer, as ``B.`` is.
A block, box or phrase that was begun and not ended, as when the completion was cut off, is not replaced by another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medgrpo.open_answers import exact_match, labels, normalize, set_f1, token_f1, yes_no
from medgrpo.types import LETTERS, Record

Rule = Literal["strict", "lenient"]

_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"</?answer>", re.IGNORECASE)
# No opening tag inside: of nested or unclosed openings, the innermost is the block.
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
# "C", "(C)", "C.", "C)" or "C:". A bare letter labels no text: "A CT scan" begins with an article.
_LETTER = re.compile(r"\(([a-z])\)|([a-z])[.):]?", re.IGNORECASE)
_LABELLED = re.compile(r"(?:\(([a-z])\)|([a-z])[.):])\s*(\S.*)", re.IGNORECASE | re.DOTALL)

_BOXED = re.compile(r"\\boxed\s*\{")
# Braces, those of a font or text command together with the command; escaped ones are text.
_BRACE = re.compile(
    r"(?P<escaped>\\[{}])|(?P<font>\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|boldsymbol|bm|mbox)\s*\{)|[{}]"
)

# Every pattern of phrases starts at one place or looks back a bounded way: a long completion takes linear time.
_PHRASE = re.compile(
    r"(?:\banswers?|(?<=\bcorrect )(?:option|choice))\b(?:[\s*_]{0,4}(?:(?:to|for) (?:the|this) question[\s*_]{0,4})?"
    r"(?:(?P<says>:|is\b)|(?:isn|are|was|were|can|could|may|might|must|should|would|will)\b)"
    r"|(?<=final answer)(?P<heading>[^\w\n]{0,4})(?=\n))",
    re.IGNORECASE,
)
# What may stand before "answer": the start of a clause, or words that make it the writer's own and only one.
_LEAD = re.compile(
    r"(?:(?:^|[-\n.!?,;:>#*_(\[|]|\b(?:the|my|so|thus|hence|therefore))[\s*_]*"
    r"(?:(?:most|likely|best|correct|right|final)[\s*_]+)*|\b(?:correct|final)[\s*_]+)$",
    re.IGNORECASE,
)
# Earlier words of the same clause that take the phrase back.
_DOUBT = re.compile(
    r"(?:n['’]t|\b(?:not|never|cannot|no|if|whether|unless|doubt\w*|suppos\w+|assum\w+|what|which|why))\b"
    r"(?:(?!\b(?:so|thus|hence|therefore|but)\b)[^.,;:!?\n])*$",
    re.IGNORECASE,
)
_LOOK_BACK = 80
# What a text or phrase says, folded: words before the choice, the letter, a letter that labels a text, what may follow.
_OPENING = re.compile(r"""[\s*_:"'“‘$]*""")
_MARKUP = re.compile(r"\*\*|__|`")
_QUOTED = re.compile(r"""(["'*_$])(.+)\1|[“‘](.+)[”’]|\[(.+)\]|\\boxed\s*\{(.+)\}""")
_END = re.compile(r"\)?\.?$")
_NOUN = re.compile(r"(?:(?:option|choice|letter) )?")
_HEDGE = re.compile(rf"(?:(?:most likely|likely|probably|clearly|therefore|thus) )?{_NOUN.pattern}")
_ARTICLE = re.compile(r"(?:a|an|the) ")
_SAID_LETTER = re.compile(r"\(([a-z])\)|([a-z])(?!\w)[):]?")
_SAID_LABEL = re.compile(r"(?:\(([a-z])\)[.:,–—-]?|([a-z]) ?[.):,(–—-]) ?")
_AFTER = re.compile(
    r"""[)"'”’*_$:]*(?:$|[.!][)"'”’*_$]*(?:$|\s(?!or\b))|(?: ?[,;(–—-] ?| )"""
    r"(?:because|since|as(?! well)|due to|given|based on|which(?! is (?:not|wrong|incorrect))|not|rather than)\b)"
)
_NO_TEXT = re.compile(r"(?:not|either|neither|nor)\b", re.IGNORECASE)
# Where free text ends: with its sentence, but not after the "E." of "E. coli"; or before its reasons.
_END_OF_TEXT = re.compile(r"(?<=[\w)][\w)])[.!?](?=\s|$)|,? (?:because|since)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What one completion says."""

    reasoning: str
    """Text inside the think blocks, joined by newlines; empty without one."""
    text: str | None
    """What was read, stripped, also when it names no choice: content of the answer block, or of the box, or the line
    after the phrase; None without any."""
    choice: str | None
    """Letter of the option named; None when unparsed and for open questions."""
    status: Literal["parsed", "unparsed"]
    reason: str = ""
    """Why unparsed: ``no closed answer block``, ``several answer blocks``, ``stray answer tag``, ``box not closed``,
    ``phrase in doubt``, ``empty``, ``two options``, ``letter not offered`` or ``no option matches``; empty when
    parsed."""

    @property
    def taken(self) -> str | None:
        """The letter, or the text where there are no options; None when unparsed."""
        return None if self.status == "unparsed" else self.choice or self.text


def extract(completion: str, options: Sequence[str], rule: Rule = "strict", closed: bool = False) -> Answer:
    """Reads the answer of a completion.

    In a block or box a choice is named by its letter (``C``, ``c``, ``(C)``, ``C.``, ``C)``, ``C:``), by the letter and
    the text of that same option (``C) CT``, ``C. CT``, ``C: CT``, ``(C) CT``), or by the exact text of one option.
    Texts are compared up to case, white space and a final period. The readings that hold must agree on one option.
    Where there is none, the same is read without bold type, quotes, brackets, a box and the word ``option`` around it,
    and with another mark between letter and text (``**C**``, ``Option C``, ``C - CT``, ``CT (C)``); any other word
    makes it no answer. A completion without block, box and phrase must be such a text as a whole.
    After a phrase these forms are read where they begin it, alone, ended by a period, or followed by reasons
    (``because``, ``which``, ``not A``); an article before a text is skipped, so that "a cyst" is not option A.

    Args:
        completion: Decoded text without special tokens.
        options: Option texts in letter order, 2 to 10, with or without their letters; empty for an open question, whose
            answer is the text read.
        rule: ``strict`` or ``lenient``, see above. What strict reads, lenient reads the same.
        closed: The question lists no options and yet takes one of few words: yes and no together name two.

    Returns:
        The answer; ``status`` is ``unparsed`` when the rule finds nothing to read, or it is empty, or it does not name
        exactly one option offered.

    Raises:
        ValueError: The number of options is not 0 and not 2 to 10, or there is no such rule.
    """
    if options and not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"options: expected none or 2 to {len(LETTERS)}, got {len(options)}")
    if rule not in ("strict", "lenient"):
        raise ValueError(f"rule: expected strict or lenient, got {rule!r}")
    options = plain_options(options)
    reasoning, rest = _split(completion)
    blocks = [match[1].strip() for part in rest for match in _ANSWER.finditer(part)]
    tags = sum(len(_ANSWER_TAG.findall(part)) for part in rest)
    if rule == "strict" and blocks and tags != 2:
        reason = "several answer blocks" if len(blocks) > 1 else "stray answer tag"
        return Answer(reasoning, blocks[-1], None, "unparsed", reason)
    if blocks:
        return _read(reasoning, blocks[-1], options, _choices(blocks[-1], options), closed)
    if rule == "strict" or tags:
        return Answer(reasoning, None, None, "unparsed", "no closed answer block")
    boxes = [(part, match.end()) for part in rest for match in _BOXED.finditer(part)]
    if boxes:
        content = _inside(*boxes[-1])
        if content is None:
            return Answer(reasoning, None, None, "unparsed", "box not closed")
        return _read(reasoning, content, options, _choices(content, options), closed)
    for part in reversed(rest):
        for phrase in reversed(list(_PHRASE.finditer(part))):
            if _LEAD.search(part, max(0, phrase.start() - _LOOK_BACK), phrase.start()):
                return _read_phrase(reasoning, part, phrase, options, closed)
    said = [part.strip() for part in rest if part.strip()]
    if len(said) == 1:
        named = _choices(said[0], options)
        if len(named) == 1 or (closed and normalize(said[0]) in ("yes", "no")):
            return _read(reasoning, said[0], options, named, closed)
    return Answer(reasoning, None, None, "unparsed", "no closed answer block")


def plain_options(options: Sequence[str]) -> tuple[str, ...]:
    """Option texts without the letters ``A) x``, ``A. x``, ``A: x`` or ``(A) x``, where each begins with its own."""
    found = [_LABELLED.fullmatch(option.strip()) for option in options]
    texts = [m[3] for m, letter in zip(found, LETTERS, strict=False) if m and (m[1] or m[2]).upper() == letter]
    return tuple(texts if len(texts) == len(options) else options)


def is_correct(answer: Answer, record: Record) -> bool:
    """True when the answer is right; unparsed never is.

    The choice must be the gold letter. Without options, a gold of yes or no is compared with the reply
    (``open_answers.yes_no``), a gold with ``|`` between labels as a set, any other by normalised exact match.
    """
    if answer.status == "unparsed" or answer.text is None:
        return False
    if record.options:
        return answer.choice == record.answer
    if normalize(record.answer) in ("yes", "no"):
        return yes_no(answer.text) == normalize(record.answer)
    if "|" in record.answer:
        return labels(answer.text) == labels(record.answer)
    return exact_match(answer.text, record.answer)


def f1(answer: Answer, record: Record) -> float:
    """How far the answer is right, 0 to 1.

    F1 of the sets of labels for a gold with ``|``, else F1 of words for a question without options; for a choice, and
    for a gold of yes or no, 1 when right and 0 when not. Unparsed is 0.
    """
    if answer.status == "unparsed" or answer.text is None:
        return 0.0
    if record.options or normalize(record.answer) in ("yes", "no"):
        return float(is_correct(answer, record))
    return set_f1(answer.text, record.answer) if "|" in record.answer else token_f1(answer.text, record.answer)


def verdict(record: Record, completion: str, rule: Rule = "strict") -> Literal["right", "wrong", "unparsed"]:
    """Grades one completion, keeping unparsed apart from wrong."""
    answer = extract(completion, record.options, rule, record.closed)
    if answer.status == "unparsed":
        return "unparsed"
    return "right" if is_correct(answer, record) else "wrong"


def _split(completion: str) -> tuple[str, list[str]]:
    """The reasoning, and the stretches of text outside it in order.

    The stretches stay apart so that removing reasoning cannot join two halves of a tag or of a block.
    """
    inside: list[slice] = []
    outside: list[slice] = []
    start, thinking = 0, False
    for tag in _THINK_TAG.finditer(completion):
        closes = tag[1] == "/"
        if closes and not thinking:  # the block opened before the completion: all so far was reasoning
            inside, outside = [slice(0, tag.start())], []
        elif closes or not thinking:
            (inside if thinking else outside).append(slice(start, tag.start()))
        else:  # an opening tag inside reasoning is part of it
            continue
        start, thinking = tag.end(), not closes
    (inside if thinking else outside).append(slice(start, None))
    return "\n".join(completion[part].strip() for part in inside), [completion[part] for part in outside]


def _read(reasoning: str, text: str, options: Sequence[str], named: set[str], closed: bool) -> Answer:
    """The answer that a text gives, when it is there and names exactly one choice."""
    if not text:
        return Answer(reasoning, text, None, "unparsed", "empty")
    if not options:
        if closed and {"yes", "no"} <= set(re.findall(r"\w+", text.casefold())):
            return Answer(reasoning, text, None, "unparsed", "two options")
        return Answer(reasoning, text, None, "parsed")
    if len(named) == 1:
        return Answer(reasoning, text, min(named), "parsed")
    return Answer(reasoning, text, None, "unparsed", "two options" if named else _why_none(text, options))


def _read_phrase(reasoning: str, part: str, phrase: re.Match[str], options: Sequence[str], closed: bool) -> Answer:
    """The answer that the rest of the line after a phrase gives, or the next line where the phrase ends its own."""
    start = _OPENING.match(part, phrase.end()).end()
    line = _MARKUP.sub("", part[start:].partition("\n")[0]).strip()
    in_doubt = _DOUBT.search(part, max(0, phrase.start() - _LOOK_BACK), phrase.start())
    if in_doubt or (phrase["says"] is None and phrase["heading"] is None):
        return Answer(reasoning, line, None, "unparsed", "phrase in doubt")
    if options:
        return _read(reasoning, line, options, _choices_first(line, options), closed)
    if _NO_TEXT.match(line):
        return Answer(reasoning, line, None, "unparsed", "phrase in doubt")
    end = _END_OF_TEXT.search(line)
    return _read(reasoning, line[: end.start() if end else None].strip(" .*_\"'”’$"), options, set(), closed)


def _inside(text: str, start: int) -> str | None:
    """What stands before the brace that closes the one before ``start``, without font commands; None without one."""
    kept: list[str] = []
    is_font = [True]
    for brace in _BRACE.finditer(text, start):
        kept.append(text[start : brace.start()])
        start = brace.end()
        if brace["escaped"]:
            kept.append(brace[0])
            continue
        if brace[0] != "}":
            is_font.append(brace["font"] is not None)
        drop = is_font.pop() if brace[0] == "}" else is_font[-1]
        if not is_font:
            return "".join(kept).strip(" \n\t$")
        if not drop:
            kept.append(brace[0])
    return None


def _normal(text: str) -> str:
    """Folds case, white space and one final period."""
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def _choices(text: str, options: Sequence[str]) -> set[str]:
    """Letters of the options that some reading of the whole text names."""
    return _choices_exact(text, options) or _choices_marked(text, options)


def _choices_exact(text: str, options: Sequence[str]) -> set[str]:
    named = {letter for letter, option in zip(LETTERS, options, strict=False) if _normal(option) == _normal(text)}
    if match := _LETTER.fullmatch(text):
        named |= {(match[1] or match[2]).upper()} & set(LETTERS[: len(options)])
    if match := _LABELLED.fullmatch(text):
        letter = (match[1] or match[2]).upper()
        if letter in LETTERS[: len(options)] and _normal(match[3]) == _normal(options[LETTERS.index(letter)]):
            named.add(letter)
    return named


def _choices_marked(text: str, options: Sequence[str]) -> set[str]:
    """The letter of the one option that the whole text names, less what marks it as the choice; else empty."""
    said = " ".join(_MARKUP.sub("", text).split()).casefold()
    if quoted := _QUOTED.fullmatch(said):  # at both ends: "T2*" is not T2
        said = next(filter(None, quoted.groups()[1:])).strip()
    start = _NOUN.match(said).end()
    texts = [_normal(option) for option in options]
    readings = _letters_at(said, start, texts) + _texts_at(said, start, texts)
    named = {letter for end, letter in readings if _END.match(said, end)}
    return named if len(named) == 1 else set()


def _choices_first(line: str, options: Sequence[str]) -> set[str]:
    """Letters of the options that the beginning of a line names, by its longest readings.

    Words that hedge, and then an article, are skipped only where the line with them names no option.
    """
    said = " ".join(line.split()).casefold()
    texts = [_normal(option) for option in options]
    hedged = _HEDGE.match(said).end()
    attempts = [_letters_at(said, start, texts) + _texts_at(said, start, texts) for start in (0, hedged)]
    if article := _ARTICLE.match(said, hedged):
        # A letter after an article may be the second of two: "A B".
        attempts.append([found for found in _texts_at(said, article.end(), texts) if found[0] > article.end() + 1])
    for readings in attempts:
        ends = [end for end, _ in readings if _AFTER.match(said, end)]
        if ends:
            return {letter for end, letter in readings if end == max(ends)}
    return set()


def _letters_at(said: str, start: int, texts: Sequence[str]) -> list[tuple[int, str]]:
    """Where a letter at ``start`` ends, alone or with the text that it labels, and which letter it is.

    With the text of another option, both letters are given.
    """
    readings = []
    if match := _SAID_LETTER.match(said, start):
        letter = (match[1] or match[2]).upper()
        if letter in LETTERS[: len(texts)]:
            readings.append((match.end(), letter))
    if match := _SAID_LABEL.match(said, start):
        letter = (match[1] or match[2]).upper()
        own = texts[LETTERS.index(letter)] if letter in LETTERS[: len(texts)] else None
        for end, other in _texts_at(said, match.end(), texts):
            readings.append((end, letter))
            if said[match.end() : end] != own:
                readings.append((end, other))
    return readings


def _texts_at(said: str, start: int, texts: Sequence[str]) -> list[tuple[int, str]]:
    """Where the text of an option at ``start`` ends, with its letter in parentheses if that follows, and the letter."""
    readings = []
    for letter, text in zip(LETTERS, texts, strict=False):
        if text and said.startswith(text, start):
            end = start + len(text)
            lettered = f" ({letter.casefold()})"
            readings.append((end + len(lettered) if said.startswith(lettered, end) else end, letter))
    return readings


def _why_none(text: str, options: Sequence[str]) -> str:
    """Names why no reading holds."""
    offered = LETTERS[: len(options)]
    match = _LETTER.fullmatch(text) or _LABELLED.fullmatch(text)
    if match and (match[1] or match[2]).upper() not in offered:
        return "letter not offered"
    letters = set(re.findall(rf"\b[{offered}]\b", text))
    folded = " ".join(text.split()).casefold()
    texts = {
        letter
        for letter, option in zip(offered, options, strict=True)
        if re.search(rf"(?<!\w){re.escape(_normal(option))}(?!\w)", folded)
    }
    return "two options" if len(letters | texts) > 1 else "no option matches"
