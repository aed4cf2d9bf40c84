"""Order, shards and resume of the training loader."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_modules.loading import SPARES, PositionSampler, SpareSampler, evaluation_loader, train_loader
from medgrpo.types import Record


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


@given(num_records=st.integers(1, 60), size=st.integers(1, 5), world_size=st.integers(1, 3), epoch=st.integers(0, 2))
def test_spares_are_of_other_batches_and_the_same_for_any_number_of_ranks(num_records, size, world_size, epoch) -> None:
    def rows(rank: int, size: int, world_size: int, start: int = 0) -> list[list[tuple[int, ...]]]:
        sampler = PositionSampler(num_records, size, seed=1, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        sampler.start = start
        batches = list(SpareSampler(sampler))
        assert [row[0] for batch in batches for row in batch] == list(sampler)
        return batches

    shards = [rows(rank, size, world_size) for rank in range(world_size)]
    for b, together in enumerate(rows(0, size * world_size, 1)):
        assert [row for shard in shards for row in shard[b]] == together
        batch = {row[0] for row in together}
        for _, *spares in together:
            assert len(spares) == len(set(spares)) == min(SPARES, num_records - size * world_size)
            assert not batch & set(spares)
    assert rows(0, size, world_size, start=1) == shards[0][1:]  # resumed


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


def evaluated(num_records: int, batch_size: int, world_size: int = 1, done: set[str] = frozenset()) -> list[list[list]]:
    """For each rank its batches of ids."""
    records = [Record(str(i), "", "", (), "") for i in range(num_records)]
    loaders = (
        evaluation_loader(records, list, batch_size, rank=rank, world_size=world_size, done=done)
        for rank in range(world_size)
    )
    return [[[record.id for record in batch] for batch in loader] for loader in loaders]


def test_evaluation_gives_each_record_to_one_rank() -> None:
    shards = evaluated(7, 2, world_size=3)
    assert sorted(id for rank in shards for batch in rank for id in batch) == list("0123456")
    assert evaluated(5, 2) == [[["0", "1"], ["2", "3"], ["4"]]]


def test_ranks_share_the_batches_that_one_would_have() -> None:
    (alone,) = evaluated(23, 5)
    assert sorted(evaluated(23, 5, world_size=2)[0] + evaluated(23, 5, world_size=2)[1]) == sorted(alone)


def test_every_rank_gets_something_when_there_is_enough() -> None:
    assert [sum(map(len, rank)) for rank in evaluated(5, 100, world_size=4)] == [2, 1, 1, 1]


def test_what_is_left_of_an_evaluation_keeps_its_batches() -> None:
    (whole,) = evaluated(10, 3)
    assert whole == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"], ["9"]]
    (left,) = evaluated(10, 3, done={"0", "1", "2", "3", "4", "9"})
    assert left == [["3", "4", "5"], ["6", "7", "8"]]
    assert evaluated(10, 3, done=set("0123456789")) == [[]]
    assert [len(rank) for rank in evaluated(10, 3, world_size=3, done=set("012345"))] == [1, 1, 0]
