"""Joins record stores: the parts of one build, or the stores of several data sets."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.identity import (
    ADD_COMMAND,
    ImageList,
    dataset_fingerprint,
    list_entries,
    load_image_list,
)
from ovd_d2.cache.index import load_index
from ovd_d2.cache.manifest import CacheError, DatasetInfo, Manifest, local_folder
from ovd_d2.cache.ranks import Ranks
from ovd_d2.cache.records import Record
from ovd_d2.cache.store import RecordStore, open_store
from ovd_d2.cache.writer import IMAGES_PER_SHARD, RecordWriter
from ovd_d2.files import fingerprint_json

MERGE_WRITER = "m000"
# Records made with another of these cannot be trained on together, or not be stored together.
_SHARED_KEYS = ("kind", "teacher", "embedding_dim", "dtype", "recipe")
_SHOWN_IDS = 5


@dataclass(frozen=True)
class MergeSummary:
    """What a finished merge amounts to.

    Attributes:
        images, proposals: records and rows in the new store.
        images_copied: by this run; the others were there already.
        duplicates: records that were in more than one source, with equal content.
        bytes: size of all shards.
        seconds: wall-clock time of this run.
    """

    path: Path
    images: int
    images_copied: int
    proposals: int
    duplicates: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Records:
    """Every record of every source, ascending by image id.

    Attributes:
        image_ids, checksums, source: (N,); ids may occur more than once.
    """

    image_ids: NDArray[np.int64]
    checksums: NDArray[np.int64]
    source: NDArray[np.int64]

    @property
    def first(self) -> NDArray[np.bool_]:
        """(N,) True for one record of each image."""
        return np.concatenate([[True], np.diff(self.image_ids) != 0])[: len(self.image_ids)]


def merge_stores(
    sources: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    overwrite: bool = False,
    progress: bool = True,
) -> MergeSummary:
    """Write a new store with the records of all sources, which stay as they are.

    Records are copied as they are stored, each compared with its checksum on the way; a shard at a
    time is in memory. Stopped at any point, the new store is an unfinished one: the same call
    continues it. A record that several sources hold with equal content is written once.

    Args:
        sources: at least two folders: parts of one build, which together must hold every image of
            its data set, or finished stores of several data sets.
        path: folder of the new store.

    Raises:
        CacheError: the sources do not fit together (every reason is named), one is damaged, or the
            folder holds something else.
    """
    start = time.perf_counter()
    stores = _open_all(sources, local_folder(path))
    records = _all_records(stores)
    listed, list_problems = _image_list(stores)
    problems = [
        *_header_problems(stores), *_conflicts(stores, records), *_gaps(stores), *list_problems
    ]  # fmt: skip
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems)
        raise CacheError(f"these stores cannot be merged; nothing was written:\n{shown}")
    first = records.first
    ids, owners = records.image_ids[first].tolist(), records.source[first].tolist()
    images = None if listed is None else list_entries(listed)
    with RecordWriter(
        path,
        _merged_manifest(stores, images),
        images_per_shard,
        overwrite,
        images=images,
        writer=MERGE_WRITER,
        ranks=Ranks(),
    ) as writer:
        waiting = [(one, stores[k]) for one, k in zip(ids, owners, strict=True)
                   if one not in writer.done_ids]  # fmt: skip
        _copy(waiting, writer, images_per_shard, total=len(ids), progress=progress)
        finished = writer.finish()
        _check_content(writer.path, finished, records)
    return MergeSummary(
        path=writer.path,
        images=finished.num_images,
        images_copied=len(waiting),
        proposals=finished.num_rows,
        duplicates=int((~first).sum()),
        bytes=sum(shard.bytes for shard in finished.shards),
        seconds=time.perf_counter() - start,
    )


def _open_all(sources: Sequence[str | os.PathLike[str]], target: Path) -> list[RecordStore]:
    folders = [fetch_store(source).resolve() for source in sources]
    if len(folders) < 2:
        raise CacheError(f"merging needs at least two stores, got {len(folders)}")
    if len(set(folders)) < len(folders):
        raise CacheError("a store is named twice: " + ", ".join(map(str, folders)))
    if target.resolve() in folders:
        raise CacheError(f"{target} is a source: sources stay as they are, take another folder")
    return [open_store(folder, allow_incomplete=True) for folder in folders]


def _all_records(stores: Sequence[RecordStore]) -> _Records:
    ids = np.concatenate([store.index.image_ids for store in stores])
    checksums = np.concatenate([store.index.checksums for store in stores])
    source = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    order = np.argsort(ids, kind="stable")
    return _Records(ids[order], checksums[order], source[order])


def _header_problems(stores: Sequence[RecordStore]) -> list[str]:
    headers = [store.manifest.header() for store in stores]
    problems = []
    for key in _SHARED_KEYS:
        if any(header[key] != headers[0][key] for header in headers):
            problems.append(f"{key}: {_of_each(stores, [header[key] for header in headers])}")
    for dataset in _datasets(stores):
        members = [store for store in stores if store.manifest.dataset == dataset]
        found = [store.manifest.proposals for store in members]
        if len(set(found)) > 1:
            problems.append(f"proposals of '{dataset.name}': {_of_each(members, found)}")
    return problems


def _of_each(stores: Sequence[RecordStore], values: Sequence[Any]) -> str:
    pairs = zip(stores, values, strict=True)
    return "; ".join(f"{value!r} in {store.path}" for store, value in pairs)


def _conflicts(stores: Sequence[RecordStore], records: _Records) -> list[str]:
    """Images that two sources hold with different content."""
    same_id = np.diff(records.image_ids) == 0
    rows = np.flatnonzero(same_id & (np.diff(records.checksums) != 0))
    if not len(rows):
        return []
    pairs = {(int(records.source[row]), int(records.source[row + 1])) for row in rows}
    between = "; ".join(f"{stores[one].path} and {stores[two].path}" for one, two in sorted(pairs))
    ids = np.unique(records.image_ids[rows])
    return [
        f"{len(ids)} images have different content in {between} (first ids: "
        f"{ids[:_SHOWN_IDS].tolist()})"
    ]


def _gaps(stores: Sequence[RecordStore]) -> list[str]:
    """Data sets of which images are missing in all sources."""
    problems = []
    for dataset in _datasets(stores):
        members = [store for store in stores if store.manifest.dataset == dataset]
        found = len(np.unique(np.concatenate([store.index.image_ids for store in members])))
        if found != dataset.num_images:
            names = ", ".join(str(store.path) for store in members)
            problems.append(
                f"data set '{dataset.name}' has {dataset.num_images} images, {names} hold {found} "
                "of them: is a part missing, or unfinished? Run its build again"
            )
    return problems


def _image_list(stores: Sequence[RecordStore]) -> tuple[ImageList | None, list[str]]:
    """The images of all data sets by id, and where they do not fit; None: one says nothing."""
    merged: ImageList = {}
    problems, unlisted = [], False
    # In the order of the fingerprints: the list must not depend on the order of the sources.
    for dataset in sorted(_datasets(stores), key=lambda one: one.fingerprint):
        listed = _list_of(dataset, stores)
        if listed is None:
            unlisted = True
            problems.append(
                f"no store of data set '{dataset.name}' says of which images it is: run python "
                f"{ADD_COMMAND} STORE --dataset {dataset.name}"
            )
            continue
        others = [one for one in listed if one in merged and not listed[one].fits(merged[one])]
        if others:
            first = others[0]
            problems.append(
                f"{len(others)} ids mean one image in data set '{dataset.name}' and another in a "
                f"second one, first: image {first} is {listed[first]} and {merged[first]}"
            )
        merged = {**listed, **merged}
    if unlisted and len(_datasets(stores)) == 1:
        return None, []  # the parts of an older build make an older store
    return merged, problems


def _list_of(dataset: DatasetInfo, stores: Sequence[RecordStore]) -> ImageList | None:
    members = [store for store in stores if store.manifest.dataset == dataset]
    lists = (load_image_list(store.path, dataset) for store in members)
    return next((listed for listed in lists if listed is not None), None)


def _datasets(stores: Sequence[RecordStore]) -> list[DatasetInfo]:
    return list(dict.fromkeys(store.manifest.dataset for store in stores))


def _merged_manifest(
    stores: Sequence[RecordStore], images: Sequence[dict[str, Any]] | None
) -> Manifest:
    model, datasets = stores[0].manifest, _datasets(stores)
    values = {key: getattr(model, key) for key in _SHARED_KEYS}
    if images is None or len(datasets) == 1:
        return Manifest(dataset=datasets[0], proposals=model.proposals, **values)
    proposals = sorted({store.manifest.proposals for store in stores})
    merged = DatasetInfo(
        name="+".join(sorted({dataset.name for dataset in datasets})),
        fingerprint=dataset_fingerprint(images),
        num_images=len(images),
    )
    joined = proposals[0] if len(proposals) == 1 else f"merged-{fingerprint_json(proposals)}"
    return Manifest(dataset=merged, proposals=joined, **values)


def _copy(
    waiting: Sequence[tuple[int, RecordStore]],
    writer: RecordWriter,
    images_per_shard: int,
    *,
    total: int,
    progress: bool,
) -> None:
    bounds = [*range(0, len(waiting), images_per_shard), len(waiting)]
    with tqdm(total=total, desc="merge", unit="image", initial=total - len(waiting),
              disable=not progress) as bar:  # fmt: skip
        for begin, end in pairwise(bounds):
            chunk = waiting[begin:end]
            writer.add_shard([(image_id, _checked(store, image_id)) for image_id, store in chunk])
            bar.update(len(chunk))


def _checked(store: RecordStore, image_id: int) -> Record:
    """A record as it is stored, compared with its checksum."""
    return {name: torch.from_numpy(values) for name, values in store.raw(image_id).items()}


def _check_content(folder: Path, manifest: Manifest, records: _Records) -> None:
    """The new index must say of every image what the sources say."""
    index, first = load_index(folder, manifest), records.first
    if not (
        np.array_equal(index.image_ids, records.image_ids[first])
        and np.array_equal(index.checksums, records.checksums[first])
    ):
        raise CacheError(
            f"{folder} does not hold what its sources hold; a disk or memory fault? Delete it and "
            "merge again"
        )
