"""Is a store sound? Answers in words, as a list of problems."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.identity import load_image_list
from ovd_d2.cache.index import Index, load_index, part_of
from ovd_d2.cache.manifest import CacheError, Manifest, ShardInfo
from ovd_d2.cache.records import Record, check_size, open_shard, read_back, value_problems
from ovd_d2.cache.shards import shard_files


def verify_store(path: str | os.PathLike[str], progress: bool = False) -> list[str]:
    """Read a whole store back and return what is wrong with it; an empty list means sound.

    Checked: the manifest's and the index's checksum, size and SHA-256 of every shard, the checksum
    of every record, whether index and shards agree, counts, image ids that are not in the list of
    images, NaN and infinity, box order, objectness range, unit norms. Damaged files are reported,
    never raised; every problem names the file and what to do.
    """
    try:
        folder = fetch_store(path)
        manifest = Manifest.load(folder)
    except CacheError as error:
        return [str(error)]
    index, problems = None, []
    try:
        index = load_index(folder, manifest) if manifest.complete else None
    except CacheError as error:
        problems.append(str(error))
    files: dict[str, ShardInfo | None] = {info.file: info for info in manifest.shards}
    if not manifest.complete:
        files = {path.name: None for path in shard_files(folder)}
    seen: set[int] = set()
    bar = tqdm(files.items(), "verify", unit="shard", disable=not progress)
    for number, (file, info) in enumerate(bar):
        try:
            found, ids = _verify_shard(folder / file, manifest, info, index, number)
            seen.update(ids)
        except (CacheError, OSError) as error:
            found = [str(error)]
        problems += [f"{problem}. {manifest.shard_fix(file)}" for problem in found]
    if not manifest.complete:
        problems.append(
            f"{folder} is unfinished: {len(seen)} of {manifest.dataset.num_images} images; run "
            f"{manifest.build_command} again with the same arguments"
        )
    return problems + _verify_list(folder, manifest, seen)


def _verify_shard(
    path: Path, manifest: Manifest, info: ShardInfo | None, index: Index | None, number: int
) -> tuple[list[str], list[int]]:
    """The problems and the image ids of a shard.

    Args:
        info: what a finished store's manifest says of it.
        number: of the shard in the index.

    Raises:
        DamagedFileError: it cannot be read, or a record does not fit its checksum.
    """
    if info is not None:
        check_size(path, info)
    ids, found = read_back(path, manifest.fields)
    problems = [] if info in (None, found) else [f"it is {found}, the manifest says {info}"]
    shard = open_shard(path, manifest.fields)
    if index is not None and not _is_indexed(shard, number, index):
        problems.append("its ids, offsets or checksums are not those of the index")
    return [f"{path}: {problem}" for problem in [*problems, *value_problems(shard)]], ids


def _is_indexed(shard: Record, number: int, index: Index) -> bool:
    """Does the index say of this shard what the shard says of itself?"""
    here = index.shard == number
    stored = part_of(shard, number).items()
    return all(np.array_equal(values, getattr(index, name)[here]) for name, values in stored)


def _verify_list(folder: Path, manifest: Manifest, seen: set[int]) -> list[str]:
    try:
        listed = load_image_list(folder, manifest.dataset)
    except CacheError as error:
        return [str(error)]
    foreign = [] if listed is None else sorted(seen - listed.keys())
    if not foreign:
        return []
    return [
        f"{folder}: {len(foreign)} records are of no image of its data set (first ids: "
        f"{foreign[:5]}); build the store again with --overwrite"
    ]
