"""The order of training and evaluation records: fixed by (seed, epoch), spread over ranks, resumed exactly."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

from data_modules.collate import Collate
from data_modules.curriculum import Curriculum
from data_modules.skipped import Skipped
from medgrpo.types import PromptBatch, Record, SettingsError

SPARES = 16
"""Records that may take the place of one whose image is broken."""


class PositionSampler(Sampler[int]):
    """This rank's indices in an order that depends on (seed, epoch) only.

    The permutation is cut into batches of ``prompts_per_batch * world_size``, and rank r takes the r-th part of each,
    so the ranks are disjoint, all have the same number of whole batches, and how many ranks share a batch does not
    change its content. What is left over waits for the next epoch's order. With a curriculum, the records that an epoch
    uses are then put in its order.
    """

    def __init__(
        self,
        num_records: int,
        prompts_per_batch: int,
        *,
        seed: int = 42,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        curriculum: Curriculum | None = None,
    ) -> None:
        self.num_records = num_records
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.curriculum = curriculum
        self.epoch = 0
        self.start = 0
        """Batches that iteration leaves out."""

    @property
    def num_batches(self) -> int:
        """Batches of each rank in a whole epoch."""
        return self.num_records // (self.prompts_per_batch * self.world_size)

    def __len__(self) -> int:
        return self.num_batches * self.prompts_per_batch

    def __iter__(self) -> Iterator[int]:
        used = self.order()[: len(self) * self.world_size]
        batches = used.reshape(self.num_batches, self.world_size, self.prompts_per_batch)
        yield from batches[self.start :, self.rank].flatten().tolist()

    def order(self) -> np.ndarray:
        """[num_records] this epoch's indices: the global batches one after the other, then what is left over."""
        order = np.arange(self.num_records)
        if self.shuffle:
            np.random.default_rng((self.seed, self.epoch)).shuffle(order)
        if self.curriculum is not None:
            num_used = len(self) * self.world_size
            order[:num_used] = self.curriculum.arrange(order[:num_used])
        return order

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch


class SpareSampler(BatchSampler):
    """Batches of rows: the index of a record, then those that may take its place, from later in the epoch's order.

    The spares of a record begin one global batch after it, so they are not in its batch and, under a curriculum, much
    like it. They depend on (seed, epoch) and its place in the order only, not on ranks or on what was skipped before.
    """

    def __init__(self, sampler: PositionSampler) -> None:
        super().__init__(sampler, sampler.prompts_per_batch, drop_last=True)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        sampler = self.sampler
        order, size = sampler.order(), sampler.prompts_per_batch * sampler.world_size
        steps = np.arange(min(SPARES, sampler.num_records - size))
        offsets = np.arange(sampler.prompts_per_batch)[:, None] + sampler.rank * sampler.prompts_per_batch
        for batch in range(sampler.start, sampler.num_batches):
            later = (offsets + steps) % max(1, sampler.num_records - size)
            spares = order[((batch + 1) * size + later) % sampler.num_records]
            rows = np.concatenate([order[batch * size + offsets], spares], axis=1)
            yield [tuple(row) for row in rows.tolist()]


class _Rows(Dataset):
    """Records by several indices at once."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, indices: tuple[int, ...]) -> tuple[Record, ...]:
        return tuple(self.records[index] for index in indices)


class RepeatLoader:
    """Yields each `PromptBatch` of a loader ``repeats`` times, the same object each time.

    It has a length, so Lightning does not prefetch from it; it is no `DataLoader`, so Lightning does not rebuild it; it
    has a state, so Lightning saves and restores its position. The position counts what was handed out, not what workers
    have prepared, and is the same on all ranks.
    """

    def __init__(
        self,
        loader: DataLoader,
        sampler: PositionSampler,
        repeats: int,
        on_skipped: Callable[[Sequence[Skipped], int], None] | None = None,
    ) -> None:
        self.loader = loader
        self.sampler = sampler
        self.repeats = repeats
        self.on_skipped = on_skipped
        """Told what each batch was made without, and the epoch; then the loader yields both."""
        self.epoch = 0
        self.position = 0
        """Micro-batches handed out in ``epoch``."""
        self._resume: tuple[int, int] | None = None

    @property
    def batch_sampler(self) -> BatchSampler:
        """Where Lightning finds the sampler whose epoch it sets."""
        return self.loader.batch_sampler

    @property
    def _iterator(self) -> Iterator[PromptBatch] | None:
        """Where Lightning finds the workers that it stops when training ends, and forgets them."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: None) -> None:
        self.loader._iterator = iterator

    def __len__(self) -> int:
        return self.sampler.num_batches * self.repeats

    def __iter__(self) -> Iterator[PromptBatch]:
        # Lightning may call iter() before it sets the epoch: all is read at the first next().
        epoch, position = self._resume or (-1, 0)
        self._resume = None
        self.epoch = self.sampler.epoch
        self.position = position if epoch == self.epoch else 0
        self.sampler.start = self.position // self.repeats
        for batch in self.loader:
            if self.on_skipped is not None:
                batch, skipped = batch
                self.on_skipped(skipped, self.epoch)
            for _ in range(self.position % self.repeats, self.repeats):
                self.position += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Position, and what it depends on."""
        epoch, position = self._resume or (self.epoch, self.position)
        return {"epoch": epoch, "position": position, **self._layout()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at the position of ``state``; batches before it are not loaded.

        Raises:
            SettingsError: the state was saved with other data or other batch sizes.
        """
        layout = self._layout()
        state = {"curriculum": 0} | state  # saved before there were any
        changed = [f"{name} was {state[name]}, is {layout[name]}" for name in layout if state[name] != layout[name]]
        if changed:
            raise SettingsError(
                f"the checkpoint's position in the training data does not fit: {'; '.join(changed)}. Resume with the "
                "settings it was saved with, or start a new run from its weights."
            )
        self._resume = (state["epoch"], state["position"])

    def _layout(self) -> dict[str, int]:
        return {
            "records": self.sampler.num_records,
            "global_batch": self.sampler.prompts_per_batch * self.sampler.world_size,
            "repeats": self.repeats,
            "seed": self.sampler.seed,
            "shuffle": int(self.sampler.shuffle),
            "curriculum": self.sampler.curriculum.fingerprint() if self.sampler.curriculum else 0,
        }


def train_loader(
    records: Sequence[Record],
    collate: Collate,
    sampler: PositionSampler,
    repeats: int,
    on_skipped: Callable[[Sequence[Skipped], int], None] | None = None,
    **options: Any,
) -> RepeatLoader:
    """Loader of training batches.

    Args:
        records: all of them.
        collate: makes a batch.
        sampler: says which records of which batch.
        repeats: of each batch.
        on_skipped: told which records were left out of a batch, because their images are broken, and the epoch; others
            are in their places. None makes such an image an error.
        options: of the `DataLoader`.
    """
    if on_skipped is None:
        batches = BatchSampler(sampler, sampler.prompts_per_batch, drop_last=True)
        loader = DataLoader(records, batch_sampler=batches, collate_fn=collate, **options)
    else:
        spares = SpareSampler(sampler)
        loader = DataLoader(_Rows(records), batch_sampler=spares, collate_fn=collate.with_spares, **options)
    return RepeatLoader(loader, sampler, repeats, on_skipped)


def evaluation_loader(
    records: Sequence[Record],
    collate: Collate,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    done: Container[str] = frozenset(),
    **options: Any,
) -> DataLoader:
    """Loader that gives each record to exactly one rank.

    The records are cut into batches in their order, and ranks take turns: which records share a batch depends neither
    on the ranks, as long as there are enough batches, nor on what a run that is gone on with has done already.

    Args:
        records: all of them.
        collate: makes a batch.
        batch_size: records of a batch, at most.
        rank: of this process.
        world_size: W.
        done: ids; batches of which all are done are left out.
        options: of the `DataLoader`.
    """
    size = min(batch_size, max(1, len(records) // world_size))
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    left = [batch for batch in batches if any(record.id not in done for record in batch)]
    sampler = TurnSampler(left, num_replicas=world_size, rank=rank)
    return DataLoader(left, batch_size=None, sampler=sampler, collate_fn=collate, **options)


class TurnSampler(DistributedSampler):
    """Every W-th index, beginning at the rank. Being a `DistributedSampler`, it is not replaced by one that pads."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, len(self.dataset), self.num_replicas))

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))
