"""A training loader that can be resumed: the same next images, augmented alike.

Detectron2's loader starts its shuffle again when a training is resumed, and what its augmentations
draw depends on the number of workers and on how far these are ahead. Here everything follows from
one seed and the number of batches handed out, which a checkpoint holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config
from detectron2.data.samplers import RandomSubsetTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from numpy.typing import NDArray
from torch import Generator
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info
from tqdm import tqdm

from ovd_d2.seeding import kept_generators, mixed_seed, seed_generators

Mapper = Callable[[dict[str, Any]], Any]
Draw = tuple[int, int, int]  # seed of the loader, number of the draw on this rank, index

MAX_RETRIES = 100
# Sets the loader's random numbers apart from others of the same seed.
_AUGMENTATION, _RETRY = 1, 2
# What Detectron2's samplers call their seeds.
_SAMPLER_SEEDS = ("_seed", "_seed_subset")


class ResumableTrainLoader:
    """Batches without end; iterating goes on after the last batch that was handed out.

    The order of the images is that of Detectron2's samplers, grouped by aspect ratio as there
    (images wider than high, and the others), and does not depend on the number of workers. Each
    draw seeds the generators of random, NumPy and torch for its mapper.

    Attributes:
        dataset: the image dicts, before the mapper.
        sampler: a Detectron2 sampler, or any that gives the same indices each time it is iterated.
        batch_size: images per batch, of this process.
        seed: of the augmentation. The sampler has one of its own.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        mapper: Mapper | None,
        sampler: Sampler,
        batch_size: int,
        seed: int,
        is_wide: NDArray[np.bool_] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            dataset: image dicts by index.
            mapper: from an image dict to what the model takes; None: the dict itself. Where it
                returns None another image is drawn.
            sampler: of this rank's indices.
            batch_size: images per batch.
            seed: of the augmentation; whole number >= 0, the same on all ranks.
            is_wide: for each image whether it is wider than high, to group by; None: no
                grouping.
            collate_fn: from a list of `batch_size` mapped images to a batch; None: the list.
            num_workers: processes that read and augment.
            kwargs: of :class:`torch.utils.data.DataLoader`.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.sampler = sampler
        self._is_wide = is_wide
        self._collate = collate_fn
        self._items = _MappedDraws(dataset, mapper)
        self._options = {**kwargs, "num_workers": num_workers}
        self._batches = 0

    def state_dict(self) -> dict[str, int]:
        """Seeds and number of batches handed out, the same on all ranks."""
        found = {name: getattr(self.sampler, name, None) for name in _SAMPLER_SEEDS}
        seeds = {name: int(seed) for name, seed in found.items() if seed is not None}
        return {"seed": self.seed, "batches": self._batches, **seeds}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iterator goes on where that state was taken."""
        self.seed, self._batches = int(state["seed"]), int(state["batches"])
        for name in _SAMPLER_SEEDS:
            if name in state:
                setattr(self.sampler, name, state[name])
        if isinstance(self.sampler, RandomSubsetTrainingSampler):
            _choose_subset(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # Batches are consecutive draws: the workers share each batch, and few images wait.
        draws = itertools.chain.from_iterable(self._remaining())
        loader = DataLoader(
            self._items,
            sampler=_Draws(draws),
            batch_size=None,
            collate_fn=_as_it_is,
            # Else torch would draw from the generator that the model draws from.
            generator=Generator().manual_seed(mixed_seed(self.seed)),
            **self._options,
        )
        images = iter(loader)
        while batch := list(itertools.islice(images, self.batch_size)):
            self._batches += 1
            yield batch if self._collate is None else self._collate(batch)

    def _remaining(self) -> Iterator[list[Draw]]:
        """Draws of the batches that have not been handed out; no image is read for the others."""
        batches = self._all_batches()
        done = range(self._batches)
        for _ in tqdm(done, desc="finding the place in the shuffle", unit="batch", delay=2.0):
            next(batches)
        return batches

    def _all_batches(self) -> Iterator[list[Draw]]:
        groups: tuple[list[Draw], list[Draw]] = ([], [])
        for number, index in enumerate(self.sampler):
            group = groups[self._is_wide is not None and bool(self._is_wide[index])]
            group.append((self.seed, number, index))
            if len(group) == self.batch_size:
                yield group[:]
                group.clear()


class _Draws(Sampler):
    """What torch's loader asks for: an iterable that is a sampler."""

    def __init__(self, draws: Iterable[Draw]) -> None:
        self._draws = draws

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._draws)


class _MappedDraws(Dataset):
    """Image dicts mapped with the random numbers of their draw."""

    def __init__(self, dataset: Dataset, mapper: Mapper | None) -> None:
        self._dataset = dataset
        self._mapper = None if mapper is None else PicklableWrapper(mapper)
        self._rank = comm.get_rank()

    def __getitem__(self, draw: Draw) -> Any:
        if get_worker_info() is not None:
            return self._map(draw)
        with kept_generators():  # the model's are the same with workers and without
            return self._map(draw)

    def _map(self, draw: Draw) -> Any:
        seed, number, index = draw
        if self._mapper is None:
            return self._dataset[index]
        key = (seed, self._rank, number)
        for attempt in range(MAX_RETRIES):
            seed_generators(*key, _AUGMENTATION, attempt, devices=False)
            mapped = self._mapper(self._dataset[index])
            if mapped is not None:
                return mapped
            retry = np.random.default_rng([*key, _RETRY, attempt])
            index = int(retry.integers(len(self._dataset)))  # type: ignore[arg-type]
        raise RuntimeError(
            f"the mapper returned None for {MAX_RETRIES} images in a row; the last is {index}"
        )


def _choose_subset(sampler: RandomSubsetTrainingSampler) -> None:
    """As in its `__init__`, by the seed it has now."""
    generator = Generator().manual_seed(sampler._seed_subset)
    chosen = torch.randperm(sampler._size, generator=generator)[: sampler._size_subset]
    sampler._indexes_subset = chosen


def _as_it_is(item: Any) -> Any:
    return item


def _checked_batch_size(total: int) -> int:
    ranks = comm.get_world_size()
    if total <= 0 or total % ranks:
        raise ValueError(
            f"total_batch_size is {total}: not a multiple of the number of processes, {ranks}"
        )
    return total // ranks


@configurable(from_config=_train_loader_from_config)
def build_resumable_train_loader(
    dataset: list[dict[str, Any]] | Dataset,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> ResumableTrainLoader:
    """Takes the place of Detectron2's `build_detection_train_loader`, with the same arguments.

    Also called as there with a config: `build_resumable_train_loader(cfg, mapper=..., dataset=...)`
    takes sampler, batch size, grouping and workers from `DATALOADER` and `SOLVER`. The seeds are
    drawn from NumPy's generator, the same on all ranks (all must call this), so that they follow
    from SEED where that is set; a checkpoint keeps them.

    Args:
        dataset: image dicts; with grouping each has "width" and "height".
        mapper: see :class:`ResumableTrainLoader`.
        sampler: None: Detectron2's `TrainingSampler`.
        total_batch_size: images per batch of all ranks.
        aspect_ratio_grouping: batches are of wide images, or of the others.
        num_workers: processes per rank.
        collate_fn, kwargs: see :class:`ResumableTrainLoader`.

    Raises:
        TypeError: an iterable data set, whose order is its own.
        ValueError: no multiple of the number of ranks.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{type(dataset).__name__} is an iterable data set: its order cannot be resumed; give "
            "a list, or a data set that is read by index"
        )
    batch_size = _checked_batch_size(total_batch_size)
    indices = range(len(dataset))  # type: ignore[arg-type]
    is_wide = None
    if aspect_ratio_grouping:
        is_wide = np.fromiter(map(_wider_than_high, (dataset[k] for k in indices)), dtype=bool)
    return ResumableTrainLoader(
        DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset,
        mapper=mapper,
        sampler=TrainingSampler(len(indices)) if sampler is None else sampler,
        batch_size=batch_size,
        seed=comm.shared_random_seed(),
        is_wide=is_wide,
        collate_fn=collate_fn,
        num_workers=num_workers,
        **kwargs,
    )


def _wider_than_high(record: dict[str, Any]) -> bool:
    return record["width"] > record["height"]
