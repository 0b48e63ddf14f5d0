"""The manifest of a record store: what is in the folder and what it was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from ovd_d2.files import atomic_write_json, fingerprint_json

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
KINDS = ("proposals", "embeddings")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# What changes while a store is being written; everything else is the header.
_PROGRESS_KEYS = ("complete", "shards")


class CacheError(RuntimeError):
    """A store that is damaged, unfinished, foreign or made for something else."""


class DamagedFileError(CacheError):
    """A file of a store that is missing, truncated or garbled; only its images are lost."""


@dataclass(frozen=True)
class FieldSpec:
    """One field of a record: its shape without the leading K, and its stored type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class DatasetInfo:
    """The data set a store was made for.

    Attributes:
        name: its name in Detectron2's `DatasetCatalog`.
        fingerprint: see `dataset_fingerprint`.
        num_images: a finished store holds exactly this many records.
    """

    name: str
    fingerprint: str
    num_images: int


@dataclass(frozen=True)
class ShardInfo:
    """One finished shard: file name inside the folder, its counts and its SHA-256."""

    file: str
    images: int
    rows: int
    sha256: str


@dataclass
class Manifest:
    """Identity and progress of a record store; `manifest.json` in its folder.

    Attributes:
        kind: "proposals" (boxes, objectness) or "embeddings" (the same + embeddings).
        dataset: the data set whose images the records describe.
        proposals: fingerprint of what the boxes come from.
        recipe: everything else that shaped the records (crop recipe, top K, thresholds): JSON.
        teacher: fingerprint of the teacher, "" in a proposal store.
        embedding_dim: width D of the embeddings, 0 in a proposal store.
        dtype: stored type of the embeddings; boxes and objectness are always float32.
        complete: every image of the data set has a record.
        shards: the finished shards in the order they were written.
    """

    kind: str
    dataset: DatasetInfo
    proposals: str
    recipe: dict[str, Any] = field(default_factory=dict)
    teacher: str = ""
    embedding_dim: int = 0
    dtype: str = "float16"
    schema_version: int = SCHEMA_VERSION
    complete: bool = False
    shards: list[ShardInfo] = field(default_factory=list)

    def __post_init__(self) -> None:
        problems = _header_problems(self)
        if problems:
            raise ValueError("invalid manifest: " + "; ".join(problems))

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The fields of every record of this store."""
        fields = {
            "boxes": FieldSpec((4,), torch.float32),
            "objectness": FieldSpec((), torch.float32),
        }
        if self.kind == "embeddings":
            fields["embeddings"] = FieldSpec((self.embedding_dim,), DTYPES[self.dtype])
        return fields

    @property
    def num_images(self) -> int:
        """Records in the finished shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """Proposals in the finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal characters over the header and the content of every shard."""
        return fingerprint_json([self.header(), sorted(shard.sha256 for shard in self.shards)])

    def header(self) -> dict[str, Any]:
        """What must be equal for a build to be continued."""
        # Through JSON: a tuple in a recipe is a list once it comes back from the disk.
        content = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {key: value for key, value in content.items() if key not in _PROGRESS_KEYS}

    def differences(self, other: Manifest) -> list[str]:
        """Header keys in which `other` differs, in words: "teacher: this 'a', other 'b'"."""
        mine, theirs = _flatten(self.header()), _flatten(other.header())
        return [
            f"{key}: {mine.get(key)!r} here, {theirs.get(key)!r} asked for"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json`, whole or not at all."""
        atomic_write_json(folder / MANIFEST_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/manifest.json`.

        Raises:
            CacheError: the file is missing, is no JSON, or is not a manifest of this version.
        """
        path = folder / MANIFEST_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CacheError(
                f"no record store in {folder}: {MANIFEST_FILE} is missing. Build it with "
                "tools/extract_proposals.py (proposals) or tools/build_cache.py (embeddings)"
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CacheError(
                f"{path} is damaged ({error}); build the store again with --overwrite"
            ) from error
        return _parse(content, path)


def dataset_fingerprint(dataset_dicts: Iterable[Mapping[str, Any]]) -> str:
    """Fingerprint of the images of a data set in Detectron2's format, whatever their order.

    Image id, file name without folders (a data set may be moved), height and width count;
    annotations do not: base-only and full versions of one split share their proposals.
    """
    rows = sorted(
        [
            int(entry["image_id"]),
            Path(entry["file_name"]).name,
            entry.get("height"),
            entry.get("width"),
        ]
        for entry in dataset_dicts
    )
    return fingerprint_json(rows)


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder of `path`, through Detectron2's PathManager (`datasets://` and others)."""
    return Path(PathManager.get_local_path(os.fspath(path)))


def _header_problems(manifest: Manifest) -> list[str]:
    problems = []
    if manifest.kind not in KINDS:
        problems.append(f"kind is '{manifest.kind}', expected one of {', '.join(KINDS)}")
    if manifest.dtype not in DTYPES:
        problems.append(f"dtype is '{manifest.dtype}', expected one of {', '.join(DTYPES)}")
    if manifest.dataset.num_images < 1:
        problems.append(f"data set '{manifest.dataset.name}' has no images")
    if manifest.kind == "embeddings" and manifest.embedding_dim < 1:
        problems.append(f"embedding_dim is {manifest.embedding_dim}, expected at least 1")
    if manifest.kind == "embeddings" and not manifest.teacher:
        problems.append("teacher is empty, expected the teacher's fingerprint")
    if manifest.kind == "proposals" and (manifest.embedding_dim or manifest.teacher):
        problems.append("a proposal store has no teacher and embedding_dim 0")
    return problems


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parse(content: Any, path: Path) -> Manifest:
    if not isinstance(content, dict) or "schema_version" not in content:
        raise CacheError(f"{path} is not the manifest of an ovd_d2 record store")
    if content["schema_version"] != SCHEMA_VERSION:
        raise CacheError(
            f"{path}: schema version {content['schema_version']}, this ovd_d2 reads version "
            f"{SCHEMA_VERSION}; build the store again or install the matching ovd_d2"
        )
    try:
        dataset = DatasetInfo(**content.pop("dataset"))
        shards = [_parse_shard(shard) for shard in content.pop("shards")]
        return Manifest(dataset=dataset, shards=shards, **content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(
            f"{path} is damaged ({error}); build the store again with --overwrite"
        ) from error


def _parse_shard(content: Mapping[str, Any]) -> ShardInfo:
    shard = ShardInfo(**content)
    # A store may come from elsewhere: no entry may point out of its own folder.
    if Path(shard.file).name != shard.file or not shard.file:
        raise ValueError(f"shard file name {shard.file!r} is not a plain file name")
    return shard
