"""Which files a store has, by name; nothing here reads or changes what is in them.

    manifest.json                          written by rank 0 alone
    images.json                            written by rank 0 alone, at the start
    index.safetensors                      written by rank 0 alone, when the store is complete
    shard-<writer>-<number>.safetensors    written by that writer alone
    .writer.lock                           held by rank 0 while a build runs
    building/<writer>/                     while a build runs; written by that writer alone
        journal.json                       its finished shards
        pending/<image id>.safetensors     images that are not in a shard yet
        .lock                              held by the writer while it lives

A writer is "r000", "r001", ... (the rank in a build) or "m000" (merge, convert).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ovd_d2.cache.identity import IMAGES_FILE
from ovd_d2.cache.index import INDEX_FILE
from ovd_d2.cache.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    ShardInfo,
    parse_shard_name,
    shard_problems,
)
from ovd_d2.files import TEMPORARY_SUFFIX, atomic_write_json, flush_folder, read_bounded

BUILDING_FOLDER = "building"
PENDING_FOLDER = "pending"
JOURNAL_FILE = "journal.json"
LOCK_FILE = ".writer.lock"
_WRITER = re.compile(r"[a-z]\d{3,9}")
# Schema version 1 had no writers; `delete_store` must know its shards.
_VERSION_1_SHARD = re.compile(r"shard-\d{5,}\.safetensors")


@dataclass(frozen=True)
class WriterFolder:
    """`building/<writer>/` of a store."""

    path: Path

    @classmethod
    def of(cls, store: Path, writer: str) -> WriterFolder:
        """The folder of a writer, which need not exist.

        Raises:
            ValueError: `writer` is no writer's name.
        """
        if not _WRITER.fullmatch(writer):
            raise ValueError(f"writer is '{writer}', expected a letter and digits, such as 'r000'")
        return cls(store / BUILDING_FOLDER / writer)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def pending_folder(self) -> Path:
        return self.path / PENDING_FOLDER

    def pending_file(self, image_id: int) -> Path:
        return self.pending_folder / f"{image_id}.safetensors"

    def pending_files(self) -> list[Path]:
        return sorted(self.pending_folder.glob("*.safetensors"))

    def save_journal(self, shards: Sequence[ShardInfo]) -> None:
        """List the finished shards of this writer, whole or not at all."""
        atomic_write_json(self.path / JOURNAL_FILE, [asdict(shard) for shard in shards])

    def load_journal(self) -> list[ShardInfo]:
        """The finished shards of this writer.

        Raises:
            ValueError, TypeError: the journal is damaged.
        """
        try:
            content = read_bounded(self.path / JOURNAL_FILE, MAX_MANIFEST_BYTES)
            shards = [ShardInfo(**entry) for entry in json.loads(content)]
        except FileNotFoundError:
            return []
        except RecursionError as error:
            raise ValueError("its brackets are nested too deeply") from error
        if problems := shard_problems(shards):
            raise ValueError(problems[0])
        return shards


def writer_folders(store: Path) -> list[WriterFolder]:
    """The folders of all writers that have not finished, in the order of their names."""
    found = sorted((store / BUILDING_FOLDER).glob("*"))
    return [WriterFolder(path) for path in found if _WRITER.fullmatch(path.name) and path.is_dir()]


def next_shard_number(store: Path, writer: str) -> int:
    """One more than the highest number of this writer's shards in the folder, listed or not."""
    names = [parse_shard_name(path.name) for path in store.iterdir()]
    return max((name[1] for name in names if name and name[0] == writer), default=-1) + 1


def shard_files(store: Path) -> list[Path]:
    """All shards in the folder, listed or not."""
    return sorted(path for path in store.iterdir() if _is_shard(path.name))


def _is_shard(name: str) -> bool:
    return parse_shard_name(name) is not None or _VERSION_1_SHARD.fullmatch(name) is not None


def store_files(store: Path) -> list[Path]:
    """Everything that holds records."""
    pending = [path for folder in writer_folders(store) for path in folder.pending_files()]
    version_1 = (store / PENDING_FOLDER).glob("*.safetensors")
    return [*shard_files(store), *pending, *version_1]


def temporary_files(store: Path) -> list[Path]:
    """What a crash left of files that were being written."""
    folders = [store]
    for writer in writer_folders(store):
        folders += [writer.path, writer.pending_folder]
    return [path for folder in folders for path in folder.glob(f".*{TEMPORARY_SUFFIX}")]


def pending_bytes(store: Path) -> int:
    """Size of all pending files."""
    folders = writer_folders(store)
    return sum(path.stat().st_size for folder in folders for path in folder.pending_files())


def remove_empty_building(store: Path) -> None:
    """Remove `building/` once no writer has a folder in it."""
    with contextlib.suppress(OSError):  # absent, or something is still in it
        (store / BUILDING_FOLDER).rmdir()
        flush_folder(store)


def delete_store(store: Path) -> None:
    """Delete the files of a record store; anything else in the folder stays."""
    # The manifest goes last: until then the rest is still recognisable as a store.
    lists = [store / IMAGES_FILE, store / INDEX_FILE]
    for path in [*shard_files(store), *temporary_files(store), *lists]:
        path.unlink(missing_ok=True)
    for name in (BUILDING_FOLDER, PENDING_FOLDER):
        if (store / name).exists():
            shutil.rmtree(store / name)
    (store / MANIFEST_FILE).unlink(missing_ok=True)
    flush_folder(store)
