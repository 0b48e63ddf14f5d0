"""Reading a record store: random access by image id, from any number of processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ovd_d2.cache.fetch import fetch_store
from ovd_d2.cache.index import Index, build_index, load_index
from ovd_d2.cache.manifest import BUILD_COMMANDS, CacheError, DamagedFileError, Manifest, ShardInfo
from ovd_d2.cache.quantization import decode
from ovd_d2.cache.records import Arrays, Layout, check_size, read_layout, read_rows, record_checksum
from ovd_d2.cache.shards import list_sealed_shards
from ovd_d2.cache.verify import verify_store


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
        width = () if self.embeddings is None else self.embeddings.shape[-1:]
        expected = {"boxes": (rows, 4), "objectness": (rows,), "embeddings": (rows, *width)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} {tuple(value.shape)}: expected {shape}, a row per box")

    def __len__(self) -> int:
        return len(self.boxes)


class RecordStore:
    """What `ProposalStore` and `EmbeddingCache` share.

    Opening reads the manifest and the index and asks the system for the size of every shard;
    records stay on the disk until they are asked for. A reader holds no file open, so it may be
    used by several threads and sent to loader workers by fork, spawn or pickling.

    Args:
        path: the folder; `datasets://...` works, and `https://...` (see `fetch_store`).
        allow_incomplete: also open a store that is still being built, or a part: its shards.

    Attributes:
        index: where every record lies, and its checksum.

    Raises:
        CacheError: no store there, unfinished, of the other kind, or a file is missing, truncated
            or does not agree with the manifest; the message names the file and the fix.
    """

    kind: str
    index: Index

    def __init__(self, path: str | os.PathLike[str], *, allow_incomplete: bool = False) -> None:
        self.path: Path = fetch_store(path)
        self.manifest = Manifest.load(self.path)
        if self.manifest.kind != self.kind:
            raise CacheError(
                f"{self.path} holds {self.manifest.kind}, expected {self.kind}; "
                f"{BUILD_COMMANDS[self.kind]} writes {self.kind}"
            )
        if self.manifest.complete:
            for info in self.manifest.shards:
                with self._fix_named(info):
                    check_size(self.path / info.file, info)
            self.index = load_index(self.path, self.manifest)
        else:
            self._open_incomplete(allow_incomplete)
            self.index = build_index(self.path, self.manifest)
        self._fields = tuple(self.manifest.fields)
        self._paths = [str(self.path / info.file) for info in self.manifest.shards]
        self._layouts: dict[int, Layout] = {}

    def __len__(self) -> int:
        return len(self.index.image_ids)

    def __contains__(self, image_id: object) -> bool:
        return (
            isinstance(image_id, (int, np.integer)) and self.index.find(int(image_id)) is not None
        )

    def __iter__(self) -> Iterator[int]:
        """The image ids in ascending order."""
        return iter(self.index.image_ids.tolist())

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
        fields = {
            name: torch.from_numpy(v[:top_k]) for name, v in self.read_undecoded(image_id).items()
        }
        embeddings = fields.get("embeddings")
        if embeddings is not None:
            embeddings = decode(embeddings)
        proposals = CachedProposals(fields["boxes"], fields["objectness"], embeddings)
        if not _has_sound_values(proposals):
            raise DamagedFileError(
                f"{self.path}: the record of image {image_id} holds what no builder writes (NaN, "
                "infinity, x2 < x1, y2 < y1, or objectness outside [0, 1]); python tools/cache.py "
                f"verify {self.path} names the file"
            )
        return proposals

    def read_undecoded(self, image_id: int) -> Arrays:
        """The stored fields of one image (`Manifest.fields`), compared with the checksum, not
        decoded: embeddings have the right direction and any length. The arrays are the caller's.

        Raises:
            KeyError, DamagedFileError: as `read`.
        """
        index, image_id = self.index, int(image_id)
        row = index.find(image_id)
        if row is None:
            raise KeyError(f"image {image_id} is not in {self.path} ({len(self)} images)")
        shard, start, count = int(index.shard[row]), int(index.start[row]), int(index.rows[row])
        with self._fix_named(self.manifest.shards[shard]):
            fields = read_rows(self._paths[shard], self._layout(shard), self._fields, start, count)
            if record_checksum(image_id, fields.values()) != index.checksums[row]:
                raise DamagedFileError(
                    f"{self._paths[shard]} is damaged: the record of image {image_id} does not "
                    "fit its checksum"
                )
        return fields

    @property
    def fingerprint(self) -> str:
        """Identity of the content, see `Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def verify(self, progress: bool = False) -> list[str]:
        """Read everything back and return the problems found, in words; empty if it is sound."""
        return verify_store(self.path, progress=progress)

    def _open_incomplete(self, allowed: bool) -> None:
        shards = list_sealed_shards(self.path, self.manifest)
        self.manifest = replace(self.manifest, shards=shards)
        if not allowed:
            raise CacheError(
                f"{self.path} is unfinished: {self.manifest.num_images} of "
                f"{self.manifest.dataset.num_images} images are in its shards. Run "
                f"{self.manifest.build_command} again with the same arguments to continue it"
            )

    def _layout(self, shard: int) -> Layout:
        """Where the fields of a shard lie; its header is read once in a process."""
        layout = self._layouts.get(shard)
        if layout is None:
            path, info = Path(self._paths[shard]), self.manifest.shards[shard]
            layout = read_layout(path, self.manifest.fields)
            rows = layout["boxes"].shape[0]
            if rows != info.rows:
                raise DamagedFileError(f"{path} holds {rows} rows, the manifest says {info.rows}")
            self._layouts[shard] = layout
        return layout

    @contextlib.contextmanager
    def _fix_named(self, info: ShardInfo) -> Iterator[None]:
        """Add to the message of damage what to do about it."""
        try:
            yield
        except DamagedFileError as error:
            fix = self.manifest.shard_fix(info.file)
            raise DamagedFileError(f"{error}. {fix}") from error


def _has_sound_values(proposals: CachedProposals) -> bool:
    """Checksums do not protect from who wrote them; this takes microseconds of a read."""
    boxes, objectness = proposals.boxes.numpy(), proposals.objectness.numpy()
    embeddings = proposals.embeddings
    return bool(
        np.isfinite(boxes).all()
        and (boxes[:, 2:] >= boxes[:, :2]).all()
        and ((objectness >= 0) & (objectness <= 1)).all()
        and (embeddings is None or embeddings.sum().isfinite())
    )


class ProposalStore(RecordStore):
    """Class-agnostic proposals of a data set: `store[image_id]` -> `CachedProposals`."""

    kind = "proposals"


class EmbeddingCache(RecordStore):
    """Proposals with the teacher's embeddings: `cache[image_id]` -> `CachedProposals`."""

    kind = "embeddings"


def open_store(path: str | os.PathLike[str], *, allow_incomplete: bool = False) -> RecordStore:
    """Open a store of either kind, as its manifest says. Arguments and errors: `RecordStore`."""
    kinds: dict[str, type[RecordStore]] = {one.kind: one for one in (ProposalStore, EmbeddingCache)}
    folder = fetch_store(path)
    return kinds[Manifest.load(folder).kind](folder, allow_incomplete=allow_incomplete)
