"""Prompt batches against the processor of one prompt at a time, and what is refused before training."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FAMILIES, processor_of
from torch.utils.data import DataLoader

import data_modules.collate
from data_modules.collate import Collate
from data_modules.images import open_rgb, prepare
from medgrpo.types import DataError, Record

PROMPT = "{Question} Answer with a letter."


def record(index: int, *images: str, stem: str = "What is it?") -> Record:
    return Record(f"r{index}", stem + " A)cyst, B)mass", stem, ("cyst", "mass"), "A", images)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name, shape in {"a.png": (60, 90, 3), "b.png": (200, 50), "c.png": (84, 84, 3)}.items():
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


MIXED = [record(0, "a.png"), record(1, stem="No image here, but a longer question?"), record(2, "b.png", "c.png")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_its_prompts_alone(family: str, root: Path) -> None:
    processor = processor_of(family)
    collate = Collate(processor, PROMPT, str(root), max_pixels=20_000)
    batch = collate(MIXED)
    assert batch.images_per_prompt == (1, 0, 2)
    assert batch.records == tuple(MIXED)
    assert batch.input_ids.dtype == batch.mm_token_type_ids.dtype == batch.image_grid_thw.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool
    assert batch.pixel_values.dtype == torch.float32
    assert batch.attention_mask[:, -1].all()  # padding is on the left
    assert not batch.attention_mask.all()
    image_tokens = batch.image_grid_thw.prod(1) // 4
    assert batch.mm_token_type_ids.sum(1).tolist() == [image_tokens[0], 0, image_tokens[1:].sum()]
    for index in range(3):
        alone, part = collate(MIXED[index : index + 1]), batch.select([index])
        assert torch.equal(alone.input_ids, part.input_ids)
        assert alone.attention_mask.all()
        if alone.pixel_values is None:
            assert part.pixel_values is None
        else:
            assert torch.equal(alone.pixel_values, part.pixel_values)
            assert torch.equal(alone.image_grid_thw, part.image_grid_thw)
    types = processor(text=["<|image_pad|>"], images=[Image.new("RGB", (56, 56))], return_tensors="pt")
    expected = (types["input_ids"] == processor.image_token_id).long()
    assert torch.equal(types["mm_token_type_ids"], expected)  # what the batch's field means to transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_one_call_of_the_processor(family: str, root: Path) -> None:
    processor = processor_of(family)
    batch = Collate(processor, PROMPT, str(root))(MIXED)
    limits = processor.image_processor.size["shortest_edge"], processor.image_processor.size["longest_edge"]
    images = [
        prepare(open_rgb(root / name), *limits, processor.image_processor.patch_size)
        for name in ("a.png", "b.png", "c.png")
    ]
    expected = processor(
        text=list(batch.texts), images=images, do_resize=False, padding=True, padding_side="left", return_tensors="pt"
    )
    for name in ("input_ids", "mm_token_type_ids", "pixel_values", "image_grid_thw"):
        assert torch.equal(getattr(batch, name), expected[name]), name
    assert torch.equal(batch.attention_mask, expected["attention_mask"].bool())


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_chat_template_with_the_answer_turn_open(family: str, root: Path) -> None:
    batch = Collate(processor_of(family), PROMPT, str(root))(MIXED)
    assert [text.count("<|vision_start|><|image_pad|><|vision_end|>") for text in batch.texts] == [1, 0, 2]
    assert all("What is it?\nA) cyst\nB) mass Answer with a letter.<|im_end|>" in batch.texts[i] for i in (0, 2))
    assert all(text.endswith("<|im_start|>assistant\n") for text in batch.texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_resized_once_and_within_the_limits(family: str, root: Path) -> None:
    processor = processor_of(family)
    factor = 2 * processor.image_processor.patch_size
    limit = 4 * factor**2
    batch = Collate(processor, PROMPT, str(root), min_pixels=1, max_pixels=limit)([record(0, "b.png")])
    assert batch.mm_token_type_ids.sum() <= 4
    # Asked for do_resize=False, the processor turns the pixels of the prepared image into patches, no more.
    from qwen_vl_utils import fetch_image

    prepared = fetch_image({"image": str(root / "b.png"), "min_pixels": 1, "max_pixels": limit}, factor // 2)
    grid = batch.image_grid_thw[0].tolist()
    assert (prepared.height, prepared.width) == (grid[1] * factor // 2, grid[2] * factor // 2)
    expected = processor.image_processor([prepared], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.pixel_values, expected)


def test_resize_stretches_first(root: Path) -> None:
    batch = Collate(processor_of("qwen2_vl"), PROMPT, str(root), resize=(384, 384))([record(0, "b.png")])
    assert batch.image_grid_thw.tolist() == [[1, 28, 28]]
    assert batch.mm_token_type_ids.sum() == 196


def test_each_image_is_opened_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        data_modules.collate,
        "open_rgb",
        lambda file, *options: opened.append(file.path.name) or open_rgb(file, *options),
    )
    batch = Collate(processor_of("qwen2_5_vl"), PROMPT, str(root))(MIXED)
    assert opened == ["a.png", "b.png", "c.png"]
    assert [None if t is None else tuple(t.shape) for t in batch.thumbnails] == [(3, 60, 90), None, (3, 200, 50)]
    assert batch.thumbnails[0].dtype == torch.uint8


def test_a_prompt_that_is_too_long_is_named_and_never_cut(root: Path) -> None:
    processor = processor_of("qwen2_5_vl")
    lengths = Collate(processor, PROMPT, str(root))(MIXED).attention_mask.sum(1).tolist()
    longest = max(lengths)
    fits = Collate(processor, PROMPT, str(root), max_prompt_length=longest)
    fits.check(MIXED)
    assert fits(MIXED).attention_mask.sum(1).tolist() == lengths
    short = Collate(processor, PROMPT, str(root), max_prompt_length=longest - 1)
    message = rf"record r\d: the prompt has {longest} tokens, more than max_prompt_length={longest - 1}.*max_pixels"
    with pytest.raises(DataError, match=message):
        short(MIXED)
    with pytest.raises(DataError, match=r"1 of 3 prompts cannot be used:\n  " + message):
        short.check(MIXED)


def test_check_reads_headers_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    Collate(processor_of("qwen3_vl"), PROMPT, str(root), max_prompt_length=1000).check(MIXED)


def test_special_tokens_in_a_record_are_refused(root: Path) -> None:
    collate = Collate(processor_of("qwen2_5_vl"), PROMPT, str(root))
    bad = record(7, stem="What is <|image_pad|>?")
    with pytest.raises(DataError, match=r"record r7: expected plain text, .* <\|image_pad\|>"):
        collate([bad])
    with pytest.raises(DataError, match="1 of 1 prompts"):
        collate.check([bad])


def test_a_prompt_that_asks_for_an_image_itself_is_refused(root: Path) -> None:
    collate = Collate(processor_of("qwen2_5_vl"), "<|image_pad|> {Question}", str(root))
    with pytest.raises(DataError, match=r"record r0: expected one <\|image_pad\|> per image, 1 in all, got 2"):
        collate(MIXED)
    with pytest.raises(DataError, match="3 of 3 prompts cannot be used"):
        collate.check(MIXED)


def test_image_errors_name_record_and_file(root: Path) -> None:
    collate = Collate(processor_of("qwen2_5_vl"), PROMPT, str(root), max_image_pixels=100 * 100 - 1)
    with pytest.raises(DataError, match="record r2: .*b.png: 50 x 200 pixels exceed max_image_pixels=9999"):
        collate(MIXED)
    with pytest.raises(DataError, match="record r2: .*b.png: 50 x 200 pixels exceed"):
        collate.check(MIXED)


def test_limits_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="min_pixels=3136 exceeds max_pixels=100"):
        Collate(processor_of("qwen2_5_vl"), PROMPT, max_pixels=100)


def test_collate_travels_to_workers(root: Path) -> None:
    collate = Collate(processor_of("qwen2_5_vl"), PROMPT, str(root))
    copy = pickle.loads(pickle.dumps(collate))
    assert torch.equal(copy(MIXED).pixel_values, collate(MIXED).pixel_values)
    [batch] = DataLoader(MIXED, 3, collate_fn=collate, num_workers=1)
    assert torch.equal(batch.input_ids, collate(MIXED).input_ids)


def test_records_with_broken_images_are_replaced_by_the_first_spare_that_is_not_in_the_batch(root: Path) -> None:
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:200])
    collate = Collate(processor_of("qwen2_5_vl"), PROMPT, str(root))
    first, second, broken, worse, spare = (
        record(index, image) for index, image in enumerate(("a.png", "b.png", "broken.png", "broken.png", "c.png"))
    )
    batch, skipped = collate.with_spares([(first,), (broken, second, worse, spare), (second, spare)])
    assert batch.records == (first, spare, second)
    assert batch.skipped == 2
    assert [(one.id, one.instead) for one in skipped] == [("r2", "r4"), ("r3", "r4")]
    assert all("broken.png: image cannot be decoded" in one.reason for one in skipped)
    assert torch.equal(batch.pixel_values, collate([first, spare, second]).pixel_values)
    assert collate.with_spares([(broken, spare, first), (worse, spare, first)])[0].records == (spare, first)
    assert collate.with_spares([(first, spare)])[0].skipped == 0
    with pytest.raises(DataError, match="^record r2: .* of 1 records that could take its place none can"):
        collate.with_spares([(broken, worse)])
    with pytest.raises(DataError, match="record r2: .*broken.png"):
        collate([first, broken])
