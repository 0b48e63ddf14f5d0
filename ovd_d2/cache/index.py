"""The index of a finished store: where every record lies, in one small file.

`index.safetensors` holds, in the ascending order of the N image ids,
  image_ids  (N,) int64
  shard      (N,) int32  position in `Manifest.shards`
  start      (N,) int64  the record is the rows start : start + rows of every field
  rows       (N,) int32
  checksums  (N,) int64  `ovd_d2.cache.records.record_checksum`
The manifest holds its SHA-256, so opening a store of any size reads two files and scans none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as deserialize
from safetensors.numpy import save as serialize

from ovd_d2.cache.manifest import CacheError, DamagedFileError, IndexInfo, Manifest
from ovd_d2.cache.records import Record, open_shard
from ovd_d2.files import atomic_write, read_bounded

INDEX_FILE = "index.safetensors"
_METADATA = {"format": "ovd_d2 record index"}
_TYPES = {"image_ids": "<i8", "shard": "<i4", "start": "<i8", "rows": "<i4", "checksums": "<i8"}


@dataclass(frozen=True)
class Index:
    """The places of N records; see the module. Plain arrays: forked workers share their pages."""

    image_ids: NDArray[np.int64]
    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    rows: NDArray[np.int32]
    checksums: NDArray[np.int64]

    def find(self, image_id: int) -> int | None:
        """The position of an image, None if it has no record."""
        if not 0 <= image_id < 2**63:
            return None
        row = int(self.image_ids.searchsorted(image_id))
        return row if row < len(self.image_ids) and self.image_ids[row] == image_id else None

    def storage_order(self) -> list[int]:
        """The image ids as the records lie on the disk: shard after shard, ascending inside one."""
        ids: list[int] = self.image_ids[np.argsort(self.shard, kind="stable")].tolist()
        return ids

    @property
    def content(self) -> str:
        """SHA-256 over ids and checksums: what is stored, wherever it lies."""
        digest = hashlib.sha256(self.image_ids.astype("<i8").data)
        digest.update(self.checksums.astype("<i8").data)
        return digest.hexdigest()


def write_index(folder: Path, manifest: Manifest, index: Index) -> Manifest:
    """Write an index and, after it, the manifest that names it; returns the new manifest."""
    tensors = {name: np.ascontiguousarray(getattr(index, name)) for name in _TYPES}
    content = serialize(tensors, _METADATA)
    with atomic_write(folder / INDEX_FILE) as temporary:
        temporary.write_bytes(content)
    info = IndexInfo(len(content), hashlib.sha256(content).hexdigest(), index.content)
    finished = replace(manifest, index=info)
    finished.save(folder)
    return finished


def build_index(folder: Path, manifest: Manifest) -> Index:
    """The index of the manifest's shards, from their own ids, offsets and checksums.

    Raises:
        CacheError: a shard is missing or damaged, or two hold one image.
    """
    parts = [
        part_of(open_shard(folder / info.file, manifest.fields), number)
        for number, info in enumerate(manifest.shards)
    ]
    joined = {
        name: np.concatenate([np.empty(0, dtype), *(part[name] for part in parts)]).astype(dtype)
        for name, dtype in _TYPES.items()
    }
    order = np.argsort(joined["image_ids"], kind="stable")
    index = Index(**{name: values[order] for name, values in joined.items()})
    double = index.image_ids[1:][np.diff(index.image_ids) == 0]
    if len(double):
        raise CacheError(f"{folder} holds image {double[0]} twice; build it again with --overwrite")
    return index


def part_of(shard: Record, number: int) -> dict[str, NDArray]:
    """What the index says of the records of one shard, the number-th, in arrays of its own."""
    ids, offsets, checksums = (
        shard[name].numpy().copy() for name in ("image_ids", "offsets", "checksums")
    )
    return {
        "image_ids": ids,
        "shard": np.full(len(ids), number),
        "start": offsets[:-1],
        "rows": np.diff(offsets),
        "checksums": checksums,
    }


def load_index(folder: Path, manifest: Manifest) -> Index:
    """Read the index of a finished store and check it against the manifest.

    Raises:
        DamagedFileError: it is missing, damaged or of another build.
    """
    path = folder / INDEX_FILE
    try:
        if manifest.index is None:
            raise ValueError("the manifest names none")
        index = _read(path, manifest.index)
        if problem := _problem(index, manifest):
            raise ValueError(problem)
        if index.content != manifest.index.content:
            raise ValueError("its ids or checksums are not those of the manifest")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise DamagedFileError(
            f"{path} {what}. Delete {INDEX_FILE} if it is there and run {manifest.build_command} "
            "again with the same arguments: the index is written anew from the shards"
        ) from error
    return index


def find_index(folder: Path, manifest: Manifest) -> Index | None:
    """As `load_index`, None where the store is unfinished or the index damaged."""
    try:
        return load_index(folder, manifest)
    except DamagedFileError:
        return None


def _read(path: Path, info: IndexInfo) -> Index:
    content = read_bounded(path, info.bytes)
    if len(content) != info.bytes:
        raise ValueError(f"it has {len(content)} bytes, the manifest says {info.bytes}")
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != info.sha256:
        raise ValueError(f"its SHA-256 is {checksum}, the manifest says {info.sha256}")
    tensors = deserialize(content)
    if set(tensors) != set(_TYPES):
        raise ValueError(f"it holds {sorted(tensors)}, expected {sorted(_TYPES)}")
    for name, dtype in _TYPES.items():
        found, shape = tensors[name], (len(tensors["image_ids"]),)
        if found.dtype != np.dtype(dtype) or found.shape != shape:
            raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {dtype} {shape}")
    return Index(**tensors)


def _problem(index: Index, manifest: Manifest) -> str:
    """What would let a reader reach outside a shard, or find other records than the manifest's."""
    expected = manifest.dataset.num_images
    if len(index.image_ids) != expected:
        return f"it has {len(index.image_ids)} records, the data set has {expected} images"
    if (index.image_ids < 0).any() or (np.diff(index.image_ids) <= 0).any():
        return "image ids do not ascend from 0"
    count = len(manifest.shards)
    if (index.shard < 0).any() or (index.shard >= count).any():
        return f"a shard number lies outside 0 to {count - 1}"
    last = np.array([shard.rows for shard in manifest.shards], np.int64)[index.shard]
    if (index.start < 0).any() or (index.rows < 0).any() or (index.start > last).any():
        return "a record starts outside its shard"
    if (index.rows > last - index.start).any():
        return "a record ends outside its shard"
    images = np.bincount(index.shard, minlength=count)
    if images.tolist() != [shard.images for shard in manifest.shards]:
        return "it has other numbers of records per shard than the manifest"
    return ""
