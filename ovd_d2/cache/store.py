"""Reading a record store: random access by image id, from any number of processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ovd_d2.cache.manifest import CacheError, DamagedFileError, Manifest, local_folder
from ovd_d2.cache.records import Record, open_shard
from ovd_d2.cache.verify import verify_store

_BUILD_TOOLS = {"proposals": "tools/extract_proposals.py", "embeddings": "tools/build_cache.py"}


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

    Opening reads the manifest and the small index of every shard; records stay on the disk until
    they are asked for. Shards are mapped on first use in each process, so a reader may be sent to
    loader workers by fork, spawn or pickling.

    Args:
        path: the folder; `datasets://...` works.
        allow_incomplete: also open a store that is still being built (its finished shards).

    Raises:
        CacheError: no store there, unfinished, of the other kind, or a shard is missing, truncated
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
                f"{_BUILD_TOOLS[self.kind]} again with the same arguments to continue it"
            )
        self._owner = os.getpid()
        self._shards: dict[int, Record] = {}
        self._ids, self._places = self._read_index()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, (int, np.integer)) and self._find(int(image_id)) is not None

    def __iter__(self) -> Iterator[int]:
        """The image ids in ascending order."""
        return iter(self._ids.tolist())

    def __getitem__(self, image_id: int) -> CachedProposals:
        """The proposals of one image, in tensors that belong to the caller.

        Raises:
            KeyError: no record of this image.
            CacheError: its shard has been damaged or deleted since the store was opened.
        """
        row = self._find(int(image_id))
        if row is None:
            raise KeyError(f"image {image_id} is not in {self.path} ({len(self)} images)")
        number, start, stop = self._places[row].tolist()
        shard = self._shard(number)
        embeddings = shard.get("embeddings")
        # Copies: a change to the mapped pages would show in every later read of this process.
        return CachedProposals(
            boxes=shard["boxes"][start:stop].clone(),
            objectness=shard["objectness"][start:stop].clone(),
            embeddings=None if embeddings is None else _decode(embeddings[start:stop]),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    @property
    def fingerprint(self) -> str:
        """Identity of the content: header and checksums of all shards."""
        return self.manifest.fingerprint

    def verify(self, progress: bool = False) -> list[str]:
        """Read everything back and return the problems found, in words; empty if it is sound."""
        return verify_store(self.path, progress=progress)

    def _check_kind(self) -> None:
        found = self.manifest.kind
        if found != self.kind:
            raise CacheError(
                f"{self.path} holds {found}, expected {self.kind}; "
                f"{_BUILD_TOOLS[self.kind]} writes {self.kind}"
            )

    def _read_index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ascending image ids (N,) and, for each, shard number, first and last row (N, 3).

        Plain arrays: reading them touches no reference counts, so forked workers share the pages.
        """
        ids, places = [np.empty(0, np.int64)], [np.empty((0, 3), np.int64)]
        for number, info in enumerate(self.manifest.shards):
            shard = self._open(number)
            offsets = shard["offsets"].numpy().copy()
            ids.append(shard["image_ids"].numpy().copy())
            if (len(ids[-1]), offsets[-1]) != (info.images, info.rows):
                raise CacheError(
                    f"{self.path / info.file} holds {len(ids[-1])} images with {offsets[-1]} rows, "
                    f"the manifest says {info.images} with {info.rows}. {self._fix(info.file)}"
                )
            places.append(
                np.stack([np.full(info.images, number), offsets[:-1], offsets[1:]], axis=1)
            )
        all_ids, all_places = np.concatenate(ids), np.concatenate(places)
        order = np.argsort(all_ids, kind="stable")
        all_ids, all_places = all_ids[order], all_places[order]
        double = all_ids[1:][all_ids[1:] == all_ids[:-1]]
        if len(double):
            raise CacheError(
                f"{self.path} holds image {double[0]} twice; build it again with --overwrite"
            )
        return all_ids, all_places

    def _find(self, image_id: int) -> int | None:
        if not -(2**63) <= image_id < 2**63:
            return None
        row = int(np.searchsorted(self._ids, image_id))
        return row if row < len(self._ids) and self._ids[row] == image_id else None

    def _shard(self, number: int) -> Record:
        if self._owner != os.getpid():  # forked: map again, so that no process relies on another
            self._owner, self._shards = os.getpid(), {}
        if number not in self._shards:
            self._shards[number] = self._open(number)
        return self._shards[number]

    def _open(self, number: int) -> Record:
        file = self.manifest.shards[number].file
        try:
            return open_shard(self.path / file, self.manifest.fields)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error}. {self._fix(file)}") from error

    def _fix(self, file: str) -> str:
        return (
            f"Delete {file} if it is there and run {_BUILD_TOOLS[self.kind]} again with the same "
            "arguments: only its images are built again"
        )


class ProposalStore(RecordStore):
    """Class-agnostic proposals of a data set: `store[image_id]` -> `CachedProposals`."""

    kind = "proposals"


class EmbeddingCache(RecordStore):
    """Proposals with the teacher's embeddings: `cache[image_id]` -> `CachedProposals`."""

    kind = "embeddings"


def _decode(embeddings: torch.Tensor) -> torch.Tensor:
    """Stored rows (K, D) -> float32 unit rows; the norm lost to fp16 rounding is restored."""
    rows = embeddings.to(torch.float32, copy=True)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
