"""Joins record stores: the parts of one build, or the finished stores of several data sets."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.identity import ImageList, add_list_command, dataset_info, load_image_list
from ovd_d2.cache.manifest import CacheError, DatasetInfo, Manifest, local_folder
from ovd_d2.cache.store import RecordStore, open_store
from ovd_d2.cache.writer import RecordWriter, Written
from ovd_d2.files import fingerprint_json

# Records made with another of these cannot be trained on together, or not be stored together.
_SHARED_KEYS = ("kind", "teacher", "embedding_dim", "dtype", "recipe")
_SHOWN_IDS = 5


@dataclass(frozen=True)
class MergeSummary:
    """What a finished merge amounts to.

    Attributes:
        written: the new store; what this run wrote it has copied.
        duplicates: records that were in more than one source, with equal content.
    """

    written: Written
    duplicates: int


def merge_stores(
    sources: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    images_per_shard: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> MergeSummary:
    """Write a new store with the records of all sources, which stay as they are.

    Records are copied as they are stored, each compared with its checksum. Stopped at any point,
    the new store is an unfinished one: the same call continues it. A record that several sources
    hold with equal content is written once.

    Args:
        sources: at least two folders: parts of one build, which together must hold every image of
            its data set, or finished stores of several data sets.
        path: folder of the new store.
        images_per_shard, overwrite: as for `RecordWriter`.

    Raises:
        CacheError: the sources do not fit together (every reason is named), one is damaged, or the
            folder holds something else.
    """
    start = time.perf_counter()
    stores = _open_all(sources, local_folder(path))
    owners, problems = _owners(stores)
    listed, list_problems = _image_list(stores)
    problems = [*_header_problems(stores), *problems, *list_problems]
    if missing := sorted(listed.keys() - owners.keys()):
        problems.append(
            f"{len(missing)} of {len(listed)} images are in no source (first ids: "
            f"{missing[:_SHOWN_IDS]}): is a part missing, or unfinished? Run its build again"
        )
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems)
        raise CacheError(f"these stores cannot be merged; nothing was written:\n{shown}")
    images = [{"image_id": image_id, **one._asdict()} for image_id, one in listed.items()]
    manifest = _merged_manifest(stores, images)
    with RecordWriter(
        path, manifest, images=images, images_per_shard=images_per_shard, overwrite=overwrite
    ) as writer:
        for image_id in tqdm(writer.waiting_ids, "merge", unit="image", disable=not progress):
            fields = owners[image_id].read_undecoded(image_id)
            record = {name: torch.from_numpy(values) for name, values in fields.items()}
            writer.add_encoded(image_id, record)
        writer.finish()
    return MergeSummary(writer.summary(start), sum(map(len, stores)) - len(owners))


def _open_all(sources: Sequence[str | os.PathLike[str]], target: Path) -> list[RecordStore]:
    folders = [fetch_store(source).resolve() for source in sources]
    if len(folders) < 2:
        raise CacheError(f"merging needs at least two stores, got {len(folders)}")
    if len(set(folders)) < len(folders):
        raise CacheError("a store is named twice: " + ", ".join(map(str, folders)))
    if target.resolve() in folders:
        raise CacheError(f"{target} is a source: sources stay as they are, take another folder")
    return [open_store(folder, allow_incomplete=True) for folder in folders]


def _owners(stores: Sequence[RecordStore]) -> tuple[dict[int, RecordStore], list[str]]:
    """A store that holds each image, and images that two stores hold with different content."""
    owners: dict[int, RecordStore] = {}
    checksums: dict[int, int] = {}
    conflicts: dict[tuple[Path, Path], list[int]] = {}
    for store in stores:
        index = store.index
        pairs = zip(index.image_ids.tolist(), index.checksums.tolist(), strict=True)
        for image_id, checksum in pairs:
            if checksums.setdefault(image_id, checksum) != checksum:
                conflicts.setdefault((owners[image_id].path, store.path), []).append(image_id)
            owners.setdefault(image_id, store)
    return owners, [
        f"{len(ids)} images have different content in {one} and {two} (first ids: "
        f"{ids[:_SHOWN_IDS]})"
        for (one, two), ids in conflicts.items()
    ]


def _header_problems(stores: Sequence[RecordStore]) -> list[str]:
    problems = [_differences(key, stores, key) for key in _SHARED_KEYS]
    for dataset in _datasets(stores):
        members = [store for store in stores if store.manifest.dataset == dataset]
        problems.append(_differences(f"proposals of '{dataset.name}'", members, "proposals"))
    return list(filter(None, problems))


def _differences(what: str, stores: Sequence[RecordStore], key: str) -> str:
    values = [store.manifest.header()[key] for store in stores]
    if all(value == values[0] for value in values):
        return ""
    pairs = zip(stores, values, strict=True)
    return f"{what}: " + "; ".join(f"{value!r} in {store.path}" for store, value in pairs)


def _image_list(stores: Sequence[RecordStore]) -> tuple[ImageList, list[str]]:
    """The images of all data sets by id, and where they do not fit."""
    merged: ImageList = {}
    problems = []
    # In the order of the fingerprints: the list must not depend on the order of the sources.
    for store in sorted(stores, key=lambda one: one.manifest.dataset.fingerprint):
        dataset = store.manifest.dataset
        listed = load_image_list(store.path, dataset)
        if listed is None:
            problems.append(
                f"{store.path} does not say of which images it is: run python "
                f"{add_list_command(store.path, dataset)}"
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
    return merged, problems


def _datasets(stores: Sequence[RecordStore]) -> list[DatasetInfo]:
    return list(dict.fromkeys(store.manifest.dataset for store in stores))


def _merged_manifest(stores: Sequence[RecordStore], images: Sequence[dict[str, Any]]) -> Manifest:
    dataset, *others = _datasets(stores)
    proposals = sorted({store.manifest.proposals for store in stores})
    if others:
        dataset = dataset_info(
            "+".join(sorted({dataset.name, *(one.name for one in others)})), images
        )
    joined = proposals[0] if len(proposals) == 1 else f"merged-{fingerprint_json(proposals)}"
    values = {key: getattr(stores[0].manifest, key) for key in _SHARED_KEYS}
    return Manifest(dataset=dataset, proposals=joined, **values)
