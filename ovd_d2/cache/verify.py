"""Is a store sound, and is it the one a training needs? Answers in words, as lists of problems."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ovd_d2.cache.manifest import CacheError, Manifest, ShardInfo, local_folder
from ovd_d2.cache.records import STORED_NORM_TOLERANCE, Record, open_shard, value_problems
from ovd_d2.files import sha256_file

if TYPE_CHECKING:
    from ovd_d2.cache.store import RecordStore


def verify_store(path: str | os.PathLike[str], progress: bool = False) -> list[str]:
    """Read a whole store back and return what is wrong with it; an empty list means sound.

    Checked: the manifest, the checksum of every shard, counts, image ids that are double, NaN and
    infinity, box order, objectness range, unit norms. Damaged files are reported, never raised.
    """
    folder = local_folder(path)
    try:
        manifest = Manifest.load(folder)
    except CacheError as error:
        return [str(error)]
    problems: list[str] = []
    seen: Counter[int] = Counter()
    shards = tqdm(manifest.shards, desc="verify", unit="shard", disable=not progress)
    for shard in shards:
        problems += _verify_shard(folder / shard.file, shard, manifest, seen)
    problems += _verify_counts(folder, manifest, seen)
    return problems


def check_compatible(
    cache: RecordStore, *, teacher_fingerprint: str, embedding_dim: int, image_ids: Iterable[int]
) -> list[str]:
    """Return why a training cannot use `cache`, all reasons at once; an empty list means it can.

    Args:
        cache: the opened `EmbeddingCache`.
        teacher_fingerprint: of the teacher that embedded the vocabulary.
        embedding_dim: width of the vocabulary's embeddings.
        image_ids: every image the training will ask for.
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
    wanted = set(image_ids)
    missing = sorted(image_id for image_id in wanted if image_id not in cache)
    if missing:
        problems.append(
            f"images in the cache {cache.path}: expected the {len(wanted)} of the training data "
            f"set, {len(missing)} are missing (first ids: {missing[:5]}); the cache was built for "
            f"data set '{manifest.dataset.name}'. Extract proposals for the training data set "
            "(tools/extract_proposals.py) and build its cache: "
            f"{_rebuild_command(cache, teacher_fingerprint, dataset='<training data set>')}"
        )
    return problems


def _rebuild_command(
    cache: RecordStore, teacher_fingerprint: str, dataset: str | None = None
) -> str:
    # A teacher's fingerprint is "<architecture>-<hash of the weights>".
    architecture = teacher_fingerprint.rpartition("-")[0] or "<architecture>"
    return (
        f"python tools/build_cache.py --dataset {dataset or cache.manifest.dataset.name} "
        f"--proposals <proposals> --architecture {architecture} --pretrained <weights> "
        f"--output {cache.path} --overwrite"
    )


def _verify_shard(path: Path, info: ShardInfo, manifest: Manifest, seen: Counter[int]) -> list[str]:
    try:
        shard = open_shard(path, manifest.fields)
        checksum = sha256_file(path)
    except (CacheError, OSError) as error:
        return [str(error)]
    problems = []
    if checksum != info.sha256:
        problems.append(f"{path}: SHA-256 is {checksum}, the manifest says {info.sha256}")
    problems += [f"{path}: {problem}" for problem in _content_problems(shard, info)]
    seen.update(shard["image_ids"].tolist())
    return problems


def _content_problems(shard: Record, info: ShardInfo) -> list[str]:
    images, rows = len(shard["image_ids"]), int(shard["offsets"][-1])
    problems = value_problems(shard, STORED_NORM_TOLERANCE)
    if (images, rows) != (info.images, info.rows):
        problems.append(
            f"{images} images with {rows} rows, the manifest says {info.images} with {info.rows}"
        )
    return problems


def _verify_counts(folder: Path, manifest: Manifest, seen: Counter[int]) -> list[str]:
    problems = []
    double = sorted(image_id for image_id, count in seen.items() if count > 1)
    if double:
        problems.append(f"{folder}: {len(double)} images are stored twice (first: {double[:5]})")
    expected = manifest.dataset.num_images
    if not manifest.complete:
        problems.append(f"{folder} is unfinished: {len(seen)} of {expected} images; run it again")
    elif len(seen) != expected:
        problems.append(f"{folder}: {len(seen)} images, the manifest says {expected}")
    return problems
