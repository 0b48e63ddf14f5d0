from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovd_d2.cache import (
    CacheError,
    EmbeddingCache,
    Manifest,
    RecordWriter,
    check_compatible,
    verify_store,
)
from ovd_d2.cache.index import finish_store
from ovd_d2.cache.manifest import shard_name
from ovd_d2.cache.records import Record, open_shard, pack_shard, shard_info

TEACHER = "Toy-RN-0123"


def test_a_sound_store_has_no_problems(tmp_path: Path, build: Callable) -> None:
    assert EmbeddingCache(build(tmp_path)).verify() == []
    assert verify_store(build(tmp_path / "p", kind="proposals"), progress=True) == []


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, build: Callable) -> None:
    path = build(tmp_path) / "shard-r000-00001.safetensors"
    sound = path.read_bytes()
    rng = random.Random(0)
    positions = {0, 7, 8, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(60))}
    for position in sorted(positions):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        problems = verify_store(tmp_path)
        assert any("shard-r000-00001.safetensors" in problem for problem in problems), position
    path.write_bytes(sound)
    assert verify_store(tmp_path) == []


def test_every_damaged_shard_is_reported(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (tmp_path / "shard-r000-00000.safetensors").unlink()
    os.truncate(tmp_path / "shard-r000-00002.safetensors", 100)
    problems = cache.verify()
    assert any("shard-r000-00000.safetensors is missing" in problem for problem in problems)
    assert any("shard-r000-00002.safetensors is damaged" in problem for problem in problems)
    assert any("2 readable images, the manifest says 5" in problem for problem in problems)


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
    assert "Delete shard-r000-00001.safetensors if it is there and run tools/cache.py" in problem


def test_an_image_in_two_shards_is_found(tmp_path: Path, build: Callable) -> None:
    manifest = Manifest.load(build(tmp_path))
    shard = open_shard(tmp_path / manifest.shards[0].file, manifest.fields)
    records = [
        (1, {name: shard[name][:1].clone() for name in manifest.fields}),
        (2, {name: shard[name][1:].clone() for name in manifest.fields}),
    ]
    content = pack_shard(records)
    file = shard_name("r001", 0)
    (tmp_path / file).write_bytes(content)
    shards = [*manifest.shards, shard_info(file, records, content)]
    changed = replace(manifest, shards=shards, index=None)
    changed.save(tmp_path)
    assert any("2 images are stored twice (first: [1, 2])" in p for p in verify_store(tmp_path))
    with pytest.raises(CacheError, match="holds image 1 twice"):
        EmbeddingCache(tmp_path, allow_incomplete=True)


def test_wrong_counts_are_found(tmp_path: Path, build: Callable) -> None:
    manifest = Manifest.load(build(tmp_path))
    shards = [*manifest.shards]
    shards[1] = replace(shards[1], images=7)
    replace(manifest, shards=shards).save(tmp_path)
    index, shard, *_ = verify_store(tmp_path)
    assert "index.safetensors is damaged (it has other numbers of records" in index
    assert "2 images with 3 rows, the manifest says 7 with 3" in shard


def test_unfinished_and_absent_stores_are_named(
    tmp_path: Path, make_manifest: Callable, make_record: Callable
) -> None:
    with RecordWriter(tmp_path / "part", make_manifest()) as writer:
        writer.add(1, make_record(1))
    assert "unfinished" in verify_store(tmp_path / "part")[0]
    assert "no record store" in verify_store(tmp_path / "nowhere")[0]


def test_a_fitting_cache_is_compatible(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    subset = [2, 5]
    assert not check_compatible(
        cache, teacher_fingerprint=TEACHER, embedding_dim=8, image_ids=subset
    )


def test_another_teacher_is_named(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (problem,) = check_compatible(
        cache, teacher_fingerprint="ViT-B-32-abcd", embedding_dim=8, image_ids=[1]
    )
    assert "expected 'ViT-B-32-abcd'" in problem
    assert f"found '{TEACHER}'" in problem
    assert "tools/cache.py build --dataset toy_train" in problem
    assert "--architecture ViT-B-32 " in problem


def test_another_width_is_named(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (problem,) = check_compatible(
        cache, teacher_fingerprint=TEACHER, embedding_dim=512, image_ids=[1]
    )
    assert "expected 512" in problem
    assert "found 8" in problem
    assert "tools/cache.py build" in problem


def test_missing_images_are_counted_and_the_first_five_named(
    tmp_path: Path, build: Callable
) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (problem,) = check_compatible(
        cache, teacher_fingerprint=TEACHER, embedding_dim=8, image_ids=range(1, 13)
    )
    assert "expected the 12" in problem
    assert "7 are missing (first ids: [6, 7, 8, 9, 10])" in problem
    assert "tools/extract_proposals.py" in problem


def test_all_reasons_come_at_once(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    problems = check_compatible(cache, teacher_fingerprint="other", embedding_dim=4, image_ids=[99])
    assert len(problems) == 3


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, build: Callable) -> None:
    path = build(tmp_path) / "shard-r000-00000.safetensors"
    torch.save({"boxes": torch.zeros(1, 4)}, path)
    assert any("shard-r000-00000.safetensors is damaged" in p for p in verify_store(tmp_path))


def _replace_shard(
    folder: Path, manifest: Manifest, number: int, records: list[tuple[int, Record]]
) -> None:
    """As if these records had been written: with checksums, index and manifest that fit."""
    content = pack_shard(records)
    file = manifest.shards[number].file
    (folder / file).write_bytes(content)
    shards = [*manifest.shards]
    shards[number] = shard_info(file, records, content)
    finish_store(folder, replace(manifest, shards=shards, index=None))
