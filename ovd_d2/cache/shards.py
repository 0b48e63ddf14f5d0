"""Which images lie in which shard, which shards a folder has, and deleting a store.

Shard i of a build holds the images i * n to (i + 1) * n - 1 of the data set, in the order of their
ids, whoever writes it and whenever. It is the unit of commit: written under a temporary name that
no other process has, flushed, then renamed. So a shard is whole or absent at any moment, and what
is left to do after a crash is what is absent or damaged. Nothing has to be locked: of two processes
that build one shard either result is valid.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.cache.identity import IMAGES_FILE
from ovd_d2.cache.index import INDEX_FILE, find_index
from ovd_d2.cache.manifest import (
    MANIFEST_FILE,
    CacheError,
    DamagedFileError,
    Manifest,
    ShardInfo,
    images_per_shard_of,
    is_shard_name,
    shard_name,
)
from ovd_d2.cache.records import describe_shard, open_shard, read_back
from ovd_d2.files import TEMPORARY_SUFFIX, flush_folder

logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 64  # 20 MB at 300 proposals x 512 fp16; what a killed process loses at most
_READERS = 4  # threads that read shards back; hashing lets go of the interpreter
# What versions before 0.2 left of a build: images not yet in a shard, and a lock.
_OLD_FOLDERS, _OLD_LOCK = ("building", "pending"), ".writer.lock"


@dataclass(frozen=True)
class PlannedShard:
    """A shard that a build has to write: its file name and its image ids, ascending."""

    file: str
    image_ids: tuple[int, ...]


def plan_shards(image_ids: Sequence[int], images_per_shard: int) -> list[PlannedShard]:
    """All shards of a build, in order; `image_ids` ascend."""
    starts = range(0, len(image_ids), images_per_shard)
    parts = [tuple(image_ids[start : start + images_per_shard]) for start in starts]
    return [PlannedShard(shard_name(images_per_shard, k), part) for k, part in enumerate(parts)]


def choose_images_per_shard(folder: Path, asked: int | None) -> int:
    """How many images a shard holds: as asked, as in the folder, or `IMAGES_PER_SHARD`.

    Raises:
        CacheError: the folder has shards of another size than `asked`.
    """
    sizes = [images_per_shard_of(path.name) for path in shard_files(folder)]
    found = next((size for size in sizes if size is not None), asked or IMAGES_PER_SHARD)
    if found != (asked or found):
        raise CacheError(
            f"{folder} has shards of {found} images, {asked} are asked for; leave "
            "--images-per-shard out, take another folder or --overwrite"
        )
    return found


def plan_store(
    folder: Path, manifest: Manifest, image_ids: Sequence[int], images_per_shard: int
) -> list[PlannedShard]:
    """All shards that a store must have; those of a finished store stay as they are.

    Args:
        manifest: as it is in the folder. Shards that a version before 0.2 wrote hold other images
            than those planned today; they are kept.
        image_ids: of the data set, ascending.
    """
    if index := find_index(folder, manifest):
        return [
            PlannedShard(info.file, tuple(index.image_ids[index.shard == number].tolist()))
            for number, info in enumerate(manifest.shards)
        ]
    older = _find_older_shards(folder, manifest)
    kept = {image_id for shard in older for image_id in shard.image_ids}
    left = [image_id for image_id in image_ids if image_id not in kept]
    return [*older, *plan_shards(left, images_per_shard)]


def find_whole_shards(
    folder: Path, manifest: Manifest, planned: Sequence[PlannedShard]
) -> dict[str, ShardInfo]:
    """The planned shards that are in the folder and whole, by file name.

    Every byte is read and compared with the checksums of the records and, of a shard that the
    manifest lists, with its SHA-256. Damaged shards are named in the log.
    """
    listed = {info.file: info for info in manifest.shards}
    # A network file system may go on denying a file that it was asked for before it was written;
    # a list of the folder is up to date.
    present = {path.name for path in shard_files(folder)}

    def read(shard: PlannedShard) -> ShardInfo | None:
        path = folder / shard.file
        if shard.file not in present:
            return None
        try:
            ids, info = read_back(path, manifest.fields)
            if ids != list(shard.image_ids) or listed.get(shard.file, info) != info:
                raise DamagedFileError(f"{path} is damaged (it is not the shard that was written)")
        except (DamagedFileError, OSError) as error:
            logger.warning("%s; its images are built again", error)
            return None
        return info

    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(read, planned)
        return {info.file: info for info in found if info is not None}


def _find_older_shards(folder: Path, manifest: Manifest) -> list[PlannedShard]:
    older = []
    for info in manifest.shards:
        if images_per_shard_of(info.file) is None:
            try:
                ids = open_shard(folder / info.file, manifest.fields)["image_ids"].tolist()
            except DamagedFileError as error:
                logger.warning("%s; its images are built again", error)
                continue
            older.append(PlannedShard(info.file, tuple(ids)))
    return older


def list_sealed_shards(folder: Path, manifest: Manifest) -> list[ShardInfo]:
    """The shards of an unfinished store, by their headers alone: without SHA-256.

    Raises:
        DamagedFileError: one of them is damaged.
    """
    paths = shard_files(folder)
    return [describe_shard(path, open_shard(path, manifest.fields)) for path in paths]


def shard_files(folder: Path) -> list[Path]:
    """All shards in the folder, listed or not, by name."""
    return sorted(one for one in folder.iterdir() if is_shard_name(one.name) and one.is_file())


def remove_leftovers(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete what killed processes left: half-written files, and shards not to be kept."""
    shards = [path for path in shard_files(folder) if path.name not in keep]
    for path in [*shards, *folder.glob(f".*{TEMPORARY_SUFFIX}")]:
        path.unlink(missing_ok=True)


def delete_store(folder: Path) -> None:
    """Delete the files of a record store; anything else in the folder stays."""
    # The manifest goes last: until then the rest is still recognisable as a store.
    remove_leftovers(folder)
    for name in (IMAGES_FILE, INDEX_FILE, _OLD_LOCK):
        (folder / name).unlink(missing_ok=True)
    for name in _OLD_FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    flush_folder(folder)
