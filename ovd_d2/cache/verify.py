"""Is a store sound, and is it the one a training needs? Answers in words, as lists of problems."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.identity import id_problems, identity_problems, load_image_list
from ovd_d2.cache.index import Index, load_index
from ovd_d2.cache.manifest import CacheError, Manifest, ShardInfo
from ovd_d2.cache.records import (
    Record,
    check_size,
    damaged_records,
    open_shard,
    value_problems,
)
from ovd_d2.cache.shards import shard_files
from ovd_d2.files import sha256_file

if TYPE_CHECKING:
    from ovd_d2.cache.store import RecordStore


def verify_store(path: str | os.PathLike[str], progress: bool = False) -> list[str]:
    """Read a whole store back and return what is wrong with it; an empty list means sound.

    Checked: the manifest's and the index's checksum, size and SHA-256 of every shard, the checksum
    of every record, whether index and shards agree, counts, image ids that are double or not in the
    list of images, NaN and infinity, box order, objectness range, unit norms. Damaged files are
    reported, never raised; every problem names the file and what to do.
    """
    try:
        folder = fetch_store(path)
        manifest = Manifest.load(folder)
    except CacheError as error:
        return [str(error)]
    index, problems = _verify_index(folder, manifest)
    seen: Counter[int] = Counter()
    listed: list[ShardInfo | None] = [*manifest.shards]
    files = [info.file for info in manifest.shards]
    if not manifest.complete:
        files = [path.name for path in shard_files(folder)]
        listed = [None] * len(files)
    for number, file in enumerate(tqdm(files, "verify", unit="shard", disable=not progress)):
        found = _verify_shard(folder / file, number, listed[number], manifest, index, seen)
        problems += [f"{problem}. {manifest.shard_fix(file)}" for problem in found]
    return problems + _verify_counts(folder, manifest, seen) + _verify_list(folder, manifest, seen)


def check_compatible(
    cache: RecordStore,
    *,
    teacher_fingerprint: str,
    embedding_dim: int,
    images: Collection[Mapping[str, Any]],
) -> list[str]:
    """Return why a training cannot use `cache`, all reasons at once; an empty list means it can.

    Args:
        cache: the opened `EmbeddingCache`.
        teacher_fingerprint: of the teacher that embedded the vocabulary.
        embedding_dim: width of the vocabulary's embeddings.
        images: every image the training will ask for (file_name, image_id, height, width); all of
            the data set that the cache was built for, or some.
    """
    manifest = cache.manifest
    problems = []
    if manifest.teacher != teacher_fingerprint:
        problems.append(
            f"teacher of the cache {cache.path}: expected '{teacher_fingerprint}' (the "
            f"vocabulary's), found '{manifest.teacher}'. Student and text must share one teacher: "
            f"{_rebuild_command(cache, teacher_fingerprint)}"
        )
    if manifest.embedding_dim != embedding_dim:
        problems.append(
            f"embedding width of the cache {cache.path}: expected {embedding_dim} (the "
            f"vocabulary's), found {manifest.embedding_dim}: "
            f"{_rebuild_command(cache, teacher_fingerprint)}"
        )
    fix = (
        "extract proposals for the training data set (tools/extract_proposals.py) and build its "
        f"cache: {_rebuild_command(cache, teacher_fingerprint, dataset='<training data set>')}"
    )
    return problems + coverage_problems(cache, images, fix)


def coverage_problems(
    store: RecordStore, images: Collection[Mapping[str, Any]], fix: str
) -> list[str]:
    """Why a training on these images cannot use a store: ids, other images, missing images.

    Args:
        store: of proposals or embeddings.
        images: as for `check_compatible`.
        fix: what to do, for the message.
    """
    if problems := id_problems(images):
        return problems
    problems = [f"{problem}. Otherwise {fix}" for problem in identity_problems(store, images)]
    wanted = {entry["image_id"] for entry in images}
    missing = sorted(image_id for image_id in wanted if image_id not in store)
    if missing:
        problems.append(
            f"images of the {store.kind} in {store.path}: expected the {len(wanted)} of the "
            f"training data set, {len(missing)} are missing (first ids: {missing[:5]}); they were "
            f"made for data set '{store.manifest.dataset.name}'. To train on these, {fix}"
        )
    return problems


def _rebuild_command(
    cache: RecordStore, teacher_fingerprint: str, dataset: str | None = None
) -> str:
    # A teacher's fingerprint is "<architecture>-<hash of the weights>".
    architecture = teacher_fingerprint.rpartition("-")[0] or "<architecture>"
    return (
        f"python tools/cache.py build --dataset {dataset or cache.manifest.dataset.name} "
        f"--proposals <proposals> --architecture {architecture} --pretrained <weights> "
        f"--output {cache.path} --overwrite"
    )


def _verify_index(folder: Path, manifest: Manifest) -> tuple[Index | None, list[str]]:
    if not manifest.complete:
        return None, []
    try:
        return load_index(folder, manifest), []
    except CacheError as error:
        return None, [str(error)]


def _verify_list(folder: Path, manifest: Manifest, seen: Counter[int]) -> list[str]:
    try:
        listed = load_image_list(folder, manifest.dataset)
    except CacheError as error:
        return [str(error)]
    foreign = [] if listed is None else sorted(seen.keys() - listed.keys())
    if not foreign:
        return []
    return [
        f"{folder}: {len(foreign)} records are of no image of its data set (first ids: "
        f"{foreign[:5]}); build the store again with --overwrite"
    ]


def _verify_shard(
    path: Path,
    number: int,
    info: ShardInfo | None,
    manifest: Manifest,
    index: Index | None,
    seen: Counter[int],
) -> list[str]:
    try:
        if info is not None:
            check_size(path, info)
        shard = open_shard(path, manifest.fields)
        problems = [] if info is None else _listing_problems(path, shard, info)
    except (CacheError, OSError) as error:
        return [str(error)]
    if index is not None:
        problems += _place_problems(shard, number, index)
    if damaged := damaged_records(shard):
        problems.append(
            f"{len(damaged)} of {len(shard['image_ids'])} records do not fit their checksums "
            f"(first ids: {damaged[:5]})"
        )
    problems += value_problems(shard)
    seen.update(shard["image_ids"].tolist())
    return [f"{path}: {problem}" for problem in problems]


def _listing_problems(path: Path, shard: Record, info: ShardInfo) -> list[str]:
    """Does the manifest say of this shard what the file is?"""
    problems = []
    if (checksum := sha256_file(path)) != info.sha256:
        problems.append(f"SHA-256 is {checksum}, the manifest says {info.sha256}")
    images, rows = len(shard["image_ids"]), len(shard["boxes"])
    if (images, rows) != (info.images, info.rows):
        problems.append(
            f"{images} images with {rows} rows, the manifest says {info.images} with {info.rows}"
        )
    return problems


def _place_problems(shard: Record, number: int, index: Index) -> list[str]:
    """Does the index say of this shard what the shard says of itself?"""
    here, offsets = index.shard == number, shard["offsets"].numpy()
    if (
        np.array_equal(shard["image_ids"].numpy(), index.image_ids[here])
        and np.array_equal(offsets[:-1], index.start[here])
        and np.array_equal(np.diff(offsets), index.rows[here])
        and np.array_equal(shard["checksums"].numpy(), index.checksums[here])
    ):
        return []
    return ["its ids, offsets or checksums are not those of the index"]


def _verify_counts(folder: Path, manifest: Manifest, seen: Counter[int]) -> list[str]:
    problems = []
    double = sorted(image_id for image_id, count in seen.items() if count > 1)
    if double:
        problems.append(
            f"{folder}: {len(double)} images are stored twice (first: {double[:5]}); build the "
            "store again with --overwrite"
        )
    expected = manifest.dataset.num_images
    again = f"run {manifest.build_command} again with the same arguments"
    if not manifest.complete:
        problems.append(f"{folder} is unfinished: {len(seen)} of {expected} images; {again}")
    elif len(seen) != expected:
        problems.append(
            f"{folder}: {len(seen)} readable images, the manifest says {expected}; {again}"
        )
    return problems
