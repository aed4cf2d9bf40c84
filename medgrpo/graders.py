"""How other projects read a completion, beside how we do: for comparison with the figures that they published.

Four points between two graders of the same completions are common, so a published figure means something only beside
ours by the same rule. The rules of the others are reproduced with their faults; none is of use for anything else. They
are for choices only, each takes one letter or text, and it is right when that is the gold letter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial

from medgrpo.answers import extract, is_correct, plain_options
from medgrpo.types import Record, SettingsError

# MedEvalKit: in this order, of each what follows its last occurrence.
_ANSWER_PHRASES = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "\u7b54\u6848:",  # "answer:" in Chinese
    "final answer",
)
# VLMEvalKit: these end a token.
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# HuatuoGPT-o1: what surrounds a letter, Chinese characters included.
_BOUND = r"[\W\u4e00-\u9fff]"


@dataclass(frozen=True)
class Grade:
    """What a grader made of one completion."""

    extracted: str | None
    """Letter of the option taken, or the text taken where that names no option; None when it abstains."""
    correct: bool
    """By the lenient rule of ours, by the one rule of the others."""
    strict_correct: bool
    """By the strict rule of ours; equal to ``correct`` for the others."""
    unparsed: bool
    """The grader abstains."""


def grader_name(name: str) -> str:
    """The name in ``GRADERS`` that is meant: case, ``-``, ``_``, spaces, a final ``grader`` and ``GPT-o1`` are dropped.

    Raises:
        SettingsError: no such grader.
    """
    plain = re.sub(r"[-_\s]", "", name).lower().removesuffix("grader").removesuffix("o1").removesuffix("gpt")
    if plain not in GRADERS:
        raise SettingsError(f"grader: expected one of {', '.join(GRADERS)}; got {name!r}")
    return plain


def grade(name: str, records: Sequence[Record], completions: Sequence[str]) -> list[Grade]:
    """Grades completions by the rule of one project.

    Args:
        name: any spelling that ``grader_name`` knows.
        records: [n] questions with gold; options in letter order.
        completions: [n] one text per question.

    Raises:
        SettingsError: no such grader, or a question without options for a grader that is for choices only.
        ValueError: not as many completions as records.
    """
    name = grader_name(name)
    open_ids = [record.id for record in records if not record.options]
    if name != "ours" and open_ids:
        raise SettingsError(
            f"grader {name}: expected questions with options, which it is for; {len(open_ids)} of {len(records)} have "
            f"none, the first is {open_ids[0]!r}. Grade them with the grader ours, which also reads open answers"
        )
    plain = [replace(record, options=plain_options(record.options)) for record in records]
    return GRADERS[name](plain, completions)


def ours(records: Sequence[Record], completions: Sequence[str]) -> list[Grade]:
    """Our own extractor: ``medgrpo.answers`` says what the lenient and the strict rule are. It abstains."""
    grades = []
    for record, completion in zip(records, completions, strict=True):
        lenient, strict = (extract(completion, record.options, rule, record.closed) for rule in ("lenient", "strict"))
        correct, strict_correct = is_correct(lenient, record), is_correct(strict, record)
        grades.append(Grade(lenient.taken, correct, strict_correct, lenient.status == "unparsed"))
    return grades


def _medr1(record: Record, completion: str) -> str | None:
    """Med-R1, ``src/eval_vqa/test_qwen3vl_vqa.py``: the word in the first block that holds one word; the whole output
    when it is a letter and nothing else.

    Its fault: ``B.``, ``B)`` and ``b`` are wrong, and a block quoted in the reasoning wins.
    """
    if match := re.search(r"<answer>\s*(\w+)\s*</answer>", completion):
        return match[1]
    return completion if completion in tuple(record.letters) else None


def _medvlmr1(record: Record, completion: str) -> str | None:
    """MedVLM-R1, ``src/eval/test_qwen2vl_med.py``, prompt type "complex": the first block that holds one capital.

    Its fault: as Med-R1's; a bare letter is wrong too.
    """
    match = re.search(r"<answer>\s*([A-Z])\s*</answer>", completion)
    return match and match[1]


def _medvlthinker(record: Record, completion: str) -> str | None:
    """MedVLThinker: the first block, else the whole output, when it is ``B. text``, ``B`` or ``text`` in any case.

    Its fault: ``B)`` and ``The answer is B.`` are wrong.
    """
    blocks = _blocks(completion)
    text = (blocks[0] if blocks else completion).strip()
    named = [
        letter
        for letter, option in zip(record.letters, record.options, strict=True)
        if text.lower() in (f"{letter}. {option}".strip().lower(), letter.lower(), option.strip().lower())
    ]
    if named:
        return _gold_or_first(named, record)
    return text if blocks and text else None


def _medevalkit(record: Record, completion: str) -> str | None:
    """MedEvalKit, ``utils/utils.py``: a letter alone in the first or last paragraph; else the last ``\\boxed{}``, or
    all blocks joined, or all of it; of that, what follows the last "answer is" and the like; of that, from its first
    sentence what follows the last colon, when it is a letter or an option; else the option nearest to all of it, of
    equals the first.

    Its fault: it never abstains, so an empty output is option A, and it reads any text as the option most like it.
    """
    text = completion.lower()
    letters, options = tuple(record.letters.lower()), [option.lower() for option in record.options]
    paragraphs = text.split("\n\n")
    for paragraph in (paragraphs[0], paragraphs[-1].split(".")[0]):
        if paragraph in letters:
            text = paragraph
            break
    if "boxed" in text:
        text = _boxed(text)
    elif "<answer>" in text:
        text = " ".join(_blocks(text)).strip() or text
    for phrase in _ANSWER_PHRASES:
        text = text.split(phrase)[-1]
    text = text.strip().replace("\n", "")
    said = text.split(".")[0].split(":")[-1]
    if said in letters:
        return said.upper()
    if said in options:
        return _gold_or_first([letter for letter, o in zip(record.letters, options, strict=True) if o == said], record)
    likeness = _likeness(options, text)
    return record.letters[likeness.index(max(likeness))]


def _vlmevalkit(record: Record, completion: str) -> str | None:
    """VLMEvalKit, ``vlmeval/utils/matching_util.py``, before its judge: the only option letter among the tokens, if
    its first place is among the last four; else A to D after "answer is"; else the only option whose text occurs, if
    the output is at most twice as long as all options together.

    Its fault: tags do not end a token, so ``<answer>B</answer>`` is left to the judge, and it reads the reasoning.
    """
    tokens = completion.translate(_TO_SPACES).split()
    found = [letter for letter in record.letters if letter in tokens]
    if len(found) == 1 and tokens.index(found[0]) >= len(tokens) - 4:
        return found[0]
    match = re.search(r"answer\s+is\s+\**([ABCD])", completion, re.IGNORECASE)
    if match and match[1].upper() in record.letters:
        return match[1].upper()
    text, options = completion.lower(), [option.lower() for option in record.options]
    if len(text) > 2 * sum(map(len, options)):
        return None
    found = [letter for letter, option in zip(record.letters, options, strict=True) if option in text]
    return found[0] if len(found) == 1 else None


def huatuo_readings(record: Record, completion: str) -> tuple[str, str]:
    """HuatuoGPT-o1, ``evaluation/scorer.py``: the first and the last match of the final response.

    Matches are the letters after "answer is", offered or not; else the letters of options that stand alone; else the
    texts of options; else the one option nearest to all of it, of equals the last. Of texts, "first" is the option
    whose first mention comes last.

    Its fault: it never abstains and reads the reasoning, and a data set is scored twice and the higher score reported.
    """
    completion = completion.split("## Final Response\n\n")[-1]
    # "answer is Not ..." reads as N. Two letters share no boundary: of "B C" only B is seen. "A " is an article.
    bounded = rf"(?:^|{_BOUND})(?!A )([{record.letters}])(?:{_BOUND}|$)"
    for pattern in (r"answer is\s*([A-N])", bounded):
        if letters := re.findall(pattern, completion):
            return letters[0], letters[-1]
    text, options = completion.lower(), [option.lower() for option in record.options]
    named = [i for i, option in enumerate(options) if option in text]
    if named:
        first = max(named, key=lambda i: text.index(options[i]))
        last = max(named, key=lambda i: text.rindex(options[i]))
        return record.letters[first], record.letters[last]
    likeness = _likeness(options, text)
    nearest = max(range(len(options)), key=lambda i: (likeness[i], i))
    return record.letters[nearest], record.letters[nearest]


def _huatuo(records: Sequence[Record], completions: Sequence[str]) -> list[Grade]:
    """Of each data set all first or all last of ``huatuo_readings``, whichever are more often right; of equals the
    first."""
    pairs = [huatuo_readings(record, text) for record, text in zip(records, completions, strict=True)]
    gain: Counter[str] = Counter()  # by the last reading over the first, in right answers
    for record, (first, last) in zip(records, pairs, strict=True):
        gain[record.dataset] += (last == record.answer) - (first == record.answer)
    return [
        _judged(last if gain[record.dataset] > 0 else first, record)
        for record, (first, last) in zip(records, pairs, strict=True)
    ]


def _each(
    read: Callable[[Record, str], str | None], records: Sequence[Record], completions: Sequence[str]
) -> list[Grade]:
    return [_judged(read(record, text), record) for record, text in zip(records, completions, strict=True)]


GRADERS: dict[str, Callable[[Sequence[Record], Sequence[str]], list[Grade]]] = {
    "ours": ours,
    "medr1": partial(_each, _medr1),
    "medvlmr1": partial(_each, _medvlmr1),
    "medvlthinker": partial(_each, _medvlthinker),
    "medevalkit": partial(_each, _medevalkit),
    "vlmevalkit": partial(_each, _vlmevalkit),
    "huatuo": _huatuo,
}
"""Each grades [n] records and completions."""


def _judged(taken: str | None, record: Record) -> Grade:
    correct = taken == record.answer
    return Grade(taken, correct, correct, unparsed=taken is None)


def _gold_or_first(named: Sequence[str], record: Record) -> str:
    """Of options with the same text the right one, as these rules compare texts and not letters."""
    return record.answer if record.answer in named else named[0]


def _blocks(text: str) -> list[str]:
    """Contents of the closed blocks, by hand: a pattern would search to the end again for each block left open."""
    bodies = []
    end = 0
    while (start := text.find("<answer>", end)) >= 0 and (close := text.find("</answer>", start)) >= 0:
        bodies.append(text[start + len("<answer>") : close])
        end = close
    return bodies


def _boxed(text: str) -> str:
    r"""What the last ``\boxed{}`` holds, braces within it balanced; the word none when there is no closed one."""
    _, opened, rest = text.rpartition("\\boxed{")
    depth = 1
    for end, character in enumerate(rest if opened else ""):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[:end].strip()
    return "none"


def _likeness(options: Sequence[str], text: str) -> list[float]:
    """How like each option is to the text, 0 to 1, by difflib."""
    matcher = SequenceMatcher(None, "", text)  # the text is indexed once
    ratios = []
    for option in options:
        matcher.set_seq1(option)
        ratios.append(matcher.ratio())
    return ratios
