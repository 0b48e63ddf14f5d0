"""Writing a record store: resumable, killed at any moment without harm."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import shutil
import sys
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from ovd_d2.cache.index import INDEX_FILE, finish_store, load_index
from ovd_d2.cache.manifest import (
    MANIFEST_FILE,
    CacheError,
    DamagedFileError,
    Manifest,
    ShardInfo,
    local_folder,
    parse_shard_name,
    shard_name,
)
from ovd_d2.cache.records import (
    encode_record,
    open_shard,
    pack_shard,
    read_pending,
    shard_info,
    write_record,
)
from ovd_d2.files import TEMPORARY_SUFFIX, atomic_write, flush_folder

logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 256  # 80 MB at 300 proposals x 512 fp16
PENDING_FOLDER = "pending"
LOCK_FILE = ".writer.lock"
_WRITER = "r000"


class RecordWriter:
    """Writes the records of a data set, one image at a time, into a folder.

    An added image is on the disk when `add` returns: a file of its own under `pending/`, merged
    into a shard once `images_per_shard` are there. The order of every merge is: shard, manifest,
    deletion of the pending files. So at any moment an image is in a listed shard, in a pending
    file, or in both; opening the folder again removes what is double, half-written or unlisted,
    and the build goes on with the images that are not in `done_ids`.

    Args:
        path: the folder; created if absent. `datasets://...` works.
        manifest: what is to be written. A folder with an equal header is continued.
        images_per_shard: images merged into one shard file.
        overwrite: delete a store that is in the folder first.

    Raises:
        CacheError: the folder holds a store with another header (the differing keys are named),
            something else, or another process is writing to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        images_per_shard: int = IMAGES_PER_SHARD,
        overwrite: bool = False,
    ) -> None:
        if images_per_shard < 1:
            raise ValueError(f"images_per_shard is {images_per_shard}, expected at least 1")
        self.path = local_folder(path)
        self.images_per_shard = images_per_shard
        self._pending_folder = self.path / PENDING_FOLDER
        self._pending: set[int] = set()
        self._done: set[int] = set()
        self.path.mkdir(parents=True, exist_ok=True)
        flush_folder(self.path.parent)
        self._lock = _FolderLock(self.path)
        try:
            if overwrite:
                delete_store(self.path)
            self.manifest = self._open_manifest(manifest)
            self._recover()
        except BaseException:
            self._lock.release()
            raise

    @property
    def done_ids(self) -> Set[int]:
        """The image ids that are safely stored (a live view)."""
        return self._done

    def add(self, image_id: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store the record of one image; it survives a crash once this returns.

        Args:
            image_id: a non-negative integer, not yet in `done_ids`.
            tensors: boxes (K, 4) absolute XYXY, objectness (K,) in [0, 1] and, for embeddings,
                embeddings (K, D) unit rows; K = 0 is a valid record. Any float type and device.

        Raises:
            ValueError: a wrong shape or value (the image id is named), or an id twice.
        """
        image_id = operator.index(image_id)
        if image_id < 0:
            raise ValueError(f"image id {image_id}: expected a non-negative integer")
        if image_id in self._done:
            raise ValueError(f"image {image_id} is already stored in {self.path}")
        record = encode_record(self.manifest, image_id, tensors)
        if self.manifest.complete:
            self._save_manifest()
        with atomic_write(self._pending_file(image_id)) as temporary:
            write_record(temporary, image_id, record)
        self._pending.add(image_id)
        self._done.add(image_id)
        if len(self._pending) >= self.images_per_shard:
            self._merge_pending()

    def finish(self) -> Manifest:
        """Merge what is pending and mark the store complete.

        Raises:
            CacheError: the number of records is not the number of images of the data set.
        """
        self._merge_pending()
        if not self.manifest.complete:
            self.manifest = finish_store(self.path, self.manifest)
        with contextlib.suppress(OSError):  # absent, or a file of somebody else is in it
            self._pending_folder.rmdir()
        return self.manifest

    def close(self) -> None:
        """Let other processes write to the folder. What was added stays."""
        self._lock.release()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_manifest(self, wanted: Manifest) -> Manifest:
        if not (self.path / MANIFEST_FILE).exists():
            foreign = _store_files(self.path)
            if foreign:
                raise CacheError(
                    f"{self.path} holds {foreign[0].name} but no {MANIFEST_FILE}; take another "
                    "folder or --overwrite to delete it"
                )
            # Before any record: pending files without a manifest would have no identity.
            self._pending_folder.mkdir(exist_ok=True)  # flushed to the disk with the manifest
            fresh = replace(wanted, index=None, shards=[])
            fresh.save(self.path)
            return fresh
        found = Manifest.load(self.path)
        differences = found.differences(wanted)
        if differences:
            raise CacheError(
                f"{self.path} was built with other settings: {'; '.join(differences)}. "
                "Take another folder or --overwrite to build it again"
            )
        return found

    def _recover(self) -> None:
        """Bring whatever a crash left behind into the state between two calls of `add`."""
        _remove_temporaries(self.path)
        _remove_temporaries(self._pending_folder)
        self._drop_damaged_shards()
        self._drop_damaged_index()
        self._remove_unlisted_shards()
        self._recover_pending()
        if len(self._pending) >= self.images_per_shard:
            self._merge_pending()

    def _drop_damaged_shards(self) -> None:
        sound = []
        for shard in self.manifest.shards:
            try:
                ids = open_shard(self.path / shard.file, self.manifest.fields)["image_ids"]
            except DamagedFileError as error:
                logger.warning("%s; its %d images are built again", error, shard.images)
                continue
            sound.append(shard)
            self._done.update(ids.tolist())
        if len(sound) < len(self.manifest.shards):
            self._save_manifest(sound)

    def _drop_damaged_index(self) -> None:
        if not self.manifest.complete:
            return
        try:
            load_index(self.path, self.manifest)
        except DamagedFileError as error:
            logger.warning("%s", error)
            self._save_manifest()

    def _remove_unlisted_shards(self) -> None:
        """A crash between a shard and its manifest entry: its images are still pending."""
        listed = {shard.file for shard in self.manifest.shards}
        for path in _shard_files(self.path):
            if path.name not in listed:
                path.unlink()

    def _recover_pending(self) -> None:
        for path in sorted(self._pending_folder.glob("*.safetensors")):
            if path.stem.isdecimal() and int(path.stem) in self._done:
                path.unlink()  # a crash between the manifest and this deletion
                continue
            try:
                image_id, _ = read_pending(path, self.manifest)
            except DamagedFileError as error:
                logger.warning("%s; the image is built again", error)
                path.unlink()
                continue
            self._pending.add(image_id)
            self._done.add(image_id)

    def _merge_pending(self) -> None:
        """Pending files -> one shard -> manifest -> deletion, in this order (see the class)."""
        records = []
        for image_id in sorted(self._pending):
            try:
                records.append(read_pending(self._pending_file(image_id), self.manifest))
            except DamagedFileError as error:
                logger.warning("%s; run the build again for this image", error)
                self._done.discard(image_id)
        if records:
            content = pack_shard(records)
            file = shard_name(_WRITER, self._next_number())
            shard = shard_info(file, records, content)
            with atomic_write(self.path / shard.file) as temporary:
                temporary.write_bytes(content)
            self._save_manifest([*self.manifest.shards, shard])
        for image_id in sorted(self._pending):
            self._pending_file(image_id).unlink(missing_ok=True)
        if self._pending:
            flush_folder(self._pending_folder)
        self._pending.clear()

    def _next_number(self) -> int:
        used = [_shard_number(shard.file) for shard in self.manifest.shards]
        return max(used, default=-1) + 1

    def _pending_file(self, image_id: int) -> Path:
        return self._pending_folder / f"{image_id}.safetensors"

    def _save_manifest(self, shards: list[ShardInfo] | None = None) -> None:
        """As unfinished. The disk first, memory after: an error leaves both at the old state."""
        kept = self.manifest.shards if shards is None else shards
        changed = replace(self.manifest, index=None, shards=kept)
        changed.save(self.path)
        self.manifest = changed


def delete_store(folder: Path) -> None:
    """Delete the files of a record store; anything else in the folder stays."""
    # The manifest goes last: until then the rest is still recognisable as a store.
    for path in _shard_files(folder):
        path.unlink()
    (folder / INDEX_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / PENDING_FOLDER, ignore_errors=True)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    flush_folder(folder)


class _FolderLock:
    """Keeps two processes from writing to one folder; the system frees it when one dies."""

    def __init__(self, folder: Path) -> None:
        self._stream = (folder / LOCK_FILE).open("a")  # held while the writer lives
        try:
            _lock_stream(self._stream.fileno())
        except (BlockingIOError, PermissionError):  # POSIX allows either
            self._stream.close()
            raise CacheError(
                f"another process is writing to {folder}; wait for it, stop it, or take another "
                "folder"
            ) from None
        except OSError as error:
            # Some network file systems know no locks: then two writers are the user's to avoid.
            logger.warning("%s cannot be locked against a second writer: %s", folder, error)

    def release(self) -> None:
        self._stream.close()


def _lock_stream(descriptor: int) -> None:
    if sys.platform != "win32":
        import fcntl

        # Not flock: loader workers would inherit that lock and hold it after a kill of the writer.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _shard_number(name: str) -> int:
    parsed = parse_shard_name(name)
    return parsed[1] if parsed else -1


def _shard_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _shard_number(path.name) >= 0)


def _store_files(folder: Path) -> list[Path]:
    return [*_shard_files(folder), *(folder / PENDING_FOLDER).glob("*.safetensors")]


def _remove_temporaries(folder: Path) -> None:
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink()
