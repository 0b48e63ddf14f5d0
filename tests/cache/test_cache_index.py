"""The index: places by hand, opening without a scan, nothing taken on trust."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.cache_reading import write_sparse_store
from safetensors.numpy import load_file, save

from ovd_d2.cache import CacheError, DamagedFileError, EmbeddingCache, Manifest
from ovd_d2.cache import store as store_module
from ovd_d2.cache.index import INDEX_FILE, load_index, write_index
from ovd_d2.cache.manifest import images_per_shard_of, is_shard_name, shard_name


def test_an_index_by_hand(tmp_path: Path, build: Callable) -> None:
    build(tmp_path, (9, 2, 7, 3))  # 1, 2, 3, 3 rows; shards of (2, 3) and (7, 9)
    index = load_index(tmp_path, Manifest.load(tmp_path))
    assert index.image_ids.tolist() == [2, 3, 7, 9]
    assert index.shard.tolist() == [0, 0, 1, 1]
    assert index.start.tolist() == [0, 2, 0, 3]
    assert index.rows.tolist() == [2, 3, 3, 1]
    assert [index.find(image_id) for image_id in (2, 7, 9, 1, 8, 10, -1, 2**70)] == [
        *(0, 2, 3),
        *[None] * 5,
    ]
    assert EmbeddingCache(tmp_path).index.storage_order() == [2, 3, 7, 9]


def test_opening_reads_no_shard(
    tmp_path: Path, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)

    def refuse(*args: object) -> None:
        raise AssertionError("a shard was opened")

    for name in ("read_layout", "read_rows"):
        monkeypatch.setattr(store_module, name, refuse)
    assert len(EmbeddingCache(tmp_path)) == 5


def test_a_store_of_the_size_of_lvis_opens_in_under_a_second(tmp_path: Path) -> None:
    write_sparse_store(tmp_path)
    begin = time.perf_counter()
    cache = EmbeddingCache(tmp_path)
    seconds = time.perf_counter() - begin
    assert len(cache) == 100_170
    assert sum(shard.bytes for shard in cache.manifest.shards) > 29 * 2**30
    assert 100_169 in cache and 100_170 not in cache
    assert seconds < 1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it has .* bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "it has .* bytes"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "its SHA-256 is"),
    ],
)
def test_a_damaged_index_is_named_and_written_anew(
    tmp_path: Path, build: Callable, damage: Callable[[Path], object], message: str
) -> None:
    build(tmp_path)
    sound = (tmp_path / INDEX_FILE).read_bytes()
    damage(tmp_path / INDEX_FILE)
    with pytest.raises(
        DamagedFileError, match=f"index.safetensors .*{message}.*again with the same"
    ):
        EmbeddingCache(tmp_path)
    build(tmp_path)
    assert (tmp_path / INDEX_FILE).read_bytes() == sound
    assert EmbeddingCache(tmp_path).verify() == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("shard", 3, "a shard number lies outside 0 to 2"),
        ("shard", -1, "a shard number lies outside"),
        ("shard", 0, "other numbers of records per shard"),
        ("start", 2**62, "starts outside its shard"),
        ("start", -1, "starts outside its shard"),
        ("rows", 2**30, "ends outside its shard"),
        ("rows", -1, "starts outside its shard"),
        ("image_ids", 0, "image ids do not ascend"),
        ("image_ids", -5, "image ids do not ascend"),
        ("checksums", 1, "not those of the manifest"),
    ],
)
def test_no_place_outside_a_shard_is_believed(
    tmp_path: Path, build: Callable, name: str, value: int, message: str
) -> None:
    """Even in an index whose checksums all fit, as one from a stranger would."""
    manifest = Manifest.load(build(tmp_path))
    index = load_index(tmp_path, manifest)
    values = getattr(index, name).copy()
    values[-1] = value
    changed = write_index(tmp_path, manifest, replace(index, **{name: values}))
    if name == "checksums":
        assert manifest.index is not None and changed.index is not None
        kept = replace(changed.index, content=manifest.index.content)
        replace(changed, index=kept).save(tmp_path)
    with pytest.raises(DamagedFileError, match=message):
        EmbeddingCache(tmp_path)


@pytest.mark.parametrize("change", ["surplus", "missing", "type", "shape"])
def test_an_index_of_other_tensors_is_refused(tmp_path: Path, build: Callable, change: str) -> None:
    manifest = Manifest.load(build(tmp_path))
    tensors = load_file(tmp_path / INDEX_FILE)
    if change == "surplus":
        tensors["more"] = np.zeros(3)
    elif change == "missing":
        del tensors["rows"]
    elif change == "type":
        tensors["rows"] = tensors["rows"].astype(np.float32)
    else:
        tensors["rows"] = tensors["rows"][:-1]
    content = save(tensors)
    (tmp_path / INDEX_FILE).write_bytes(content)
    assert manifest.index is not None
    info = replace(manifest.index, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    replace(manifest, index=info).save(tmp_path)
    with pytest.raises(DamagedFileError, match="index.safetensors is damaged"):
        EmbeddingCache(tmp_path)


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path: Path, build: Callable) -> None:
    with (build(tmp_path) / "manifest.json").open("r+b") as stream:
        stream.truncate(2**40)  # a hole
    with pytest.raises(CacheError, match="manifest.json is damaged .it has 1099511627776 bytes"):
        EmbeddingCache(tmp_path)


def test_shard_names() -> None:
    assert shard_name(64, 12) == "shard-n064-00012.safetensors"
    assert images_per_shard_of(shard_name(1024, 0)) == 1024
    for older in ("shard-m000-00007.safetensors", "shard-00007.safetensors"):
        assert is_shard_name(older)
        assert images_per_shard_of(older) is None
    for name in ("shard-n64-00012.safetensors", "shard-N064-00012.safetensors", "x", None):
        assert not is_shard_name(name)


def test_a_store_of_version_1_asks_to_be_built_again(tmp_path: Path) -> None:
    old = {"kind": "embeddings", "schema_version": 1, "complete": True, "shards": []}
    (tmp_path / "manifest.json").write_text(json.dumps(old, indent=2))
    with pytest.raises(
        CacheError, match="schema version 1, .* reads version 2; build the store ag"
    ):
        EmbeddingCache(tmp_path)
