"""Records and the shard files that hold them.

Why safetensors: opening a file cannot run code; its header is checked against its size, so
truncation is found on opening; a record is a run of rows in every tensor, so it is read at random,
and K may vary from image to image. Why shards: LVIS would be 100,170 files of one image, and of one
file for all images a crash or a bad sector would cost everything.

A shard of n images with R proposals in total holds
  image_ids  (n,)   int64  ascending
  offsets    (n+1,) int64  record i is the rows offsets[i]:offsets[i+1] of every field
  checksums  (n,)   int64  of each record, see `record_checksum`
  <field>    (R, ...)      the concatenated field; which ones: `Manifest.fields`
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from ovd_d2.cache import quantization
from ovd_d2.cache.manifest import DamagedFileError, FieldSpec, Manifest, ShardInfo
from ovd_d2.files import sha256_file

Record = dict[str, torch.Tensor]
Arrays = dict[str, NDArray]

# One key only: safetensors does not keep the order of metadata keys, and equal shards must be
# equal files.
_METADATA = {"format": "ovd_d2 record shard"}
_UNIT_NORM_TOLERANCE = 1e-3
_INDEX_TENSORS = dict.fromkeys(("image_ids", "offsets", "checksums"), torch.int64)
# The types that a shard may hold, as safetensors names them.
_TYPES: dict[str, tuple[torch.dtype, np.dtype]] = {
    "F32": (torch.float32, np.dtype("<f4")),
    "F16": (torch.float16, np.dtype("<f2")),
    "I8": (torch.int8, np.dtype("i1")),
    "I64": (torch.int64, np.dtype("<i8")),
}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in its file: first byte, bytes of a row, type and shape."""

    begin: int
    row_bytes: int
    dtype: np.dtype
    shape: tuple[int, ...]


Layout = Mapping[str, TensorPlace]  # what a shard's header says


def encode_record(manifest: Manifest, image_id: int, tensors: Mapping[str, torch.Tensor]) -> Record:
    """Check a record and return it in the stored types, on the CPU.

    Raises:
        ValueError: wrong fields or shapes, NaN or infinity, a box with x2 < x1, objectness
            outside [0, 1], or an embedding that is not a unit vector; the image id is named.
    """
    fields = {name: spec for name, spec in manifest.fields.items() if name != "scales"}
    if set(tensors) != set(fields):
        raise ValueError(
            f"image {image_id}: record has fields {sorted(tensors)}, expected {sorted(fields)}"
        )
    rows = tensors["boxes"].shape[0] if tensors["boxes"].ndim else -1
    for name, spec in fields.items():
        expected, found = (rows, *spec.shape), tuple(tensors[name].shape)
        if found != expected:
            raise ValueError(
                f"image {image_id}: {name} has shape {found}, expected {expected} "
                "(as many rows as boxes)"
            )
    if problems := value_problems(tensors):
        raise ValueError(f"image {image_id}: refused: {'; '.join(problems)}")
    record = {name: tensors[name].detach().to("cpu", torch.float32).contiguous() for name in fields}
    if "embeddings" in record:
        record.update(quantization.encode(record["embeddings"], manifest.dtype))
    return record


def value_problems(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """What is wrong with the values of a record or a shard, before encoding or as stored."""
    floats = {name: value for name, value in sorted(tensors.items()) if value.is_floating_point()}
    not_finite = [
        f"{_count(~value.reshape(len(value), -1).isfinite().all(1))} rows of {name} are NaN or "
        "infinite"
        for name, value in floats.items()
        if not value.isfinite().all()
    ]
    if not_finite:
        return not_finite
    boxes, objectness = tensors["boxes"], tensors["objectness"]
    wrong = {
        "boxes have x2 < x1 or y2 < y1 (expected XYXY)": (boxes[:, 2:] < boxes[:, :2]).any(1),
        "objectness values lie outside [0, 1]": (objectness < 0) | (objectness > 1),
    }
    if "embeddings" in tensors:
        embeddings, scales = tensors["embeddings"], tensors.get("scales")
        norms = quantization.lengths(embeddings, scales)
        tolerance = quantization.length_tolerance(embeddings, scales) + _UNIT_NORM_TOLERANCE
        not_unit = ~((norms - 1).abs() <= tolerance)
        first = norms[not_unit][:1].tolist()
        wrong[f"embeddings are not unit rows (first norm: {first})"] = not_unit
    return [f"{_count(flags)} {what}" for what, flags in wrong.items() if flags.any()]


def record_checksum(image_id: int, fields: Iterable[NDArray]) -> int:
    """XXH3-64 of a record as a signed integer, as int64 tensors hold it.

    Over the image id (8 bytes, little-endian), then the stored bytes of every field in the order
    of `Manifest.fields`.
    """
    digest = xxhash.xxh3_64(image_id.to_bytes(8, "little", signed=True))
    for values in fields:
        digest.update(values.data)
    return int.from_bytes(digest.digest(), "big", signed=True)


def pack_shard(records: Sequence[tuple[int, Record]]) -> bytes:
    """The bytes of a shard; the same records give the same bytes whatever their order.

    Args:
        records: at least one image id with its record, the fields in the order of
            `Manifest.fields` (as `encode_record` and `RecordStore.read_undecoded` give them).
    """
    ordered = sorted(records, key=lambda item: item[0])
    counts = [record["boxes"].shape[0] for _, record in ordered]
    checksums = [
        record_checksum(image_id, [value.numpy() for value in record.values()])
        for image_id, record in ordered
    ]
    tensors = {name: torch.cat([record[name] for _, record in ordered]) for name in ordered[0][1]}
    tensors["image_ids"] = torch.tensor([image_id for image_id, _ in ordered], dtype=torch.int64)
    tensors["offsets"] = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    tensors["checksums"] = torch.tensor(checksums, dtype=torch.int64)
    return serialize(tensors, _METADATA)


def data_bytes(fields: Mapping[str, FieldSpec], images: int, rows: int) -> int:
    """Bytes of all tensors of a shard (or of all shards of a store), without the headers."""
    row = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in fields.values())
    return rows * row + 8 * (3 * images + 1)


def check_size(path: Path, info: ShardInfo) -> None:
    """Raise DamagedFileError unless a shard is there with its size; it is not opened."""
    try:
        status = path.stat()
    except OSError:
        raise DamagedFileError(f"{path} is missing") from None
    if status.st_size != info.bytes or not S_ISREG(status.st_mode):
        raise DamagedFileError(
            f"{path} is damaged (it has {status.st_size} bytes, the manifest says {info.bytes})"
        )


def read_layout(path: Path, fields: Mapping[str, FieldSpec]) -> Layout:
    """Read a shard's header and check it against the size of the file and `fields`.

    Raises:
        DamagedFileError: the file is missing, truncated or not a shard of this store.
    """
    try:
        # safetensors checks that the tensors fill the file without gaps.
        with safe_open(path, framework="pt") as handle:
            names = set(handle.keys())
        if names != {*fields, *_INDEX_TENSORS}:
            raise DamagedFileError(f"{path} holds {sorted(names)}: not a shard of this store")
        layout = _locate(path)
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error})") from error
    if problem := _layout_problem(layout, fields):
        raise DamagedFileError(f"{path} is damaged ({problem})")
    return layout


def read_rows(path: str, layout: Layout, names: Iterable[str], start: int, rows: int) -> Arrays:
    """Read the rows start : start + rows of some tensors into arrays of their own.

    Read, not mapped: a first touch of mapped pages costs more than the copy, every worker's memory
    would seem to grow to the size of the cache, and a file that is cut short while it is mapped
    kills the process.

    Raises:
        DamagedFileError: the file is missing or too short.
    """
    arrays = {}
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            for name in names:
                place = layout[name]
                arrays[name] = values = np.empty((rows, *place.shape[1:]), place.dtype)
                begin = place.begin + start * place.row_bytes
                if os.preadv(file, [values.data], begin) != values.nbytes:
                    raise DamagedFileError(f"{path} is damaged (it ends inside a record)")
        finally:
            os.close(file)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error})") from error
    return arrays


def open_shard(path: Path, fields: Mapping[str, FieldSpec]) -> Record:
    """Map a shard into memory: every tensor is a view of the file, read when it is touched.

    Raises:
        DamagedFileError: the file is missing, truncated or not a shard of this store, or its ids
            or offsets do not ascend.
    """
    read_layout(path, fields)
    # The mapping outlives the handle, so no file descriptor stays open for a shard.
    with safe_open(path, framework="pt") as handle:
        shard = {name: handle.get_tensor(name) for name in (*fields, *_INDEX_TENSORS)}
    ids, offsets, rows = shard["image_ids"], shard["offsets"], len(shard["boxes"])
    problem = ""
    if offsets[0] != 0 or (offsets.diff() < 0).any():
        problem = "offsets do not ascend from 0"
    elif offsets[-1] != rows:
        problem = f"offsets end at {int(offsets[-1])}, the fields have {rows} rows"
    elif (ids < 0).any() or (ids.diff() <= 0).any():
        problem = "image_ids do not ascend from 0"
    if problem:
        raise DamagedFileError(f"{path} is damaged ({problem})")
    return shard


def damaged_records(shard: Record) -> list[int]:
    """The image ids of a shard whose records do not agree with their checksums."""
    arrays = {name: value.numpy() for name, value in shard.items()}
    ids, offsets, checksums = (arrays.pop(name).tolist() for name in _INDEX_TENSORS)
    return [
        image_id
        for image_id, (start, stop), checksum in zip(ids, pairwise(offsets), checksums, strict=True)
        if record_checksum(image_id, [value[start:stop] for value in arrays.values()]) != checksum
    ]


def read_back(path: Path, fields: Mapping[str, FieldSpec]) -> tuple[list[int], ShardInfo]:
    """The image ids and the listing of a shard, of which every record fits its checksum.

    Raises:
        DamagedFileError: the file is missing, truncated, garbled or not a shard of this store.
    """
    shard = open_shard(path, fields)
    if damaged := damaged_records(shard):
        raise DamagedFileError(
            f"{path} is damaged: {len(damaged)} of {len(shard['image_ids'])} records do not fit "
            f"their checksums (first ids: {damaged[:5]})"
        )
    return shard["image_ids"].tolist(), describe_shard(path, shard, sha256_file(path))


def describe_shard(path: Path, shard: Record, sha256: str = "") -> ShardInfo:
    """The listing of a shard that `open_shard` has opened."""
    images, rows = len(shard["image_ids"]), len(shard["boxes"])
    return ShardInfo(path.name, images, rows, path.stat().st_size, sha256)


def _locate(path: Path) -> Layout:
    """The places in a file whose header safetensors has found sound."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"{name} has the type {entry['dtype']}")
        dtype, shape = _TYPES[entry["dtype"]][1], tuple(entry["shape"])
        begin = 8 + length + entry["data_offsets"][0]
        places[name] = TensorPlace(begin, dtype.itemsize * math.prod(shape[1:]), dtype, shape)
    return places


def _layout_problem(layout: Layout, fields: Mapping[str, FieldSpec]) -> str:
    images, rows = layout["image_ids"].shape[:1], layout["boxes"].shape[:1]
    expected = {name: (spec.dtype, (*rows, *spec.shape)) for name, spec in fields.items()}
    expected |= {name: (dtype, images) for name, dtype in _INDEX_TENSORS.items()}
    expected["offsets"] = (torch.int64, tuple(count + 1 for count in images))
    types = {numpy_type: torch_type for torch_type, numpy_type in _TYPES.values()}
    for name, (dtype, shape) in expected.items():
        place = layout[name]
        if types[place.dtype] != dtype or place.shape != shape:
            return f"{name} is {types[place.dtype]} {place.shape}, expected {dtype} {shape}"
    return ""


def _count(flags: torch.Tensor) -> str:
    return f"{int(flags.sum())} of {len(flags)}"
