"""What a crash left in a folder -> a sound store, before a build goes on.

Run by rank 0 alone, under the store's lock, before any writer of the build has started. A writer of
another build that still lives holds its own lock; then nothing is touched.

found after a crash                                   done
----------------------------------------------------  -------------------------------------------
no manifest, no records                               the header is written: a new store
records, but no manifest                              refused: they have no identity
manifest of another header, or damaged                refused; --overwrite deletes the store
shard in a journal, not in the manifest               checked, listed in the manifest
shard missing, or not of the listed counts, size or   removed; its images are built again
SHA-256
shard with an image that a listed shard holds         removed
shard in neither journal nor manifest                 removed: its images are still pending
journal damaged                                       its shards count as unlisted
pending file, sound, image in no shard                merged into a shard
pending file, sound, image in a shard                 removed: the crash came before its deletion
pending file damaged, or of another image             removed; the image is built again
temporary file (.*.tmp)                               removed
index of a store that is not complete                 removed; `finish` writes a new one
index of a complete store, damaged or missing         the same
building/<writer>/ with nothing left to take over     removed

The order makes a crash during recovery as harmless as any other: the manifest lists a shard before
its journal or its pending files go, and whatever the manifest does not list is removed only after
all journals have been taken over. Nothing depends on times: neither on clocks nor on file dates.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ovd_d2.cache.index import INDEX_FILE, load_index
from ovd_d2.cache.layout import (
    WriterFolder,
    next_shard_number,
    remove_empty_building,
    shard_files,
    store_files,
    temporary_files,
    writer_folders,
)
from ovd_d2.cache.locking import FileLock
from ovd_d2.cache.manifest import (
    MANIFEST_FILE,
    CacheError,
    DamagedFileError,
    Manifest,
    ShardInfo,
    shard_name,
)
from ovd_d2.cache.records import Record, open_shard, pack_shard, read_pending, shard_info
from ovd_d2.files import atomic_write, sha256_file

logger = logging.getLogger(__name__)

_READERS = 4  # threads that read shards back; hashing lets go of the interpreter
_BAR_DELAY = 2.0  # seconds before a progress bar appears


class Recovered(NamedTuple):
    """A sound store: its manifest lists every record in the folder.

    Attributes:
        manifest: as it stands on the disk.
        done: the image ids in its shards.
    """

    manifest: Manifest
    done: frozenset[int]


def recover(folder: Path, wanted: Manifest, images_per_shard: int, writer: str) -> Recovered:
    """Bring a folder into the state between two builds, by the rules above.

    Args:
        folder: of the store; the caller holds its lock.
        wanted: header of the build that is about to start.
        images_per_shard: pending files merged into one shard.
        writer: names the shards that are made of pending files.

    Raises:
        CacheError: another build, other files, or a writer that still lives.
    """
    manifest = _open_manifest(folder, wanted)
    with writers_locked(folder) as writers:
        manifest, done = _take_over_shards(folder, manifest, writers)
        _remove_litter(folder, manifest)
        for old in writers:
            manifest = _merge_pending(folder, manifest, old, done, images_per_shard, writer)
        _remove_building(folder, writers)
    return Recovered(manifest, frozenset(done))


@contextlib.contextmanager
def writers_locked(folder: Path) -> Iterator[list[WriterFolder]]:
    """The folders of all old writers, none of which lives."""
    with contextlib.ExitStack() as locks:
        writers = writer_folders(folder)
        for writer in writers:
            locks.enter_context(writer_lock(folder, writer))
        yield writers


def writer_lock(folder: Path, writer: WriterFolder) -> FileLock:
    """The lock that a writer holds while it lives.

    Raises:
        CacheError: it is held; the writer is named.
    """
    return FileLock(writer.lock_file, f"{folder} as {writer.name}")


def save_shards(folder: Path, manifest: Manifest, shards: list[ShardInfo]) -> Manifest:
    """Write the manifest of an unfinished store with these shards."""
    changed = replace(manifest, index=None, shards=shards)
    changed.save(folder)
    return changed


def write_shard(folder: Path, writer: str, records: list[tuple[int, Record]]) -> ShardInfo:
    """Write the next shard of a writer, whole or not at all."""
    name = shard_name(writer, next_shard_number(folder, writer))
    content = pack_shard(records)
    with atomic_write(folder / name) as temporary:
        temporary.write_bytes(content)
    return shard_info(name, records, content)


def _open_manifest(folder: Path, wanted: Manifest) -> Manifest:
    if not (folder / MANIFEST_FILE).exists():
        foreign = store_files(folder)
        if foreign:
            raise CacheError(
                f"{folder} holds {foreign[0].name} but no {MANIFEST_FILE}; take another folder "
                "or --overwrite to delete it"
            )
        fresh = replace(wanted, index=None, shards=[])
        fresh.save(folder)
        return fresh
    found = Manifest.load(folder)
    differences = found.differences(wanted)
    if differences:
        raise CacheError(
            f"{folder} was built with other settings: {'; '.join(differences)}. Take another "
            "folder or --overwrite to build it again"
        )
    return found


def _take_over_shards(
    folder: Path, manifest: Manifest, writers: list[WriterFolder]
) -> tuple[Manifest, set[int]]:
    """List the sound shards of manifest and journals, each image once."""
    listed = {shard.file: shard for shard in manifest.shards}
    journals = {shard.file: shard for writer in writers for shard in _journal(writer)}
    sound: list[ShardInfo] = []
    done: set[int] = set()
    for shard, ids in _read_back(folder, manifest, [*({**journals, **listed}).values()]):
        if ids is not None and not done & ids:
            sound.append(shard)
            done |= ids
        elif ids is not None:
            logger.warning("%s holds images of another shard; removed", folder / shard.file)
    if sound != manifest.shards or not _index_is_sound(folder, manifest):
        manifest = save_shards(folder, manifest, sound)
    return manifest, done


def _index_is_sound(folder: Path, manifest: Manifest) -> bool:
    if manifest.complete:
        try:
            load_index(folder, manifest)
        except DamagedFileError as error:
            logger.warning("%s", error)
            return False
    return True


def _journal(writer: WriterFolder) -> list[ShardInfo]:
    try:
        return writer.load_journal()
    except (ValueError, TypeError) as error:
        logger.warning(
            "the journal of %s is damaged (%s); its images are built again", writer.path, error
        )
        return []


def _read_back(
    folder: Path, manifest: Manifest, shards: list[ShardInfo]
) -> Iterator[tuple[ShardInfo, set[int] | None]]:
    """The image ids of every shard, in the order of the list; None for a damaged one."""
    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(lambda shard: _sound_ids(folder, manifest, shard), shards)
        bar = tqdm(results, "check shards", len(shards), unit="shard", delay=_BAR_DELAY)
        yield from zip(shards, bar, strict=True)


def _sound_ids(folder: Path, manifest: Manifest, shard: ShardInfo) -> set[int] | None:
    path = folder / shard.file
    try:
        content = open_shard(path, manifest.fields)
        ids, rows = content["image_ids"].tolist(), len(content["boxes"])
        found = ShardInfo(shard.file, len(ids), rows, path.stat().st_size, sha256_file(path))
        if found != shard:
            raise DamagedFileError(
                f"{path} is damaged ({found} is not the {shard} that was listed)"
            )
    except (DamagedFileError, OSError) as error:
        logger.warning("%s; its images are built again", error)
        return None
    return set(ids)


def _remove_litter(folder: Path, manifest: Manifest) -> None:
    for path in temporary_files(folder):
        path.unlink()
    listed = {shard.file for shard in manifest.shards}
    for path in shard_files(folder):
        if path.name not in listed:
            path.unlink()
    if not manifest.complete:
        (folder / INDEX_FILE).unlink(missing_ok=True)


def _merge_pending(
    folder: Path,
    manifest: Manifest,
    old: WriterFolder,
    done: set[int],
    images_per_shard: int,
    writer: str,
) -> Manifest:
    """Shards of a dead writer's pending files; `done` grows by their images."""
    files = [path for path in old.pending_files() if not _is_done(path, done)]
    for start in range(0, len(files), images_per_shard):
        records = []
        for path in files[start : start + images_per_shard]:
            try:
                records.append(read_pending(path, manifest))
            except DamagedFileError as error:
                logger.warning("%s; the image is built again", error)
        if records:
            shard = write_shard(folder, writer, records)
            manifest = save_shards(folder, manifest, [*manifest.shards, shard])
            done.update(image_id for image_id, _ in records)
    return manifest


def _is_done(path: Path, done: set[int]) -> bool:
    return path.stem.isdecimal() and int(path.stem) in done


def _remove_building(folder: Path, writers: list[WriterFolder]) -> None:
    for writer in writers:
        shutil.rmtree(writer.path)
    remove_empty_building(folder)
