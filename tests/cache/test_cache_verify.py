from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ovd_d2.cache import EmbeddingCache, RecordWriter, check_compatible, verify_store

TEACHER = "Toy-RN-0123"


def test_a_sound_store_has_no_problems(tmp_path: Path, build: Callable) -> None:
    assert EmbeddingCache(build(tmp_path)).verify() == []
    assert verify_store(build(tmp_path / "p", kind="proposals"), progress=True) == []


def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, build: Callable) -> None:
    path = build(tmp_path) / "shard-00001.safetensors"
    sound = path.read_bytes()
    rng = random.Random(0)
    positions = {0, 7, 8, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(60))}
    for position in sorted(positions):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        problems = verify_store(tmp_path)
        assert any("shard-00001.safetensors" in problem for problem in problems), position
    path.write_bytes(sound)
    assert verify_store(tmp_path) == []


def test_every_damaged_shard_is_reported(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (tmp_path / "shard-00000.safetensors").unlink()
    os.truncate(tmp_path / "shard-00002.safetensors", 100)
    problems = cache.verify()
    assert any("shard-00000.safetensors is missing" in problem for problem in problems)
    assert any("shard-00002.safetensors is damaged" in problem for problem in problems)
    assert any("2 images, the manifest says 5" in problem for problem in problems)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("embeddings", float("nan"), "1 of 3 rows of embeddings are NaN or infinite"),
        ("embeddings", 2.0, "1 of 3 embeddings are not unit rows"),
        ("objectness", -0.5, "1 of 3 objectness values lie outside"),
        ("boxes", -1.0, "1 of 3 boxes have x2 < x1"),
    ],
)
def test_wrong_values_are_found_even_with_a_right_checksum(
    tmp_path: Path, build: Callable, field: str, value: float, message: str
) -> None:
    path = build(tmp_path) / "shard-00001.safetensors"  # image 3 with 3 rows, image 4 with none
    shard = load_file(path)
    shard[field].view(3, -1)[1, -1] = value
    save_file(shard, path)
    _change_manifest(tmp_path, 1, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    problems = verify_store(tmp_path)
    assert len(problems) == 1
    assert message in problems[0]


def test_counts_double_images_and_unfinished_stores_are_found(
    tmp_path: Path, build: Callable, make_manifest: Callable, make_record: Callable
) -> None:
    build(tmp_path)
    _change_manifest(tmp_path, 1, images=7)
    assert "the manifest says 7 with 3" in verify_store(tmp_path)[0]
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["shards"][1] = content["shards"][0]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert any("2 images are stored twice (first: [1, 2])" in p for p in verify_store(tmp_path))
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
    assert "tools/build_cache.py --dataset toy_train" in problem
    assert "--architecture ViT-B-32 " in problem


def test_another_width_is_named(tmp_path: Path, build: Callable) -> None:
    cache = EmbeddingCache(build(tmp_path))
    (problem,) = check_compatible(
        cache, teacher_fingerprint=TEACHER, embedding_dim=512, image_ids=[1]
    )
    assert "expected 512" in problem
    assert "found 8" in problem
    assert "tools/build_cache.py" in problem


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


def _change_manifest(folder: Path, shard: int, **changes: object) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][shard].update(changes)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, build: Callable) -> None:
    path = build(tmp_path) / "shard-00000.safetensors"
    torch.save({"boxes": torch.zeros(1, 4)}, path)
    assert any("shard-00000.safetensors is damaged" in p for p in verify_store(tmp_path))
