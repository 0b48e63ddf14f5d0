"""Is a store sound? Answers in words, as a list of problems."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.identity import load_image_list
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
    files: dict[str, ShardInfo | None] = {info.file: info for info in manifest.shards}
    if not manifest.complete:
        files = {path.name: None for path in shard_files(folder)}
    seen: Counter[int] = Counter()
    bar = tqdm(files.items(), "verify", unit="shard", disable=not progress)
    for number, (file, info) in enumerate(bar):
        try:
            found, ids = _verify_shard(folder / file, manifest, info, index, number)
            seen.update(ids)
        except (CacheError, OSError) as error:
            found = [str(error)]
        problems += [f"{problem}. {manifest.shard_fix(file)}" for problem in found]
    return problems + _verify_counts(folder, manifest, seen) + _verify_list(folder, manifest, seen)


def _verify_index(folder: Path, manifest: Manifest) -> tuple[Index | None, list[str]]:
    if not manifest.complete:
        return None, []
    try:
        return load_index(folder, manifest), []
    except CacheError as error:
        return None, [str(error)]


def _verify_shard(
    path: Path, manifest: Manifest, info: ShardInfo | None, index: Index | None, number: int
) -> tuple[list[str], list[int]]:
    """The problems and the image ids of a shard.

    Args:
        info: what a finished store's manifest says of it.
        number: of the shard in the index.

    Raises:
        DamagedFileError: it cannot be read at all.
    """
    if info is not None:
        check_size(path, info)
    shard = open_shard(path, manifest.fields)
    ids: list[int] = shard["image_ids"].tolist()
    problems = [] if info is None else _listing_problems(path, shard, info)
    if index is not None:
        problems += _place_problems(shard, number, index)
    if damaged := damaged_records(shard):
        problems.append(
            f"{len(damaged)} of {len(ids)} records do not fit their checksums "
            f"(first ids: {damaged[:5]})"
        )
    return [f"{path}: {problem}" for problem in [*problems, *value_problems(shard)]], ids


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
    pairs = (
        (shard["image_ids"].numpy(), index.image_ids),
        (offsets[:-1], index.start),
        (np.diff(offsets), index.rows),
        (shard["checksums"].numpy(), index.checksums),
    )
    if all(np.array_equal(stored, indexed[here]) for stored, indexed in pairs):
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
