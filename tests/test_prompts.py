"""What a record looks like as chat messages."""

import hashlib

import pytest

from medgrpo.prompts import PRESETS, messages
from medgrpo.types import Record

RECORD = Record(
    id="1",
    problem="Which modality? A)CT, B)MRI {x}",
    question="Which modality?",
    options=("CT", "MRI {x}"),
    answer="A",
    images=("a.png", "b.png"),
)

# sha256 (first 16 digits) and length of the templates as published.
PUBLISHED = {
    "med_r1_think": ("7ec67bb2d70eae2d", 279),
    "med_r1_nothink": ("fc685cc8550487cc", 169),
    "med_r1_think_eval": ("4b791114d65f17a1", 175),
    "med_r1_nothink_eval": ("ddd534ed78f64155", 102),
    "med_r1_zero_shot": ("3c478575789af167", 69),
    "med_r1_readme": ("d07d25f3e66df33c", 126),
    "medvlm_r1_think": ("52ffc5bec70a477d", 332),
    "medvlm_r1_think_eval": ("dce8ae4fa099e5bd", 308),
    "medvlm_r1_simple_eval": ("53f022a92e4d4ad2", 95),
    "medvlm_r1_number": ("43dcab5b7c76ed91", 113),
    "med_r1_sft": ("1a760f66d87d2833", 102),
    "med_r1_text": ("89e8be09d8ba0f37", 397),
    "open_medical_r1": ("1efc71394a2a3e47", 493),
}


def user_text(prompt: str, record: Record = RECORD) -> str:
    return next(part["text"] for part in messages(record, prompt)[-1]["content"] if part["type"] == "text")


def test_every_preset_is_ours_or_pinned():
    assert set(PRESETS) == set(PUBLISHED) | {"think", "nothink", "think_after"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_template_is_byte_exact(name):
    preset = PRESETS[name]
    template = preset.system or preset.text
    assert (hashlib.sha256(template.encode()).hexdigest()[:16], len(template)) == PUBLISHED[name]
    assert preset.text == "{Question}" or not preset.system


def test_published_prompt_inserts_the_problem_verbatim():
    assert user_text("med_r1_nothink") == (
        "Which modality? A)CT, B)MRI {x} Your task: 1. Provide the correct single-letter choice (A, B, C, D,...) "
        "inside <answer>...</answer> tags. 2. No extra information or text outside of this tag."
    )


def test_training_and_evaluation_indents_of_medvlm_r1_differ():
    assert user_text("medvlm_r1_think").startswith("\n        Which modality? A)CT, B)MRI {x} \n        Your task: \n")
    assert user_text("medvlm_r1_think_eval").startswith("\n    Which modality? A)CT, B)MRI {x} \n    Your task: \n")


@pytest.mark.parametrize("name", ["think", "nothink", "think_after"])
def test_own_prompts_list_the_options(name):
    assert user_text(name).startswith("Which modality?\nA) CT\nB) MRI {x}\n\n")
    assert ("<think>" in user_text(name)) == (name != "nothink")


def test_think_after_asks_for_the_answer_first():
    text = user_text("think_after")
    assert text.index("<answer>") < text.index("<think>")


def test_images_come_first_and_there_is_no_system_turn():
    (user,) = messages(RECORD, "med_r1_think")
    assert user["role"] == "user"
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]


def test_sft_prompt_has_a_system_text_and_the_text_before_the_images():
    system, user = messages(RECORD, "med_r1_sft")
    assert system["role"] == "system"
    assert system["content"][0]["text"].startswith("Your task: Provide the correct single-letter choice")
    assert user["content"] == [{"type": "text", "text": RECORD.problem}, {"type": "image"}, {"type": "image"}]


def test_system_prompt_of_open_medical_r1_keeps_its_spelling():
    system, _ = messages(RECORD, "open_medical_r1")
    assert "the answer.The reasoning process is to solve" in system["content"][0]["text"]
    assert "think about it sinceraly.The" in system["content"][0]["text"]


def test_own_text_keeps_other_braces():
    assert user_text('Reply {"answer": "A"}. {Question}') == 'Reply {"answer": "A"}. Which modality?\nA) CT\nB) MRI {x}'


def test_inserted_text_is_not_a_template():
    record = Record(id="1", problem="", question="What is {Question}?", options=(), answer="x")
    assert messages(record, "Q: {Question}")[0]["content"] == [{"type": "text", "text": "Q: What is {Question}?"}]


def test_open_question_has_no_option_lines():
    record = Record(id="1", problem="Where?", question="Where?", options=(), answer="liver")
    assert user_text("nothink", record).startswith("Where?\n\nGive the answer")


def test_unknown_prompt_lists_the_presets():
    with pytest.raises(ValueError, match="med_r1_think_eval.*got 'med_r1_thnk'"):
        messages(RECORD, "med_r1_thnk")
