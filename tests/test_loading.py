"""Prompt batches against the processor of one prompt at a time; order, shards and resume of the training loader."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import FAMILIES, processor_of
from torch.utils.data import DataLoader

import data_modules.loading
from data_modules.images import open_rgb, prepare
from data_modules.loading import Collate, PositionSampler, evaluation_loader, train_loader
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
        data_modules.loading,
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


# ------------------------------------------------------------------------------------------------- order and resume


@given(
    num_records=st.integers(1, 60),
    size=st.integers(1, 5),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_ranks_share_an_epoch_evenly(num_records, size, world_size, seed, epoch) -> None:
    def order(rank: int, size: int, world_size: int) -> list[int]:
        sampler = PositionSampler(num_records, size, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    shards = [order(rank, size, world_size) for rank in range(world_size)]
    used = Counter(index for shard in shards for index in shard)
    assert len({len(shard) for shard in shards}) == 1
    assert set(used.values()) <= {1}
    assert len(used) == num_records // (size * world_size) * size * world_size
    # One rank with larger batches sees the same global batches.
    together = order(0, size * world_size, 1)
    for b in range(len(shards[0]) // size):
        batch = [index for shard in shards for index in shard[b * size : (b + 1) * size]]
        assert batch == together[b * size * world_size : (b + 1) * size * world_size]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = PositionSampler(50, 5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(1, 1) == order(1, 1)
    assert list(PositionSampler(7, 3, shuffle=False)) == [0, 1, 2, 3, 4, 5]


def loader_of(num_records: int = 11, repeats: int = 3, **options):
    """A loader of batches of two indices, and the indices that were loaded."""
    loaded: list[int] = []

    def collate(indices: list[int]) -> list[int]:
        loaded.extend(indices)
        return indices

    sampler = PositionSampler(num_records, 2, **options)
    return train_loader(range(num_records), collate, sampler, repeats), loaded


def test_each_batch_is_repeated_as_the_same_object() -> None:
    loader, loaded = loader_of()
    batches = list(loader)
    assert len(batches) == len(loader) == 15
    for start in range(0, 15, 3):
        assert batches[start] is batches[start + 1] is batches[start + 2]
    assert len({id(batch) for batch in batches}) == 5
    assert len(loaded) == 10  # each record once, whatever the repeats
    assert [list(b) for b in loader] == [list(b) for b in batches]  # the epoch is the same until it is set


def test_workers_that_stay_follow_the_epoch() -> None:
    alone, _ = loader_of()
    expected = list(alone)
    alone.sampler.set_epoch(1)
    expected += list(alone)

    sampler = PositionSampler(11, 2)
    loader = train_loader(range(11), WithPid(), sampler, 3, num_workers=2, persistent_workers=True)
    list(islice(loader, 4))  # left in the middle, while workers have more in hand
    batches = list(loader)
    sampler.set_epoch(1)
    batches += list(loader)
    assert [indices for indices, _ in batches] == expected
    assert len({pid for _, pid in batches}) == 2


class WithPid:
    """A collate function that says which process ran it."""

    def __call__(self, indices: list[int]) -> tuple[list[int], int]:
        return indices, os.getpid()


@pytest.mark.parametrize("stop", range(16))
def test_resume_at_every_position(stop: int) -> None:
    whole, _ = loader_of()
    expected = list(whole)
    whole.sampler.set_epoch(1)
    expected += list(whole)

    first, _ = loader_of()
    handed_out = list(islice(first, stop))
    second, loaded = loader_of()
    state = first.state_dict()
    assert state["position"] == stop
    second.load_state_dict(state)
    assert second.state_dict() == state  # saved again before the first batch
    iter(second)  # Lightning may create an iterator that it never uses
    handed_out += list(second)
    assert len(loaded) == 2 * (5 - stop // 3)  # batches before the position are not loaded
    second.sampler.set_epoch(1)
    assert handed_out + list(second) == expected


def test_a_position_belongs_to_its_epoch() -> None:
    first, _ = loader_of()
    list(first)
    first.sampler.set_epoch(1)  # Lightning begins the next epoch; a checkpoint may be saved before its first batch
    second, _ = loader_of()
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(1)
    assert len(list(second)) == 15


def test_a_state_of_other_settings_is_refused() -> None:
    first, _ = loader_of(repeats=3)
    second, _ = loader_of(repeats=4, num_records=13)
    with pytest.raises(ValueError, match="records was 11, is 13; repeats was 3, is 4. Resume with the settings"):
        second.load_state_dict(first.state_dict())


def test_evaluation_gives_each_record_to_one_rank() -> None:
    shards = [
        [i for batch in evaluation_loader(range(7), list, 2, rank=rank, world_size=3) for i in batch]
        for rank in range(3)
    ]
    assert sorted(sum(shards, [])) == list(range(7))
    assert [batch for batch in evaluation_loader(range(5), list, 2, rank=0, world_size=1)] == [[0, 1], [2, 3], [4]]
