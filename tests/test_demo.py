"""The demo's images, tiny models and tokenizer."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_modules.phantom import FINDINGS, NAMES, SIZE, draw, phantom
from medgrpo.demo.model import BASE_FOLDER, FAMILIES, SPECIAL_TOKENS, TAGS, build_tokenizer, save_tiny, tiny_config
from medgrpo.types import MODALITIES


@pytest.fixture(scope="module")
def items():
    return list(phantom(seed=3, number=1200))


def test_every_modality_has_four_findings():
    assert tuple(FINDINGS) == MODALITIES
    assert tuple(NAMES) == MODALITIES
    assert all(len(set(findings)) == 4 for findings in FINDINGS.values())


def test_same_seed_same_questions_and_images_and_other_seed_others():
    first, again, other = (list(phantom(seed, 16)) for seed in (7, 7, 8))
    assert [record for record, _ in first] == [record for record, _ in again]
    assert all((a == b).all() for (_, a), (_, b) in zip(first, again, strict=True))
    assert not any((a == b).all() for _, a in first for _, b in other)


@pytest.mark.parametrize("modality", MODALITIES)
def test_findings_change_the_picture_plainly(modality):
    pictures = [draw(modality, finding, np.random.default_rng(0)) for finding in FINDINGS[modality]]
    assert {(picture.shape, picture.dtype.name) for picture in pictures} == {((SIZE, SIZE, 3), "uint8")}
    for index, picture in enumerate(pictures):
        for other in pictures[:index]:
            # Another finding moves the later draws of the generator, so noise differs: count what noise cannot do.
            changed = np.abs(picture.astype(int) - other.astype(int)).max(-1) > 60
            assert changed.mean() > 0.005


def test_options_are_of_one_kind_and_hold_the_answer(items):
    for record, _ in items:
        kind = FINDINGS[record.modality] if record.task == "Disease Diagnosis" else tuple(NAMES.values())
        assert set(record.options) <= set(kind)
        assert 2 <= len(set(record.options)) == len(record.options) <= 4
        assert record.answer in record.letters
        listed = zip(record.letters, record.options, strict=True)
        assert all(f"{letter}) {text}" in record.problem for letter, text in listed)


def test_no_image_no_answer(items):
    """The letter, and each option's chance to be the answer when it is offered, tell no more than guessing does."""
    letters = Counter((len(record.options), record.answer) for record, _ in items)
    for count in (2, 3, 4):
        total = sum(letters[count, letter] for letter in "ABCD")
        assert all(abs(letters[count, letter] / total - 1 / count) < 0.08 for letter in "ABCD"[:count])
    offered, right = Counter(), Counter()
    for record, _ in items[:600]:
        keys = [(record.modality if record.task == "Disease Diagnosis" else "", text) for text in record.options]
        offered.update(keys)
        right[keys[record.letters.index(record.answer)]] += 1
    hits, chances = defaultdict(list), defaultdict(list)
    for record, _ in items[600:]:
        name = record.modality if record.task == "Disease Diagnosis" else ""
        rates = [right[name, text] / max(1, offered[name, text]) for text in record.options]
        hits[record.task].append(record.letters[int(np.argmax(rates))] == record.answer)
        chances[record.task].append(1 / len(record.options))
    assert len(hits) == 2
    for task in hits:
        assert np.mean(hits[task]) < np.mean(chances[task]) + 3 * np.sqrt(0.25 / len(hits[task]))  # 3 standard errors


def test_tokenizer_covers_any_text_and_keeps_tags_whole():
    tokenizer = build_tokenizer()
    text = "<think>Ödem 5 µm</think><answer>B</answer>"
    assert tokenizer.decode(tokenizer(text + "<|im_end|>").input_ids, skip_special_tokens=True) == text
    for token in (*SPECIAL_TOKENS, *TAGS):
        assert len(tokenizer(token).input_ids) == 1
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_folder_loads_and_its_parts_agree(family, tmp_path):
    save_tiny(tmp_path, family)
    processor = AutoProcessor.from_pretrained(tmp_path, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, local_files_only=True)
    assert model.config.model_type == family
    assert model.config.image_token_id == processor.image_token_id
    assert model.get_input_embeddings().num_embeddings >= len(processor.tokenizer)
    assert set(model.generation_config.eos_token_id) == set(
        processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    )
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_weights_depend_on_the_seed_alone(tmp_path):
    weights = {}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        before = torch.get_rng_state()
        save_tiny(tmp_path / name, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
        torch.rand(1)
    assert weights["a"] == weights["b"] != weights["c"]


@pytest.mark.parametrize(
    ("family", "sizes", "named"),
    [
        ("llava", {}, "family"),
        ("qwen2_vl", {"hidden_size": 72}, "hidden_size=72"),
        ("qwen3_vl", {"num_heads": 3}, "num_heads=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(family, sizes, named):
    with pytest.raises(ValueError, match=named):
        tiny_config(family, build_tokenizer(), **sizes)


@pytest.mark.skipif(not BASE_FOLDER.is_dir(), reason="scripts/make_demo_model.py has not written the base model yet")
def test_base_model_is_small_and_loads():
    assert sum(path.stat().st_size for path in BASE_FOLDER.iterdir()) <= 10 * 2**20
    AutoProcessor.from_pretrained(BASE_FOLDER, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(BASE_FOLDER, dtype=torch.float32, local_files_only=True)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
