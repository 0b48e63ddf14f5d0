"""One byte anywhere: `verify` says so, and reading gives an error or the right data."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import CachedProposals, CacheError, EmbeddingCache, verify_store
from ovd_d2.cache.index import INDEX_FILE
from ovd_d2.cache.manifest import MANIFEST_FILE

FILES = [MANIFEST_FILE, INDEX_FILE, "shard-n002-00000.safetensors", "shard-n002-00001.safetensors"]
IDS = range(1, 8)


@pytest.fixture(params=["float16", "int8"])
def store(tmp_path: Path, build: Callable, request: pytest.FixtureRequest) -> Path:
    """Seven images in four shards."""
    path: Path = build(tmp_path / "store", IDS, dtype=request.param)
    return path


def read_all(path: Path) -> dict[int, CachedProposals | str]:
    """Every record, or the message of the error that came instead."""
    try:
        cache = EmbeddingCache(path)
    except CacheError as error:
        return {image_id: str(error) for image_id in IDS}
    found: dict[int, CachedProposals | str] = {}
    for image_id in IDS:
        try:
            found[image_id] = cache[image_id]
        except CacheError as error:
            found[image_id] = str(error)
    assert list(cache) == list(IDS)
    return found


def assert_right_or_refused(
    found: dict[int, CachedProposals | str], expected: dict[int, CachedProposals | str], file: str
) -> int:
    """How many records were refused; each message names the file and what to do."""
    refused = 0
    for image_id in IDS:
        value, right = found[image_id], expected[image_id]
        assert isinstance(right, CachedProposals)
        if isinstance(value, str):
            refused += 1
            assert file in value
            assert "again" in value
            continue
        for name in ("boxes", "objectness", "embeddings"):
            assert torch.equal(getattr(value, name), getattr(right, name))
    return refused


def places(content: bytes, rng: random.Random) -> list[int]:
    """Every kind of byte a file has: all of a manifest; of the others the header's length, its
    JSON, the borders of every tensor, and random places."""
    if content[:1] == b"{":
        return list(range(len(content)))
    header = int.from_bytes(content[:8], "little")
    borders = {0, 7, 8, 8 + header - 1, len(content) - 1}
    for entry in json.loads(content[8 : 8 + header]).values():
        for offset in entry.get("data_offsets", []):
            borders |= {8 + header + offset - 1, 8 + header + offset}
    inside = {rng.randrange(8, 8 + header) for _ in range(25)}
    inside |= {rng.randrange(8 + header, len(content)) for _ in range(25)}
    return sorted(place for place in borders | inside if place < len(content))


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_byte_anywhere(store: Path, file: str) -> None:
    expected = read_all(store)
    sound = (store / file).read_bytes()
    rng = random.Random(0)
    refused = 0
    for place in places(sound, rng):
        damaged = bytearray(sound)
        damaged[place] ^= rng.randrange(1, 256)
        (store / file).write_bytes(damaged)
        problems = verify_store(store)
        assert any(file in problem and "again" in problem for problem in problems), place
        refused += assert_right_or_refused(read_all(store), expected, file)
    assert refused > 0
    (store / file).write_bytes(sound)
    assert verify_store(store) == []
    assert assert_right_or_refused(read_all(store), expected, file) == 0


def test_a_flipped_byte_costs_one_image_only(store: Path) -> None:
    expected = read_all(store)
    path = store / "shard-n002-00001.safetensors"  # images 3 (3 rows) and 4 (none)
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    begin = json.loads(content[8 : 8 + header])["embeddings"]["data_offsets"][0]
    content[8 + header + begin] ^= 1
    path.write_bytes(content)
    found = read_all(store)
    assert assert_right_or_refused(found, expected, path.name) == 1
    message = found[3]
    assert isinstance(message, str)
    assert "the record of image 3 does not fit its checksum. Delete shard-n002-00001" in message
    assert any("(first ids: [3])" in problem for problem in verify_store(store))


@pytest.mark.parametrize("file", FILES)
def test_every_truncation(store: Path, file: str) -> None:
    expected = read_all(store)
    sound = (store / file).read_bytes()
    rng = random.Random(1)
    for size in {0, 1, 7, 8, 9, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(20))}:
        (store / file).write_bytes(sound[:size])
        assert any(file in problem for problem in verify_store(store)), size
        assert assert_right_or_refused(read_all(store), expected, file) == len(IDS)


@pytest.mark.parametrize("file", FILES)
def test_every_deletion(store: Path, file: str) -> None:
    (store / file).unlink()
    assert any(f"{file} is missing" in problem for problem in verify_store(store))
    with pytest.raises(CacheError, match=f"{file} is missing"):
        EmbeddingCache(store)


def test_a_shard_cut_short_while_it_is_read_is_an_error(store: Path) -> None:
    cache = EmbeddingCache(store)
    cache[3]
    os.truncate(store / "shard-n002-00001.safetensors", 100)
    with pytest.raises(CacheError, match="00001.safetensors is damaged .it ends inside a record"):
        cache[3]


def test_swapped_shards_of_one_size(tmp_path: Path, build: Callable) -> None:
    ids = (3, 7, 11, 15)  # of three rows each
    build(tmp_path, ids)
    first, second = sorted(tmp_path.glob("shard-*"))
    assert first.stat().st_size == second.stat().st_size
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    problems = verify_store(tmp_path)
    assert all(any(path.name in problem for problem in problems) for path in (first, second))
    assert any("not those of the index" in problem for problem in problems)
    cache = EmbeddingCache(tmp_path)
    for image_id in ids:
        with pytest.raises(CacheError, match=f"record of image {image_id} does not fit"):
            cache[image_id]


def test_another_store_under_a_manifest(tmp_path: Path, build: Callable) -> None:
    """Everything but the manifest comes from a store of other images."""
    build(tmp_path / "a", range(1, 6))
    build(tmp_path / "b", range(5, 10))  # as many rows: K is id % 4
    shutil.copy(tmp_path / "a" / MANIFEST_FILE, tmp_path / "b" / MANIFEST_FILE)
    with pytest.raises(CacheError):
        EmbeddingCache(tmp_path / "b")
    assert any(INDEX_FILE in problem for problem in verify_store(tmp_path / "b"))
