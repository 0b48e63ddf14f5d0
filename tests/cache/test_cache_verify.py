from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovd_d2.cache import (
    CacheError,
    EmbeddingCache,
    Manifest,
    check_compatible,
    dataset_fingerprint,
    verify_store,
)
from ovd_d2.cache.identity import IMAGES_FILE, add_image_list
from ovd_d2.cache.index import build_index, write_index
from ovd_d2.cache.manifest import shard_name
from ovd_d2.cache.records import Record, open_shard, pack_shard, read_back
from tests.attacks.hostile import sign_manifest

TEACHER = "Toy-RN-0123"


def test_a_sound_store_has_no_problems(tmp_path: Path, build: Callable) -> None:
    assert EmbeddingCache(build(tmp_path)).verify() == []
    assert verify_store(build(tmp_path / "p", kind="proposals"), progress=True) == []


def test_every_damaged_shard_is_reported(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (tmp_path / "shard-n002-00000.safetensors").unlink()
    os.truncate(tmp_path / "shard-n002-00002.safetensors", 100)
    problems = cache.verify()
    assert any("shard-n002-00000.safetensors is missing" in problem for problem in problems)
    assert any("shard-n002-00002.safetensors is damaged" in problem for problem in problems)
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("embeddings", float("nan"), "1 of 3 rows of embeddings are NaN or infinite"),
        ("embeddings", 2.0, "1 of 3 embeddings are not unit rows"),
        ("objectness", -0.5, "1 of 3 objectness values lie outside"),
        ("boxes", -1.0, "1 of 3 boxes have x2 < x1"),
    ],
)
def test_wrong_values_are_found_even_with_right_checksums(
    tmp_path: Path, build: Callable, field: str, value: float, message: str
) -> None:
    manifest = Manifest.load(build(tmp_path))
    shard = open_shard(tmp_path / manifest.shards[1].file, manifest.fields)
    record = {name: shard[name].clone() for name in manifest.fields}  # of image 3; 4 has no rows
    record[field].view(3, -1)[1, -1] = value
    empty = {name: values[:0] for name, values in record.items()}
    _replace_shard(tmp_path, manifest, 1, [(3, record), (4, empty)])
    (problem,) = verify_store(tmp_path)
    assert message in problem
    assert "Delete shard-n002-00001.safetensors if it is there and run tools/cache.py" in problem


def test_an_image_in_two_shards_is_found(tmp_path: Path, build: Callable) -> None:
    build(tmp_path, part=(1, 2))
    shutil.copy(tmp_path / shard_name(2, 0), tmp_path / shard_name(2, 7))
    with pytest.raises(CacheError, match="holds image 1 twice"):
        EmbeddingCache(tmp_path, allow_incomplete=True)


def test_wrong_counts_are_found(tmp_path: Path, build: Callable) -> None:
    manifest = Manifest.load(build(tmp_path))
    shards = [*manifest.shards]
    shards[1] = replace(shards[1], images=7)
    replace(manifest, shards=shards).save(tmp_path)
    index, shard, *_ = verify_store(tmp_path)
    assert "index.safetensors is damaged (it has other numbers of records" in index
    assert "images=2, rows=3, " in shard and "the manifest says ShardInfo" in shard


def test_unfinished_and_absent_stores_are_named(tmp_path: Path, build: Callable) -> None:
    build(tmp_path / "part", part=(1, 2))
    (problem,) = verify_store(tmp_path / "part")
    assert "part is unfinished: 3 of 5 images" in problem
    path = tmp_path / "part" / "shard-n002-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "1 of 2 records do not fit their checksums" in verify_store(tmp_path / "part")[0]
    assert "no record store" in verify_store(tmp_path / "nowhere")[0]


def problems_of(cache: EmbeddingCache, images: list[dict], **changes: Any) -> list[str]:
    needs: dict[str, Any] = {"teacher_fingerprint": TEACHER, "embedding_dim": 8, **changes}
    return check_compatible(cache, images=images, **needs)


@pytest.fixture
def cache(tmp_path: Path, build: Callable) -> EmbeddingCache:
    """Of the images 1 to 5, which it lists."""
    return EmbeddingCache(build(tmp_path / "cache"))


def test_a_fitting_cache_is_compatible(cache: EmbeddingCache, make_images: Callable) -> None:
    assert problems_of(cache, make_images()) == []
    assert problems_of(cache, make_images([5, 2])) == []
    moved = [{**one, "file_name": "/far/" + one["file_name"]} for one in make_images()]
    assert problems_of(cache, moved) == []
    assert problems_of(cache, [{**one, "image_id": np.int64(2)} for one in make_images([2])]) == []
    assert problems_of(cache, make_images(height=None, width=None)) == []  # nothing said


def test_another_teacher_is_named(cache: EmbeddingCache, make_images: Callable) -> None:
    (problem,) = problems_of(cache, make_images([1]), teacher_fingerprint="ViT-B-32-abcd")
    assert "expected 'ViT-B-32-abcd'" in problem
    assert f"found '{TEACHER}'" in problem
    assert "tools/cache.py build --dataset toy_train" in problem
    assert "--architecture ViT-B-32 " in problem


def test_another_width_is_named(cache: EmbeddingCache, make_images: Callable) -> None:
    (problem,) = problems_of(cache, make_images([1]), embedding_dim=512)
    assert "expected 512" in problem
    assert "found 8" in problem
    assert "tools/cache.py build" in problem


def test_missing_images_are_counted_and_the_first_five_named(
    cache: EmbeddingCache, make_images: Callable
) -> None:
    (problem,) = problems_of(cache, make_images(range(1, 13)))
    assert "expected the 12" in problem
    assert "7 are missing (first ids: [6, 7, 8, 9, 10])" in problem
    assert "tools/extract_proposals.py" in problem


def test_all_reasons_come_at_once(cache: EmbeddingCache, make_images: Callable) -> None:
    images = [*make_images([99]), {**make_images([2])[0], "image_id": 1}]
    assert len(problems_of(cache, images, teacher_fingerprint="other", embedding_dim=4)) == 4


def test_renumbered_images_are_refused(cache: EmbeddingCache, make_images: Callable) -> None:
    again = [{**one, "image_id": 6 - one["image_id"]} for one in make_images()]
    (problem,) = problems_of(cache, again)
    assert f"in {cache.path} were made for other images under these ids: 4 of 5" in problem
    assert "first: image 5 was 5.png (41 x 33), is 1.png (41 x 33) (height x width)" in problem
    assert "tools/cache.py build --dataset <training data set>" in problem


def test_images_of_another_size_are_refused(cache: EmbeddingCache, make_images: Callable) -> None:
    (problem,) = problems_of(cache, [*make_images([1]), *make_images([2], height=600)])
    assert "1 of 2, first: image 2 was 2.png (41 x 33), is 2.png (600 x 33)" in problem


@pytest.mark.parametrize(
    "wrong",
    ["frame_001", 2.0, -1, 2**63, 1 << 20_000, None, True],
    ids=lambda one: type(one).__name__,
)
def test_ids_that_cannot_be_stored_are_named(
    cache: EmbeddingCache, make_images: Callable, wrong: object
) -> None:
    images = [*make_images([1]), {**make_images([2])[0], "image_id": wrong}]
    (problem,) = problems_of(cache, images)
    assert "1 of 2 image ids cannot be stored, first: " in problem
    assert "expected whole numbers from 0 to 2**63 - 1" in problem
    with pytest.raises(CacheError, match="1 of 2 image ids cannot be stored"):
        dataset_fingerprint(images)


def test_sizes_that_are_no_numbers_of_pixels_are_named(make_images: Callable) -> None:
    for wrong in ("600", 1.5, float("nan"), float("inf"), [3]):
        with pytest.raises(CacheError, match="image 2: height is .*, expected a number of pixels"):
            dataset_fingerprint(make_images([2], height=wrong))


def test_a_changed_list_is_noticed(cache: EmbeddingCache, make_images: Callable) -> None:
    path = cache.path / IMAGES_FILE
    path.write_text(path.read_text().replace("1.png", "2.png"))
    for problems in (problems_of(cache, make_images()), cache.verify()):
        (problem,) = problems
        assert f"{path} is damaged" in problem
        assert f"Delete it and run python tools/cache.py add-image-list {cache.path}" in problem


def test_records_of_no_listed_image_are_found(
    tmp_path: Path, build: Callable, make_images: Callable
) -> None:
    images = make_images([1, 2, 3, 4, 6])  # not 5
    build(tmp_path)
    fingerprint = dataset_fingerprint(images)
    sign_manifest(tmp_path, lambda content: content["dataset"].update(fingerprint=fingerprint))
    (tmp_path / IMAGES_FILE).unlink()
    add_image_list(tmp_path, images)
    (problem,) = verify_store(tmp_path)
    assert "1 records are of no image of its data set (first ids: [5])" in problem


def _replace_shard(
    folder: Path, manifest: Manifest, number: int, records: list[tuple[int, Record]]
) -> None:
    """As if these records had been written: with checksums, index and manifest that fit."""
    path, shards = folder / manifest.shards[number].file, [*manifest.shards]
    path.write_bytes(pack_shard(records))
    shards[number] = read_back(path, manifest.fields)[1]
    manifest = replace(manifest, shards=shards, index=None)
    write_index(folder, manifest, build_index(folder, manifest))
