"""Records and the shard files that hold them.

Format: safetensors files of a few hundred images each ("shards"). Why safetensors:
  - no pickle: opening a file from elsewhere cannot run code;
  - memory-mapped: slicing a record touches only its own pages and copies nothing until it is
    decoded, so random access by many loader workers shares one page cache (a 300 x 512 fp16
    record costs what a numpy memmap costs; h5py, lance and zarr are 2 to 30 times slower);
  - the header states type, shape and place of every tensor and is checked against the size of
    the file, so truncation is found on opening instead of in training;
  - K varies from image to image without padding, which a plain memmap array does not allow;
  - one small dependency without further ones, readable from other languages.
Shards instead of one file an image: LVIS would be 100,170 files; instead of one file: a crash or a
bad sector then costs one shard and not the whole build.

A shard of n images with R proposals in total holds
  image_ids  (n,)   int64  ascending
  offsets    (n+1,) int64  record i is the rows offsets[i]:offsets[i+1] of every field
  <field>    (R, ...)      the concatenated field; which ones: `Manifest.fields`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from ovd_d2.cache.manifest import DamagedFileError, FieldSpec, Manifest

Record = dict[str, torch.Tensor]

# One key only: safetensors does not keep the order of metadata keys, and equal shards must be
# equal files.
_METADATA = {"format": "ovd_d2 record shard"}
_UNIT_NORM_TOLERANCE = 1e-3
# fp16 keeps 11 bits: rounding moves the norm of a unit row by less than 2^-11.
STORED_NORM_TOLERANCE = 2e-3


def encode_record(manifest: Manifest, image_id: int, tensors: Mapping[str, torch.Tensor]) -> Record:
    """Check a record and return it in the stored types, on the CPU.

    Raises:
        ValueError: wrong fields or shapes, NaN or infinity, a box with x2 < x1, objectness
            outside [0, 1], or an embedding that is not a unit vector; the image id is named.
    """
    fields = manifest.fields
    if set(tensors) != set(fields):
        raise ValueError(
            f"image {image_id}: record has fields {sorted(tensors)}, expected {sorted(fields)}"
        )
    _check_shapes(image_id, tensors, fields)
    problems = value_problems(tensors, _UNIT_NORM_TOLERANCE)
    if problems:
        raise ValueError(f"image {image_id}: refused: {'; '.join(problems)}")
    return {
        name: tensors[name].detach().to("cpu", spec.dtype).contiguous()
        for name, spec in fields.items()
    }


def value_problems(tensors: Mapping[str, torch.Tensor], norm_tolerance: float) -> list[str]:
    """What is wrong with the values of a record (or of a whole shard), in words."""
    not_finite = [
        f"{_count(~torch.isfinite(value).flatten(1).all(1))} rows of {name} are NaN or infinite"
        for name, value in _rows(tensors)
        if not torch.isfinite(value).all()
    ]
    if not_finite:
        return not_finite
    problems = []
    boxes, objectness = tensors["boxes"], tensors["objectness"]
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if inverted.any():
        problems.append(f"{_count(inverted)} boxes have x2 < x1 or y2 < y1 (expected XYXY)")
    outside = (objectness < 0) | (objectness > 1)
    if outside.any():
        problems.append(f"{_count(outside)} objectness values lie outside [0, 1]")
    if "embeddings" in tensors:
        norms = tensors["embeddings"].float().norm(dim=1)
        wrong = (norms - 1).abs() > norm_tolerance
        if wrong.any():
            example = norms[wrong][0].item()
            problems.append(f"{_count(wrong)} embeddings are not unit rows (norm {example:.4f})")
    return problems


def write_record(path: Path, image_id: int, record: Record) -> None:
    """Write one encoded record as a shard of one image to `path` (no atomicity of its own)."""
    path.write_bytes(pack_shard([(image_id, record)]))


def pack_shard(records: Sequence[tuple[int, Record]]) -> bytes:
    """The bytes of a shard; the same records give the same bytes whatever their order."""
    ordered = sorted(records, key=lambda item: item[0])
    counts = [record["boxes"].shape[0] for _, record in ordered]
    tensors = {name: torch.cat([record[name] for _, record in ordered]) for name in ordered[0][1]}
    tensors["image_ids"] = torch.tensor([image_id for image_id, _ in ordered], dtype=torch.int64)
    tensors["offsets"] = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
    return serialize(tensors, _METADATA)


def open_shard(path: Path, fields: Mapping[str, FieldSpec]) -> Record:
    """Map a shard into memory: every tensor is a view of the file, read when it is touched.

    The header is checked against the file's size, `fields` and the offsets.

    Raises:
        DamagedFileError: the file is missing, truncated or not a shard of this store.
    """
    try:
        # The mapping outlives the handle, so no file descriptor stays open for a shard.
        with safe_open(path, framework="pt") as handle:
            names = set(handle.keys())
            if names != {*fields, "image_ids", "offsets"}:
                raise DamagedFileError(f"{path} holds {sorted(names)}: not a shard of this store")
            tensors = {name: handle.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise DamagedFileError(f"{path} is missing") from None
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged ({error})") from error
    problem = _layout_problem(tensors, fields)
    if problem:
        raise DamagedFileError(f"{path} is damaged ({problem})")
    return tensors


def read_pending(path: Path, manifest: Manifest) -> tuple[int, Record]:
    """Read back a pending file (a shard of one image) into memory.

    Raises:
        DamagedFileError: it is damaged or holds another image than its name says.
    """
    shard = open_shard(path, manifest.fields)
    ids = shard.pop("image_ids").tolist()
    del shard["offsets"]
    if [str(image_id) for image_id in ids] != [path.stem]:
        raise DamagedFileError(f"{path} is damaged (it holds the images {ids})")
    problems = value_problems(shard, STORED_NORM_TOLERANCE)
    if problems:
        raise DamagedFileError(f"{path} is damaged ({'; '.join(problems)})")
    return ids[0], {name: value.clone() for name, value in shard.items()}


def _check_shapes(
    image_id: int, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, FieldSpec]
) -> None:
    rows = tensors["boxes"].shape[0] if tensors["boxes"].ndim else -1
    for name, spec in fields.items():
        expected, found = (rows, *spec.shape), tuple(tensors[name].shape)
        if found != expected:
            raise ValueError(
                f"image {image_id}: {name} has shape {found}, expected {expected} "
                "(as many rows as boxes)"
            )


def _layout_problem(shard: Record, fields: Mapping[str, FieldSpec]) -> str:
    ids, offsets = shard["image_ids"], shard["offsets"]
    if ids.dtype != torch.int64 or offsets.dtype != torch.int64:
        return "image_ids and offsets must be int64"
    if ids.ndim != 1 or offsets.shape != (len(ids) + 1,):
        return f"{tuple(ids.shape)} image_ids do not fit {tuple(offsets.shape)} offsets"
    if offsets[0] != 0 or (offsets.diff() < 0).any():
        return "offsets do not ascend from 0"
    if (ids.diff() <= 0).any():
        return "image_ids do not ascend"
    rows = int(offsets[-1])
    for name, spec in fields.items():
        value = shard[name]
        if value.dtype != spec.dtype or tuple(value.shape) != (rows, *spec.shape):
            return (
                f"{name} is {value.dtype} {tuple(value.shape)}, "
                f"expected {spec.dtype} {(rows, *spec.shape)}"
            )
    return ""


def _rows(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """The floating fields as (R, -1), so that one test fits vectors and scalars."""
    return [
        (name, value.unsqueeze(1) if value.ndim == 1 else value)
        for name, value in sorted(tensors.items())
        if value.is_floating_point()
    ]


def _count(flags: torch.Tensor) -> str:
    return f"{int(flags.sum())} of {len(flags)}"
