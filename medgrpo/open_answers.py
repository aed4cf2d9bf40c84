"""Free text against a gold text: normalised exact match, token F1, yes or no, sets of labels.

Exact match and token F1 follow SQuAD (Rajpurkar et al. 2016, section 6.1: case, punctuation, the articles a, an, the,
and white space are ignored), after Unicode NFKC. Medicine asks for four exceptions: symbols stay, so that ``HER2+`` is
not ``HER2-``; so do ``-``, ``.``, ``/`` and ``:`` of numbers, so that 1.5 is not 15; ``a`` stays where it is a name, at
the end or in capitals after the first word (``hepatitis A``); ``_`` is white space, as in ``Pleural_Thickening``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal

# "-", ".", "/" or ":" that belongs to the number after it, and not to a name before it: 1.5 and -5, but not COVID-19.
_OF_NUMBER = re.compile(r"(?<![^\W\d_])[-./:](?=\d)")
# "No" may be a determiner: "no lesion is seen" says yes to "is the liver normal?". As a reply it stands apart.
_REPLY = re.compile(
    r"\W*(?:(?:(?:the|my) )?(?:(?:final|correct) )?answer(?: is|:)\W*)?"
    r"(?:(yes)\b|(no)\b\W*?(?:$|[.,;:!\n–—]| - | (?=(?:there|it|this|that|the|they|these)\b)))",
    re.IGNORECASE,
)
_BETWEEN_LABELS = re.compile(r"[|,;\n]|\band\b", re.IGNORECASE)


def normalize(text: str) -> str:
    """The text without case, punctuation, articles and needless white space; never empty unless the text is blank."""
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").replace("_", " ")
    kept = {match.start() for match in _OF_NUMBER.finditer(text)}
    plain = "".join(c for i, c in enumerate(text) if i in kept or not unicodedata.category(c).startswith("P"))
    words = plain.split()
    last = len(words) - 1
    content = [word for i, word in enumerate(words) if i == last or not _is_article(word, first=i == 0)]
    return " ".join(content or text.split()).casefold()


def exact_match(said: str, gold: str) -> bool:
    """True when the normalised texts are equal."""
    return normalize(said) == normalize(gold)


def token_f1(said: str, gold: str) -> float:
    """F1, 0 to 1, of the words of the normalised texts, each counted as often as it occurs."""
    return _f1(Counter(normalize(said).split()), Counter(normalize(gold).split()))


def yes_no(text: str) -> Literal["yes", "no"] | None:
    """What the text replies; None when it says both words or does not begin with one as a reply.

    ``Yes, there is`` is yes and ``The answer is no.`` is no; ``I do not know`` and ``No image was given`` are neither.
    """
    reply = _REPLY.match(text)
    if reply is None or len(set(re.findall(r"\b(?:yes|no)\b", text.casefold()))) > 1:
        return None
    return "yes" if reply[1] else "no"


def labels(text: str) -> frozenset[str]:
    """The normalised labels of a text that lists them with ``|``, commas, semicolons, new lines or ``and``."""
    return frozenset(normalize(part) for part in _BETWEEN_LABELS.split(text)) - {""}


def set_f1(said: str, gold: str) -> float:
    """F1, 0 to 1, of the labels listed."""
    return _f1(Counter(labels(said)), Counter(labels(gold)))


def _is_article(word: str, first: bool) -> bool:
    return word.casefold() in ("a", "an", "the") and (first or word != "A")


def _f1(said: Counter[str], gold: Counter[str]) -> float:
    """``2 |said ∩ gold| / (|said| + |gold|)``, the harmonic mean of precision and recall; 0 when both are empty."""
    total = said.total() + gold.total()
    return 2 * (said & gold).total() / total if total else 0.0
