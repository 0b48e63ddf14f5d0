"""Writing a record store by any number of processes; killed at any moment without harm."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ovd_d2.cache.identity import ID_RANGE, image_list, is_image_id, save_image_list
from ovd_d2.cache.index import build_index, find_index, write_index
from ovd_d2.cache.manifest import MANIFEST_FILE, CacheError, Manifest, ShardInfo, local_folder
from ovd_d2.cache.records import Record, encode_record, pack_shard
from ovd_d2.cache.shards import (
    PlannedShard,
    choose_images_per_shard,
    delete_store,
    find_whole_shards,
    plan_store,
    remove_leftovers,
    shard_files,
)
from ovd_d2.cache.space import check_space, full_disk_explained
from ovd_d2.files import atomic_write, flush_folder
from ovd_d2.ranks import Ranks


@dataclass(frozen=True)
class Written:
    """What a run of a writer amounts to.

    Attributes:
        path: of the store.
        manifest: what is in it now; of a part it is not `complete`.
        images_written: by all ranks of this run; the others were there already.
        seconds: wall-clock time of this run.
    """

    path: Path
    manifest: Manifest
    images_written: int
    seconds: float


class RecordWriter:
    """One process's share in writing the records of a data set into a folder.

    Every rank of the process group has one. Which images lie in which shard is fixed
    (`ovd_d2.cache.shards`); a rank takes every n-th of the shards that are missing. A shard is
    written once all of its images have been added: a killed process loses those of the shards that
    it has not finished. Opening the folder again, with any number of ranks, continues the build.
    `finish` makes it a store that can be read. It, construction and `check_space` wait for all
    ranks.

    Args:
        path: the folder; created if absent, the same for all ranks. `datasets://...` works.
        manifest: what is to be written. A folder with an equal header is continued.
        images: every image of the manifest's data set (file_name, image_id, height, width).
        images_per_shard: None: as the shards in the folder, or `IMAGES_PER_SHARD`.
        overwrite: delete a store that is in the folder first.
        part: (i, n) writes only every n-th shard, from the i-th; `ovd_d2.cache.merge` joins parts.
        ranks: the processes that build together; by default all of the process group.

    Attributes:
        waiting_ids: what this process has to add, shard after shard.
        missing: how many images all ranks have to add.

    Raises:
        CacheError: the folder holds a store with another header or something else, a rank does
            not see it, or `images` are not those of the manifest's data set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        images: Collection[Mapping[str, Any]],
        images_per_shard: int | None = None,
        overwrite: bool = False,
        part: tuple[int, int] = (1, 1),
        ranks: Ranks | None = None,
    ) -> None:
        if images_per_shard is not None and images_per_shard < 1:
            raise ValueError(f"images_per_shard is {images_per_shard}, expected at least 1")
        self.path = local_folder(path)
        self.ranks = ranks or Ranks()
        self.manifest, self._planned = self.ranks.on_rank_0(
            lambda: self._open(manifest, images, images_per_shard, overwrite)
        )
        self.ranks.gather(lambda: _check_sight(self.path, manifest))
        self._part = self._planned[part[0] - 1 :: part[1]]
        if not self._part:
            raise CacheError(
                f"part {part[0]} of {part[1]} is empty: all images are in {len(self._planned)} "
                "shards; take fewer parts, or a smaller --images-per-shard"
            )
        self._whole: dict[str, ShardInfo] = {}
        self._find_whole(self.manifest)
        missing = [shard for shard in self._part if shard.file not in self._whole]
        mine = missing[self.ranks.rank :: self.ranks.count]
        self.waiting_ids = [image_id for shard in mine for image_id in shard.image_ids]
        self.missing = sum(len(shard.image_ids) for shard in missing)
        self._shard_of = {image_id: shard for shard in missing for image_id in shard.image_ids}
        self._records: dict[str, dict[int, Record]] = {}  # by file, of shards not yet written

    def check_space(self, rows_per_image: float) -> None:
        """Refuse a build that the disk has no room for. All ranks call it.

        Args:
            rows_per_image: mean number of proposals per image.
        """
        self.ranks.on_rank_0(
            lambda: check_space(self.path, self.manifest, self.missing, rows_per_image)
        )

    def add(self, image_id: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add the record of one image; the last one of a shard writes it.

        Args:
            image_id: one of the data set that no shard in the folder holds.
            tensors: boxes (K, 4) absolute XYXY, objectness (K,) in [0, 1] and, for embeddings,
                embeddings (K, D) unit rows; K = 0 is a valid record. Any float type and device.

        Raises:
            ValueError: a wrong shape or value (the image id is named), or an id twice.
            CacheError: the disk is full. The shards written before stay.
        """
        if not is_image_id(image_id):
            raise ValueError(f"image id {image_id!r}: expected {ID_RANGE}")
        self.add_encoded(int(image_id), encode_record(self.manifest, int(image_id), tensors))

    def add_encoded(self, image_id: int, record: Record) -> None:
        """As `add`, of a record in the stored types (as `RecordStore.read_undecoded` gives it)."""
        shard = self._shard_of.pop(image_id, None)
        if shard is None:
            raise ValueError(
                f"image {image_id} is not waited for in {self.path}: it is stored or added "
                "already, or not of the data set"
            )
        records = self._records.setdefault(shard.file, {})
        records[image_id] = record
        if len(records) == len(shard.image_ids):
            self._write(shard, [*self._records.pop(shard.file).items()])

    def finish(self) -> Manifest:
        """Wait for all ranks, read the new shards back, and write index and manifest.

        Returns:
            The manifest, in every rank; of a part it lists the shards and is not complete.

        Raises:
            CacheError: images are missing, the disk is full, or another rank failed.
        """
        self.ranks.gather(lambda: None)  # no rank is still writing
        # On a GPU what is built again differs in its last bits from what the manifest lists.
        self._find_whole(replace(self.manifest, shards=[], index=None))
        self.manifest = self.ranks.on_rank_0(self._list)
        return self.manifest

    def summary(self, start: float) -> Written:
        """After `finish`, of a run that began at `start` of `time.perf_counter`."""
        return Written(self.path, self.manifest, self.missing, time.perf_counter() - start)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Give up what is not in a shard yet, and take no more."""
        self._records.clear()
        self._shard_of.clear()

    def _open(
        self,
        wanted: Manifest,
        images: Collection[Mapping[str, Any]],
        images_per_shard: int | None,
        overwrite: bool,
    ) -> tuple[Manifest, list[PlannedShard]]:
        """Rank 0: the manifest in the folder, and all shards that the store must have."""
        content = image_list(wanted.dataset, images)
        self.path.mkdir(parents=True, exist_ok=True)
        flush_folder(self.path.parent)
        if overwrite:
            delete_store(self.path)
        images_per_shard = choose_images_per_shard(self.path, images_per_shard)
        with full_disk_explained(self.path):
            manifest = _open_manifest(self.path, wanted)
            save_image_list(self.path, content)
        ids = sorted(int(entry["image_id"]) for entry in images)
        return manifest, plan_store(self.path, manifest, ids, images_per_shard)

    def _find_whole(self, manifest: Manifest) -> None:
        """Which further shards are whole: every rank reads a share, each gets what all found."""
        left = [shard for shard in self._planned if shard.file not in self._whole]
        mine = left[self.ranks.rank :: self.ranks.count]
        for found in self.ranks.gather(lambda: find_whole_shards(self.path, manifest, mine)):
            self._whole |= found

    def _write(self, shard: PlannedShard, records: list[tuple[int, Record]]) -> None:
        path = self.path / shard.file
        if path.exists() and find_whole_shards(self.path, self.manifest, [shard]):
            return  # of another build, which may have finished the store with it
        with full_disk_explained(self.path), atomic_write(path) as temporary:
            temporary.write_bytes(pack_shard(records))

    def _list(self) -> Manifest:
        """Rank 0: index and manifest, if nothing is missing."""
        missing = [shard.image_ids for shard in self._part if shard.file not in self._whole]
        if missing:
            total = sum(len(shard.image_ids) for shard in self._part)
            raise CacheError(
                f"{self.path} lacks {sum(map(len, missing))} of {total} images (first ids: "
                f"{list(missing[0][:5])}); run the build again to add them"
            )
        shards = [self._whole[shard.file] for shard in self._planned if shard.file in self._whole]
        if shards == self.manifest.shards and find_index(self.path, self.manifest):
            return self.manifest
        manifest = replace(self.manifest, shards=shards, index=None)
        if len(shards) == len(self._planned):
            with full_disk_explained(self.path):
                manifest = write_index(self.path, manifest, build_index(self.path, manifest))
            remove_leftovers(self.path, {shard.file for shard in shards})
        return manifest


def _open_manifest(folder: Path, wanted: Manifest) -> Manifest:
    """The manifest in the folder; a new one of an unfinished store where there is none."""
    if not (folder / MANIFEST_FILE).exists():
        if shards := shard_files(folder):
            raise CacheError(
                f"{folder} holds {shards[0].name} but no {MANIFEST_FILE}; take another folder or "
                "--overwrite to delete it"
            )
        fresh = replace(wanted, index=None, shards=[])
        fresh.save(folder)
        return fresh
    found = Manifest.load(folder)
    if differences := found.differences(wanted):
        raise CacheError(
            f"{folder} was built with other settings: {'; '.join(differences)}. Take another "
            "folder or --overwrite to build it again"
        )
    return found


def _check_sight(folder: Path, wanted: Manifest) -> None:
    """Rank 0 has written the header: does this process see it, and does it want the same?"""
    try:
        differences = Manifest.load(folder).differences(wanted)
    except CacheError as error:
        raise CacheError(
            f"{folder} on {socket.gethostname()} is not the folder of rank 0 ({error}). All "
            "processes need one file system; without one, build parts and merge them"
        ) from error
    if differences:
        raise CacheError(f"rank 0 builds with other settings: {'; '.join(differences)}")
