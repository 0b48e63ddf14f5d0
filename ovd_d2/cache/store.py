"""Reading a record store: random access by image id, from any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ovd_d2.cache.index import Index, build_index, load_index
from ovd_d2.cache.manifest import (
    BUILD_COMMANDS,
    CacheError,
    DamagedFileError,
    Manifest,
    local_folder,
)
from ovd_d2.cache.quantization import decode
from ovd_d2.cache.records import (
    Arrays,
    ShardLayout,
    check_size,
    map_shard,
    read_layout,
    record_checksum,
)
from ovd_d2.cache.verify import verify_store

# Mapped at a time in one process. Pages that are read count as its memory as long as they are
# mapped, so this bounds what a worker seems to hold; mapping a file again takes microseconds.
MAPPED_SHARDS = 16


@dataclass(frozen=True)
class CachedProposals:
    """The proposals of one image. Row i of every tensor belongs to the same proposal.

    Attributes:
        boxes: (K, 4) float32, absolute XYXY in the pixels of the original image.
        objectness: (K,) float32 in [0, 1].
        embeddings: (K, D) float32 unit rows of the teacher; None in a proposal store.
    """

    boxes: torch.Tensor
    objectness: torch.Tensor
    embeddings: torch.Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.boxes)
        if self.boxes.shape != (rows, 4) or self.objectness.shape != (rows,):
            raise ValueError(
                f"boxes {tuple(self.boxes.shape)} and objectness {tuple(self.objectness.shape)}: "
                "expected (K, 4) and (K,)"
            )
        if self.embeddings is not None and (
            self.embeddings.ndim != 2 or len(self.embeddings) != rows
        ):
            raise ValueError(
                f"embeddings {tuple(self.embeddings.shape)}: expected ({rows}, D) as for the boxes"
            )

    def __len__(self) -> int:
        return len(self.boxes)


class RecordStore:
    """What `ProposalStore` and `EmbeddingCache` share.

    Opening reads the manifest and the index and asks the system for the size of every shard;
    records stay on the disk until they are asked for. Shards are mapped on first use in each
    process, so a reader may be sent to loader workers by fork, spawn or pickling.

    Args:
        path: the folder; `datasets://...` works.
        allow_incomplete: also open a store that is still being built (its finished shards).

    Raises:
        CacheError: no store there, unfinished, of the other kind, or a file is missing, truncated
            or does not agree with the manifest; the message names the file and the fix.
    """

    kind: str

    def __init__(self, path: str | os.PathLike[str], *, allow_incomplete: bool = False) -> None:
        self.path: Path = local_folder(path)
        self.manifest = Manifest.load(self.path)
        self._check_kind()
        if not self.manifest.complete and not allow_incomplete:
            raise CacheError(
                f"{self.path} is unfinished: {self.manifest.num_images} of "
                f"{self.manifest.dataset.num_images} images are in finished shards. Run "
                f"{self.manifest.build_command} again with the same arguments to continue it"
            )
        self._check_sizes()
        self._index = self._open_index()
        self._owner = os.getpid()
        self._layouts: dict[int, ShardLayout] = {}
        self._mapped: dict[int, Arrays] = {}

    def __len__(self) -> int:
        return len(self._index.image_ids)

    def __contains__(self, image_id: object) -> bool:
        return (
            isinstance(image_id, (int, np.integer)) and self._index.find(int(image_id)) is not None
        )

    def __iter__(self) -> Iterator[int]:
        """The image ids in ascending order."""
        return iter(self._index.image_ids.tolist())

    def __getitem__(self, image_id: int) -> CachedProposals:
        """All proposals of one image, see `read`."""
        return self.read(image_id)

    def read(self, image_id: int, top_k: int | None = None) -> CachedProposals:
        """The proposals of one image, in tensors that belong to the caller.

        Args:
            top_k: decode only the first K' rows in stored order (the builder stores the highest
                objectness first); None decodes all.

        Raises:
            KeyError: no record of this image.
            DamagedFileError: the record is not what was written, or its shard is gone; the file,
                the image and the fix are named.
        """
        views = {name: torch.from_numpy(v[:top_k]) for name, v in self._views(image_id).items()}
        embeddings = views.get("embeddings")
        # Copies: a change to the mapped pages would show in every later read of this process.
        return CachedProposals(
            boxes=views["boxes"].clone(),
            objectness=views["objectness"].clone(),
            embeddings=None if embeddings is None else decode(embeddings),
        )

    def raw(self, image_id: int) -> dict[str, torch.Tensor]:
        """The stored fields of one image (`Manifest.fields`), checked but neither copied nor
        decoded: views of the mapped file, to be read only.

        Raises: as `read`.
        """
        return {name: torch.from_numpy(view) for name, view in self._views(image_id).items()}

    def storage_order(self) -> list[int]:
        """The image ids in the order in which they lie on the disk, shard after shard."""
        order = np.argsort(self._index.shard, kind="stable")  # ids ascend inside a shard
        ids: list[int] = self._index.image_ids[order].tolist()
        return ids

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    @property
    def fingerprint(self) -> str:
        """Identity of the content, see `Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def verify(self, progress: bool = False) -> list[str]:
        """Read everything back and return the problems found, in words; empty if it is sound."""
        return verify_store(self.path, progress=progress)

    def _check_kind(self) -> None:
        found = self.manifest.kind
        if found != self.kind:
            raise CacheError(
                f"{self.path} holds {found}, expected {self.kind}; "
                f"{BUILD_COMMANDS[self.kind]} writes {self.kind}"
            )

    def _check_sizes(self) -> None:
        for info in self.manifest.shards:
            try:
                check_size(self.path / info.file, info)
            except DamagedFileError as error:
                raise DamagedFileError(f"{error}. {self.manifest.shard_fix(info.file)}") from error

    def _open_index(self) -> Index:
        complete = self.manifest.complete
        return (load_index if complete else build_index)(self.path, self.manifest)

    def _views(self, image_id: int) -> Arrays:
        """The stored fields of one image, compared with the checksum."""
        image_id = int(image_id)
        row = self._index.find(image_id)
        if row is None:
            raise KeyError(f"image {image_id} is not in {self.path} ({len(self)} images)")
        index = self._index
        number, start = int(index.shard[row]), int(index.start[row])
        stop = start + int(index.rows[row])
        views = {name: values[start:stop] for name, values in self._shard(number).items()}
        if record_checksum(image_id, views.values()) != index.checksums[row]:
            file = self.manifest.shards[number].file
            raise DamagedFileError(
                f"{self.path / file} is damaged: the record of image {image_id} does not fit its "
                f"checksum. {self.manifest.shard_fix(file)}"
            )
        return views

    def _shard(self, number: int) -> Arrays:
        """The fields of a shard, mapped into this process."""
        if self._owner != os.getpid():  # forked: map again, so that no process relies on another
            self._owner, self._mapped = os.getpid(), {}
        arrays = self._mapped.get(number)
        if arrays is None:
            arrays = self._mapped[number] = self._map(number)
            for oldest in list(self._mapped)[:-MAPPED_SHARDS]:
                self._mapped.pop(oldest, None)
        return arrays

    def _map(self, number: int) -> Arrays:
        info = self.manifest.shards[number]
        path, fields = self.path / info.file, self.manifest.fields
        try:
            if number not in self._layouts:
                self._layouts[number] = read_layout(path, fields)
            arrays = map_shard(path, self._layouts[number])
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}. {self.manifest.shard_fix(info.file)}") from error
        if len(arrays["boxes"]) != info.rows:
            raise DamagedFileError(
                f"{path} holds {len(arrays['boxes'])} rows, the manifest says {info.rows}. "
                f"{self.manifest.shard_fix(info.file)}"
            )
        return {name: arrays[name] for name in fields}


class ProposalStore(RecordStore):
    """Class-agnostic proposals of a data set: `store[image_id]` -> `CachedProposals`."""

    kind = "proposals"


class EmbeddingCache(RecordStore):
    """Proposals with the teacher's embeddings: `cache[image_id]` -> `CachedProposals`."""

    kind = "embeddings"
