"""The manifest of a record store: what is in the folder and what it was made from.

The format is written down in docs/cache-format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from ovd_d2.errors import brief
from ovd_d2.files import atomic_write, fingerprint_json, read_bounded

SCHEMA_VERSION = 2
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20  # 250,000 shards; anything larger is not read
KINDS = ("proposals", "embeddings")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
BUILD_COMMANDS = {"proposals": "tools/extract_proposals.py", "embeddings": "tools/cache.py build"}
# What changes while a store is being written; everything else is the header.
_PROGRESS_KEYS = ("shards", "index")
# A store may come from elsewhere: no name may point out of its own folder.
_SHARD_NAME = re.compile(r"shard-(?:([a-z])(\d{3,9})-)?\d{5,9}\.safetensors")
_RECIPE_DEPTH = 8
# The file's last bytes: 64 hexadecimal characters, then this.
_TAIL = b'"\n}\n'


class CacheError(RuntimeError):
    """A store that is damaged, unfinished, foreign or made for something else."""


class DamagedFileError(CacheError):
    """A file of a store that is missing, truncated or garbled; only its content is lost."""


@dataclass(frozen=True)
class FieldSpec:
    """One field of a record: its shape without the leading K, and its stored type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class DatasetInfo:
    """The data set a store was made for: its name in `DatasetCatalog`, `dataset_fingerprint` of its
    images, and how many they are.
    """

    name: str
    fingerprint: str
    num_images: int


@dataclass(frozen=True)
class ShardInfo:
    """One shard: file name in the folder, counts, size and SHA-256 ("" while being built)."""

    file: str
    images: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexInfo:
    """The index file of a finished store: its size, its SHA-256 and its `Index.content`."""

    bytes: int
    sha256: str
    content: str


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
        shards, index: of a finished store; empty and None while it is being built.
    """

    kind: str
    dataset: DatasetInfo
    proposals: str
    recipe: dict[str, Any] = field(default_factory=dict)
    teacher: str = ""
    embedding_dim: int = 0
    dtype: str = "float16"
    schema_version: int = SCHEMA_VERSION
    shards: list[ShardInfo] = field(default_factory=list)
    index: IndexInfo | None = None

    def __post_init__(self) -> None:
        if problems := _header_problems(self):
            raise ValueError("invalid manifest: " + "; ".join(problems))

    @property
    def fields(self) -> dict[str, FieldSpec]:
        """The fields of every record of this store, in the order that its checksum takes them."""
        fields = {
            "boxes": FieldSpec((4,), torch.float32),
            "objectness": FieldSpec((), torch.float32),
        }
        if self.kind == "embeddings":
            fields["embeddings"] = FieldSpec((self.embedding_dim,), DTYPES[self.dtype])
            if self.dtype == "int8":
                fields["scales"] = FieldSpec((), torch.float32)
        return fields

    @property
    def complete(self) -> bool:
        """Every image of the data set has a record, and the index is written."""
        return self.index is not None

    @property
    def num_images(self) -> int:
        """Records in the finished shards."""
        return sum(shard.images for shard in self.shards)

    @property
    def num_rows(self) -> int:
        """Proposals in the finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Size of the finished shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal characters over the header and every record, however it lies in shards.

        Raises:
            CacheError: the store is unfinished.
        """
        if self.index is None:
            raise CacheError(
                f"the {self.kind} of '{self.dataset.name}' are unfinished, so they have no "
                f"fingerprint yet: run {self.build_command} again with the same arguments"
            )
        return fingerprint_json([self.header(), self.index.content])

    @property
    def build_command(self) -> str:
        """The tool that writes stores of this kind."""
        return BUILD_COMMANDS[self.kind]

    def shard_fix(self, file: str) -> str:
        """What to do about a damaged shard, in words."""
        return (
            f"Delete {file} if it is there and run {self.build_command} again with the same "
            "arguments: only its images are built again"
        )

    def header(self) -> dict[str, Any]:
        """What must be equal for a build to be continued."""
        # Through JSON: a tuple in a recipe is a list once it comes back from the disk.
        content = json.loads(json.dumps(asdict(self), allow_nan=False))
        return {key: value for key, value in content.items() if key not in _PROGRESS_KEYS}

    def differences(self, other: Manifest) -> list[str]:
        """Header keys in which `other` differs, in words: "teacher: 'a' here, 'b' asked for"."""
        mine, theirs = _flatten(self.header()), _flatten(other.header())
        return [
            f"{key}: {mine.get(key)!r} here, {theirs.get(key)!r} asked for"
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]

    def save(self, folder: Path) -> None:
        """Write `folder/manifest.json` with its own checksum, whole or not at all."""
        text = json.dumps({**asdict(self), "checksum": ""}, indent=2, allow_nan=False) + "\n"
        body = text.encode("ascii")[: -len(_TAIL)]
        with atomic_write(folder / MANIFEST_FILE) as temporary:
            temporary.write_bytes(body + hashlib.sha256(body).hexdigest().encode() + _TAIL)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder/manifest.json`.

        Raises:
            CacheError: the file is missing, damaged, or not a manifest of this version.
        """
        path = folder / MANIFEST_FILE
        try:
            return _parse(read_bounded(path, MAX_MANIFEST_BYTES), path)
        except FileNotFoundError:
            raise CacheError(
                f"no record store in {folder}: {MANIFEST_FILE} is missing. Build it with "
                f"{BUILD_COMMANDS['proposals']} (proposals) or {BUILD_COMMANDS['embeddings']} "
                "(embeddings)"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CacheError(
                f"{path} is damaged ({error}); restore it from a copy or build the store again "
                "with --overwrite"
            ) from error


def shard_name(images_per_shard: int, number: int) -> str:
    """The name of the number-th shard: 64, 12 -> "shard-n064-00012.safetensors"."""
    return f"shard-n{images_per_shard:03d}-{number:05d}.safetensors"


def is_shard_name(name: object) -> bool:
    """A plain name: of `shard_name`, or of an older version (with a rank, or without)."""
    return isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None


def images_per_shard_of(name: str) -> int | None:
    """What `shard_name` was given; None for a shard of an older version."""
    match = _SHARD_NAME.fullmatch(name)
    return int(match.group(2)) if match and match.group(1) == "n" else None


def local_folder(path: str | os.PathLike[str]) -> Path:
    """The local folder of `path`, through Detectron2's PathManager (`datasets://` and others)."""
    return Path(PathManager.get_local_path(os.fspath(path)))


def _header_problems(manifest: Manifest) -> list[str]:
    # JSON may hold anything anywhere; nothing is computed before its type is known.
    problems = [*_type_problems(manifest), *_type_problems(manifest.dataset, "dataset.")]
    if not isinstance(manifest.recipe, dict) or not _is_plain(manifest.recipe, _RECIPE_DEPTH):
        problems.append(
            f"recipe is {brief(manifest.recipe)}, expected a JSON object of finite numbers, "
            f"at most {_RECIPE_DEPTH} levels deep"
        )
    if problems:
        return problems
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


def _file_problems(manifest: Manifest) -> list[str]:
    """What is wrong with the entries of shards and index that were read from a file."""
    problems = [] if manifest.index is None else _type_problems(manifest.index, "index.")
    for shard in manifest.shards:
        if is_shard_name(shard.file):
            problems += _type_problems(shard, f"{shard.file}: ")
        else:
            problems.append(
                f"shard file name {brief(shard.file)} is not a plain name as {shard_name(64, 0)}"
            )
    if not problems and len({shard.file for shard in manifest.shards}) < len(manifest.shards):
        problems.append("a shard is listed twice")
    return problems


def _type_problems(record: Any, prefix: str = "") -> list[str]:
    """What is neither a text nor a number that an index can hold, where a dataclass has one."""
    problems = []
    for one in fields(record):
        value = getattr(record, one.name)
        if one.type == "str" and not isinstance(value, str):
            problems.append(f"{prefix}{one.name} is {brief(value)}, expected a text")
        if one.type == "int" and not (type(value) is int and 0 <= value < 2**63):
            problems.append(f"{prefix}{one.name} is {brief(value)}, expected a whole number")
    return problems


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (Mapping, list, tuple)):
        inner = value.values() if isinstance(value, Mapping) else value
        return depth > 0 and all(_is_plain(one, depth - 1) for one in inner)
    return True


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _parse(data: bytes, path: Path) -> Manifest:
    content = json.loads(data.decode("utf-8"))
    if not isinstance(content, dict) or "schema_version" not in content:
        raise CacheError(
            f"{path} is not the manifest of an ovd_d2 record store: restore it from a copy or "
            "build the store again"
        )
    if content["schema_version"] != SCHEMA_VERSION:
        raise CacheError(
            f"{path}: schema version {content['schema_version']}, this ovd_d2 reads version "
            f"{SCHEMA_VERSION}; build the store again or install the matching ovd_d2"
        )
    _check_checksum(data)
    del content["checksum"]
    index = content.pop("index")
    manifest = Manifest(
        dataset=DatasetInfo(**content.pop("dataset")),
        shards=[ShardInfo(**shard) for shard in content.pop("shards")],
        index=None if index is None else IndexInfo(**index),
        **content,
    )
    if problems := _file_problems(manifest):
        raise ValueError("; ".join(problems))
    return manifest


def _check_checksum(data: bytes) -> None:
    """The last 68 bytes are the SHA-256 of everything before them, a quote, a brace, line ends."""
    expected = hashlib.sha256(data[:-68]).hexdigest()
    if data[-68:] != expected.encode() + _TAIL:
        raise ValueError(f"its checksum is {expected}, its end says {data[-68:-4]!r}")
