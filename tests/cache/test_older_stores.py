"""Stores that the code of version 0.1 wrote (stores_of_0_1.zip) stay of use as they are."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import CacheError, Manifest, identity_problems
from ovd_d2.cache.identity import add_image_list
from ovd_d2.cache.merge import merge_stores
from ovd_d2.cache.store import open_store
from tests.proposal_stores import files_of

ARCHIVE = Path(__file__).with_name("stores_of_0_1.zip")
IDS = [1, 2, 3, 4, 5]
FINGERPRINTS = {  # as version 0.1 printed them
    "proposals": "4ac7e9adc36529ba",
    "embeddings": "f5b4da20c14ae757",  # by two writers, each with every other image of 5 3 1 4 2
    "int8": "273105db560f5d89",
    "unlisted": "f5b4da20c14ae757",  # before stores listed their images
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of all of them; `part` and `part2` are a build's, `killed` was killed."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_a_finished_store_opens_unchanged(old: Path, name: str, make_record: Callable) -> None:
    store = open_store(old / name)
    assert store.fingerprint == FINGERPRINTS[name]
    assert store.verify() == []
    assert list(store) == IDS
    for image_id in IDS:
        read, written = store[image_id], make_record(image_id, store.kind)
        assert torch.equal(read.boxes, written["boxes"])
        assert torch.equal(read.objectness, written["objectness"])
        if read.embeddings is not None:
            cosine = (read.embeddings * written["embeddings"]).sum(1)
            assert (cosine > 0.9999).all()


@pytest.mark.parametrize("name", ["embeddings", "unlisted"])
def test_building_it_again_changes_nothing(old: Path, name: str, build: Callable) -> None:
    before = files_of(old / name)
    added = files_of(build(old / name)).keys() - before.keys()
    assert added == ({"images.json"} if name == "unlisted" else set())
    assert {**files_of(old / name), **before} == files_of(old / name)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
@pytest.mark.parametrize("number", range(3))
def test_a_damaged_shard_is_built_again_as_it_was(
    old: Path, build: Callable, open_writer: Callable, damage: str, number: int
) -> None:
    folder = old / "embeddings"
    before = files_of(folder)
    path = folder / Manifest.load(folder).shards[number].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:100])
    with pytest.raises(CacheError, match=r"run tools/cache\.py build again"):
        [open_store(folder)[image_id] for image_id in IDS]
    with open_writer(folder, shard=None) as writer:
        assert writer.missing == [2, 1, 2][number]
    build(folder, shard=None)
    assert files_of(folder) == before


@pytest.mark.parametrize("shard", [None, 2])
def test_a_damaged_index_is_written_anew(old: Path, build: Callable, shard: int | None) -> None:
    before = files_of(old / "embeddings")
    os.truncate(old / "embeddings" / "index.safetensors", 100)
    build(old / "embeddings", shard=shard)
    assert files_of(old / "embeddings") == before


@pytest.mark.parametrize("name", ["part", "killed"])
def test_a_build_of_then_goes_on(old: Path, name: str, build: Callable) -> None:
    """It keeps the shards that its manifest listed."""
    kept = [shard.file for shard in Manifest.load(old / name).shards]
    build(old / name, shard=64)
    store = open_store(old / name)
    assert store.verify() == []
    assert store.fingerprint == FINGERPRINTS["embeddings"]
    files = {shard.file for shard in store.manifest.shards}
    assert set(kept) < files == {path.name for path in store.path.glob("shard-*")}


def test_parts_of_then_are_merged(old: Path, tmp_path: Path, build: Callable) -> None:
    merged = merge_stores(
        [old / "part", old / "part2"], tmp_path / "merged", images_per_shard=2, progress=False
    )
    assert files_of(merged.written.path) == files_of(build(tmp_path / "built"))


def test_a_store_without_a_list_serves_all_of_its_images(old: Path, make_images: Callable) -> None:
    store = open_store(old / "unlisted")
    assert identity_problems(store, make_images(IDS)) == []
    (problem,) = identity_problems(store, make_images([1, 2]))
    assert "add-image-list" in problem
    add_image_list(store.path, make_images(IDS))
    assert identity_problems(store, make_images([1, 2])) == []
