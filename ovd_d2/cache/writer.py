"""Writing a record store by any number of processes; killed at any moment without harm."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from types import TracebackType
from typing import Any, NamedTuple

import torch

from ovd_d2.cache.identity import ID_RANGE, is_image_id, write_image_list
from ovd_d2.cache.index import finish_store
from ovd_d2.cache.layout import (
    LOCK_FILE,
    WriterFolder,
    delete_store,
    pending_bytes,
    remove_empty_building,
)
from ovd_d2.cache.locking import FileLock
from ovd_d2.cache.manifest import CacheError, DamagedFileError, Manifest, ShardInfo, local_folder
from ovd_d2.cache.ranks import Ranks
from ovd_d2.cache.records import Record, encode_record, read_pending, write_record
from ovd_d2.cache.recovery import (
    Recovered,
    recover,
    save_shards,
    write_shard,
    writer_lock,
    writers_locked,
)
from ovd_d2.cache.space import check_space, full_disk_explained, needed_bytes
from ovd_d2.files import atomic_write, flush_folder

logger = logging.getLogger(__name__)

IMAGES_PER_SHARD = 256  # 80 MB at 300 proposals x 512 fp16


class _Share(NamedTuple):
    """What one writer has stored."""

    shards: list[ShardInfo]
    image_ids: set[int]


class RecordWriter:
    """One process's share in writing the records of a data set into a folder.

    Every rank of the process group has one; without a group there is one writer. A writer changes
    only files that carry its own name (`ovd_d2.cache.layout`); manifest and index are written by
    rank 0. Construction and `finish` wait for all ranks, `add` for none.

    An added image is on the disk when `add` returns: a file of its own in the writer's `pending/`,
    merged into a shard once `images_per_shard` are there. The order of every merge is: shard,
    journal, deletion of the pending files. So at any moment an image is in a listed shard, in a
    pending file, or in both. Opening the folder again, with any number of ranks, makes a sound
    store of it (`ovd_d2.cache.recovery`), and the build goes on with the images that are not in
    `done_ids`.

    Args:
        path: the folder; created if absent, the same for all ranks. `datasets://...` works.
        manifest: what is to be written. A folder with an equal header is continued.
        images_per_shard: images merged into one shard file.
        overwrite: delete a store that is in the folder first.
        images: every image of the manifest's data set (file_name, image_id, height, width), which
            the store then lists. Without them it can be used for all of its images only, not for
            a part of them.
        writer: name in files; by default "r" and the rank.
        ranks: the processes that build together; by default all of the process group.

    Raises:
        CacheError: the folder holds a store with another header (the differing keys are named),
            something else, another process is writing to it, a rank does not see it, or `images`
            are not those of the manifest's data set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        images_per_shard: int = IMAGES_PER_SHARD,
        overwrite: bool = False,
        *,
        images: Collection[Mapping[str, Any]] | None = None,
        writer: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if images_per_shard < 1:
            raise ValueError(f"images_per_shard is {images_per_shard}, expected at least 1")
        self.path = local_folder(path)
        self.images_per_shard = images_per_shard
        self.ranks = ranks or Ranks()
        self._own = WriterFolder.of(self.path, writer or f"r{self.ranks.rank:03d}")
        self._pending: set[int] = set()
        self._shards: list[ShardInfo] = []
        self._added: set[int] = set()
        self._seen_images = self._seen_rows = 0  # for the estimate of what is still needed
        self._store_lock: FileLock | None = None
        self._own_lock: FileLock | None = None
        try:
            found = self.ranks.first(lambda: self._open_store(manifest, overwrite, images))
            self.manifest, self._done = found.manifest, set(found.done)
            self.ranks.gather(lambda: self._open_own_folder(manifest))
        except BaseException:
            self.close()
            raise

    @property
    def done_ids(self) -> Set[int]:
        """The image ids stored by earlier builds and by this writer (a live view)."""
        return self._done

    def check_space(self, images: int, rows_per_image: float) -> None:
        """Refuse a build that the disk has no room for. All ranks call it.

        Args:
            images: still to be stored, by all ranks.
            rows_per_image: mean number of proposals of an image.

        Raises:
            CacheError: with the bytes needed and free.
        """
        self.ranks.first(
            lambda: check_space(self.path, self.manifest, images, rows_per_image, self._in_flight)
        )

    def add(self, image_id: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store the record of one image; it survives a crash once this returns.

        Args:
            image_id: 0 to 2**63 - 1, not yet in `done_ids`.
            tensors: boxes (K, 4) absolute XYXY, objectness (K,) in [0, 1] and, for embeddings,
                embeddings (K, D) unit rows; K = 0 is a valid record. Any float type and device.

        Raises:
            ValueError: a wrong shape or value (the image id is named), or an id twice.
            CacheError: the disk is full. What was added before stays.
        """
        if not is_image_id(image_id):
            raise ValueError(f"image id {image_id!r}: expected {ID_RANGE}")
        image_id = int(image_id)
        if image_id in self._done:
            raise ValueError(f"image {image_id} is already stored in {self.path}")
        if self._own_lock is None:
            raise ValueError(f"image {image_id}: the writer of {self.path} is finished or closed")
        record = encode_record(self.manifest, image_id, tensors)
        self._seen_images += 1
        self._seen_rows += len(record["boxes"])
        with full_disk_explained(self.path, self._bytes_to_come):
            with atomic_write(self._own.pending_file(image_id)) as temporary:
                write_record(temporary, image_id, record)
            self._pending.add(image_id)
            self._added.add(image_id)
            self._done.add(image_id)
            if len(self._pending) >= self.images_per_shard:
                self._merge_pending()

    def add_shard(self, records: Sequence[tuple[int, Record]]) -> None:
        """Store records that are encoded already as one shard; it survives a crash afterwards.

        Args:
            records: at least one; image ids that are not yet in `done_ids`, with their fields in
                the stored types and the order of `Manifest.fields` (as `RecordStore.raw` gives
                them).

        Raises:
            ValueError: an id twice, or the writer is closed.
            CacheError: the disk is full. What was added before stays.
        """
        ids = {image_id for image_id, _ in records}
        if len(ids) < len(records) or ids & self._done:
            raise ValueError(f"an image is stored twice in {self.path}")
        if self._own_lock is None:
            raise ValueError(f"the writer of {self.path} is finished or closed")
        with full_disk_explained(self.path, self._bytes_to_come):
            shard = write_shard(self.path, self._own.name, list(records))
            self._own.save_journal([*self._shards, shard])
        self._shards.append(shard)
        self._added |= ids
        self._done |= ids

    def finish(self, image_ids: Iterable[int] | None = None) -> Manifest:
        """Merge what is pending, wait for all ranks, and list everything in the manifest.

        The store is complete once it holds every image of its data set.

        Args:
            image_ids: a part of the data set that the store must hold now; None is all of it.

        Returns:
            The manifest, in every rank.

        Raises:
            CacheError: images are missing, the disk is full, or another rank failed.
        """
        sealed = self.ranks.gather(self._seal)
        wanted = None if image_ids is None else set(image_ids)
        self.manifest = self.ranks.first(lambda: self._list_all(sealed, wanted))
        self.ranks.gather(self._remove_own_folder)
        if self.ranks.rank == 0:
            remove_empty_building(self.path)
        return self.manifest

    def close(self) -> None:
        """Let other processes write to the folder. What was added stays."""
        for lock in (self._own_lock, self._store_lock):
            if lock is not None:
                lock.release()
        self._own_lock = self._store_lock = None

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open_store(
        self, wanted: Manifest, overwrite: bool, images: Collection[Mapping[str, Any]] | None
    ) -> Recovered:
        self.path.mkdir(parents=True, exist_ok=True)
        flush_folder(self.path.parent)
        self._store_lock = FileLock(self.path / LOCK_FILE, str(self.path))
        if overwrite:
            with writers_locked(self.path):
                delete_store(self.path)
        with full_disk_explained(self.path, lambda: pending_bytes(self.path)):
            found = recover(self.path, wanted, self.images_per_shard, self._own.name)
            if images is not None:
                write_image_list(self.path, wanted.dataset, images)
        return found

    def _open_own_folder(self, wanted: Manifest) -> None:
        self._check_sight(wanted)
        self._own.pending_folder.mkdir(parents=True, exist_ok=True)
        flush_folder(self.path)
        self._own_lock = writer_lock(self.path, self._own)

    def _check_sight(self, wanted: Manifest) -> None:
        """Rank 0 has written the header: does this process see it, and does it want the same?"""
        try:
            differences = Manifest.load(self.path).differences(wanted)
        except CacheError as error:
            raise CacheError(
                f"{self.path} on {socket.gethostname()} is not the folder of rank 0 ({error}). All "
                "processes need one file system; without one, build parts and merge them"
            ) from error
        if differences:
            raise CacheError(f"rank 0 builds with other settings: {'; '.join(differences)}")

    def _merge_pending(self) -> None:
        """Pending files -> one shard -> journal -> deletion, in this order (see the class)."""
        records = []
        for image_id in sorted(self._pending):
            try:
                records.append(read_pending(self._own.pending_file(image_id), self.manifest))
            except DamagedFileError as error:
                logger.warning("%s; run the build again for this image", error)
                self._added.discard(image_id)
                self._done.discard(image_id)
        if records:
            shard = write_shard(self.path, self._own.name, records)
            self._own.save_journal([*self._shards, shard])
            self._shards.append(shard)
        for image_id in sorted(self._pending):
            self._own.pending_file(image_id).unlink(missing_ok=True)
        if self._pending:
            flush_folder(self._own.pending_folder)
        self._pending.clear()

    def _seal(self) -> _Share:
        if self._own_lock is None:
            raise ValueError(f"the writer of {self.path} is finished or closed")
        with full_disk_explained(self.path, self._bytes_to_come):
            self._merge_pending()
        return _Share(self._shards, self._added)

    def _list_all(self, shares: list[_Share], wanted: set[int] | None) -> Manifest:
        """Rank 0: every shard into the manifest; the index if nothing is missing."""
        manifest = self.manifest
        new = [shard for share in shares for shard in share.shards if shard not in manifest.shards]
        if manifest.complete and not new:
            return manifest
        stored = self._done.union(*(share.image_ids for share in shares))
        with full_disk_explained(self.path, self._bytes_to_come):
            if new:
                manifest = save_shards(self.path, manifest, [*manifest.shards, *new])
            if wanted is None or len(stored) == manifest.dataset.num_images:
                return finish_store(self.path, manifest)
        missing = wanted - stored
        if missing:
            raise CacheError(
                f"{self.path} lacks {len(missing)} of {len(wanted)} images (first ids: "
                f"{sorted(missing)[:5]}); run the build again to add them"
            )
        return manifest

    def _remove_own_folder(self) -> None:
        # The store's lock still keeps others out. Released first: some network file systems keep
        # an open file's name alive.
        if self._own_lock is not None:
            self._own_lock.release()
        self._own_lock = None
        shutil.rmtree(self._own.path)

    def _bytes_to_come(self) -> int:
        """An estimate of what all ranks together have still to store."""
        total = self.manifest.dataset.num_images
        earlier = len(self._done) - len(self._added)
        left = max(1, total - earlier - len(self._added) * self.ranks.count)
        rows = self.manifest.num_rows + self._seen_rows
        images = self.manifest.num_images + self._seen_images
        return needed_bytes(self.manifest, left, rows / max(1, images), self._in_flight)

    @property
    def _in_flight(self) -> int:
        return self.images_per_shard * self.ranks.count
