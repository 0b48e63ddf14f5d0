"""Row by row, the table at the top of ovd_d2/cache/recovery.py."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import CacheError, EmbeddingCache, Manifest, RecordWriter
from ovd_d2.cache.layout import LOCK_FILE, WriterFolder
from ovd_d2.cache.records import encode_record, write_record
from ovd_d2.cache.recovery import Recovered, recover, write_shard


@pytest.fixture
def write(make_manifest: Callable, make_record: Callable) -> Callable[..., None]:
    """`write(folder, ids, writer)`: what a writer that was killed leaves."""

    def run(path: Path, ids: tuple[int, ...], writer: str = "r000") -> None:
        own = WriterFolder.of(path, writer)
        path.mkdir(exist_ok=True)
        make_manifest().save(path)
        own.pending_folder.mkdir(parents=True, exist_ok=True)
        manifest = make_manifest()
        for image_id in ids:
            record = encode_record(manifest, image_id, make_record(image_id))
            write_record(own.pending_file(image_id), image_id, record)

    return run


@pytest.fixture
def make_shard(make_manifest: Callable, make_record: Callable) -> Callable[..., object]:
    """`make_shard(folder, writer, ids)`: a shard that nothing lists yet."""

    def run(path: Path, writer: str, ids: tuple[int, ...]) -> object:
        manifest = make_manifest()
        records = [(i, encode_record(manifest, i, make_record(i))) for i in ids]
        return write_shard(path, writer, records)

    return run


@pytest.fixture
def recovered(make_manifest: Callable) -> Callable[..., Recovered]:
    """`recovered(folder)`: recovers and checks what must hold after every recovery."""

    def run(path: Path, images_per_shard: int = 2) -> Recovered:
        found = recover(path, make_manifest(), images_per_shard, "r000")
        assert Manifest.load(path) == found.manifest
        store = EmbeddingCache(path, allow_incomplete=True)
        assert set(store) == found.done
        shards = {shard.file for shard in found.manifest.shards}
        allowed = {*shards, "manifest.json", LOCK_FILE, "index.safetensors", "notes.txt"}
        assert {entry.name for entry in path.iterdir()} <= allowed
        assert ("index.safetensors" in os.listdir(path)) == found.manifest.complete
        return found

    return run


def test_a_new_folder_gets_the_header(tmp_path: Path, recovered: Callable) -> None:
    assert recovered(tmp_path) == Recovered(Manifest.load(tmp_path), frozenset())


def test_pending_files_of_all_writers_are_merged(
    tmp_path: Path, write: Callable, recovered: Callable, make_record: Callable
) -> None:
    write(tmp_path, (1, 2, 3), "r000")
    write(tmp_path, (4,), "r001")
    found = recovered(tmp_path)
    assert found.done == {1, 2, 3, 4}
    assert [shard.images for shard in found.manifest.shards] == [2, 1, 1]
    store = EmbeddingCache(tmp_path, allow_incomplete=True)
    assert len(store[4]) == 0
    assert torch.equal(store[3].boxes, make_record(3)["boxes"])


def test_shards_of_journals_are_listed(
    tmp_path: Path, write: Callable, make_shard: Callable, recovered: Callable
) -> None:
    write(tmp_path, (), "r000")
    write(tmp_path, (3,), "r007")
    shards = [make_shard(tmp_path, "r007", ids) for ids in ((1, 2), (5,))]
    WriterFolder.of(tmp_path, "r007").save_journal(shards)
    found = recovered(tmp_path)
    assert found.done == {1, 2, 3, 5}
    assert [shard.file for shard in found.manifest.shards] == [
        "shard-r007-00000.safetensors",
        "shard-r007-00001.safetensors",
        "shard-r000-00000.safetensors",
    ]


def test_a_shard_that_nothing_lists_goes_and_its_images_are_still_pending(
    tmp_path: Path, write: Callable, make_shard: Callable, recovered: Callable
) -> None:
    write(tmp_path, (1, 2), "r001")
    make_shard(tmp_path, "r001", (1, 2))
    found = recovered(tmp_path)
    assert found.done == {1, 2}
    assert [shard.file for shard in found.manifest.shards] == ["shard-r000-00000.safetensors"]


def test_pending_files_that_are_in_a_shard_go(
    tmp_path: Path, write: Callable, make_shard: Callable, recovered: Callable
) -> None:
    write(tmp_path, (1, 2, 3), "r001")
    WriterFolder.of(tmp_path, "r001").save_journal([make_shard(tmp_path, "r001", (1, 2))])
    found = recovered(tmp_path)
    assert found.done == {1, 2, 3}
    assert [shard.images for shard in found.manifest.shards] == [2, 1]


def test_an_image_of_two_writers_is_kept_once(
    tmp_path: Path, write: Callable, make_shard: Callable, recovered: Callable
) -> None:
    write(tmp_path, (1,), "r000")
    write(tmp_path, (1, 4), "r001")
    shards = [make_shard(tmp_path, "r002", ids) for ids in ((2, 3), (3, 5))]
    write(tmp_path, (), "r002")
    WriterFolder.of(tmp_path, "r002").save_journal(shards)
    assert recovered(tmp_path).done == {1, 2, 3, 4}  # 5 is built again


def test_damaged_pending_files_go(
    tmp_path: Path, write: Callable, recovered: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, (1, 2, 3, 5), "r000")
    own = WriterFolder.of(tmp_path, "r000")
    own.pending_file(1).write_bytes(b"")
    os.truncate(own.pending_file(2), 100)
    data = bytearray(own.pending_file(3).read_bytes())
    data[-1] ^= 1
    own.pending_file(3).write_bytes(data)
    shutil.copy(own.pending_file(5), own.pending_file(6))
    (own.pending_folder / "nonsense.safetensors").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert recovered(tmp_path).done == {5}
    for image_id in (1, 2, 3, 6):
        assert f"/{image_id}.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "[",
        "{}[",
        '"x"',
        "[1]",
        "[[]]",
        '[{"file": "../x"}]',
        "\x00",
        "null",
        '[{"file":"shard-r001-00000.safetensors","images":1,"rows":0,"bytes":1,"sha256":null}]',
        '[{"file":3,"images":1,"rows":0,"bytes":1,"sha256":""}]',
    ],
)
def test_a_damaged_journal_costs_its_shards_only(
    tmp_path: Path,
    write: Callable,
    make_shard: Callable,
    recovered: Callable,
    caplog: pytest.LogCaptureFixture,
    journal: str,
) -> None:
    write(tmp_path, (3,), "r001")
    make_shard(tmp_path, "r001", (1, 2))
    (WriterFolder.of(tmp_path, "r001").path / "journal.json").write_text(journal)
    with caplog.at_level(logging.WARNING):
        assert recovered(tmp_path).done == {3}
    assert "r001" in caplog.text


def test_a_journal_that_tells_lies_about_a_shard(
    tmp_path: Path, write: Callable, make_shard: Callable, recovered: Callable
) -> None:
    write(tmp_path, (), "r001")
    entry = asdict(make_shard(tmp_path, "r001", (1, 2)))
    path = WriterFolder.of(tmp_path, "r001").path / "journal.json"
    path.write_text(json.dumps([{**entry, "rows": entry["rows"] + 1}]))
    assert recovered(tmp_path).done == set()


def test_temporary_files_go_and_files_of_others_stay(
    tmp_path: Path, write: Callable, recovered: Callable
) -> None:
    write(tmp_path, (1,), "r003")
    own = WriterFolder.of(tmp_path, "r003")
    for folder in (tmp_path, own.path, own.pending_folder):
        (folder / ".x.safetensors.12-ab.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert recovered(tmp_path).done == {1}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_finished_store_is_left_as_it_is(
    tmp_path: Path, build: Callable, recovered: Callable
) -> None:
    build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert recovered(tmp_path).manifest.complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_crash_after_the_last_manifest_leaves_only_folders(
    tmp_path: Path, build: Callable, write: Callable, recovered: Callable
) -> None:
    manifest = Manifest.load(build(tmp_path))
    WriterFolder.of(tmp_path, "r000").pending_folder.mkdir(parents=True)
    WriterFolder.of(tmp_path, "r000").save_journal(manifest.shards)
    assert recovered(tmp_path).manifest == manifest


@pytest.mark.parametrize("damage", ["delete", "flip", "truncate"])
def test_a_damaged_index_is_written_anew(
    tmp_path: Path, build: Callable, recovered: Callable, damage: str
) -> None:
    before = EmbeddingCache(build(tmp_path)).fingerprint
    path = tmp_path / "index.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-9])
    found = recovered(tmp_path)
    assert not found.manifest.complete
    assert found.done == set(range(1, 6))
    assert EmbeddingCache(build(tmp_path)).fingerprint == before


def test_an_index_of_an_unfinished_store_goes(
    tmp_path: Path, write: Callable, recovered: Callable
) -> None:
    write(tmp_path, (1,), "r000")
    (tmp_path / "index.safetensors").write_bytes(b"old")
    recovered(tmp_path)


def test_records_without_a_header_are_refused(
    tmp_path: Path, write: Callable, make_manifest: Callable
) -> None:
    write(tmp_path, (1,), "r000")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"1\.safetensors but no manifest\.json"):
        RecordWriter(tmp_path, make_manifest())
    RecordWriter(tmp_path, make_manifest(), overwrite=True).close()
    assert not list(tmp_path.glob("building/*/pending/*"))


def test_overwriting_a_store_of_version_1(tmp_path: Path, make_manifest: Callable) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}')
    (tmp_path / "shard-00000.safetensors").write_bytes(b"old")
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "1.safetensors").write_bytes(b"old")
    with pytest.raises(CacheError, match="schema version 1"):
        RecordWriter(tmp_path, make_manifest())
    with RecordWriter(tmp_path, make_manifest(), overwrite=True) as writer:
        assert not writer.done_ids
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"manifest.json", "building", LOCK_FILE}
