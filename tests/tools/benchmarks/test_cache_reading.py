"""The measurements of reading: what they write, what their rows say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import cache_memory, cache_reading

from ovd_d2.cache import EmbeddingCache

SMALL = {"images": 6, "rows": 4, "dim": 16, "images_per_shard": 2}


def test_a_random_store_is_a_sound_one(tmp_path: Path) -> None:
    cache = EmbeddingCache(cache_reading.write_random_store(tmp_path / "a", "int8", **SMALL))
    assert cache.verify() == []
    assert [len(cache[image_id]) for image_id in cache] == [4] * 6
    assert (cache[0].objectness.diff() <= 0).all()  # best first, as the builder stores them
    again = EmbeddingCache(cache_reading.write_random_store(tmp_path / "b", "int8", **SMALL))
    assert again.fingerprint == cache.fingerprint
    assert not torch.equal(cache[0].boxes, cache[1].boxes)


def test_a_sparse_store_opens_and_takes_no_space(tmp_path: Path) -> None:
    path = cache_reading.write_sparse_store(tmp_path, images=5000)
    row = cache_reading.open_time(path, openings=2)
    assert row["name"] == "open 5,000 images, 1.5 GiB"
    assert 0 < row["open_seconds"] <= row["worst_seconds"] < 1
    assert sum(file.stat().st_blocks for file in path.iterdir()) * 512 < 10e6


def test_latency_rows(tmp_path: Path) -> None:
    stores = {
        dtype: cache_reading.write_random_store(tmp_path / dtype, dtype, **SMALL)
        for dtype in ("float16", "int8")
    }
    rows = cache_reading.read_latency(stores, reads=30)
    assert [row["name"] for row in rows] == [
        f"{dtype} {what}"
        for dtype in stores
        for what in ("copy", "raw", "read", f"read, top {cache_reading.TOP_K}")
    ]
    assert all(0 < row["median_us"] <= row["p90_us"] <= row["p99_us"] for row in rows)
    table = cache_reading.table_of([*cache_reading.bytes_an_image(), *rows])
    assert "int8 raw" in table
    assert "160824" in table


def test_loader_workers_do_not_grow(tmp_path: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    store = cache_reading.write_random_store(tmp_path / "s", "float16", images=32)  # 10 MB
    rows = cache_memory.memory_by_epoch(store, tmp_path / "images", workers=2, epochs=6)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    row = cache_memory.growth(rows)
    assert row["growth_mb"] < 3
    assert "growth_mb" in cache_memory.table_of([row, {"name": "another"}])


def test_growth_by_hand() -> None:
    rows = [{"epoch": 1, "megabytes": 90.0}, {"epoch": 2, "megabytes": 100.0}]
    rows.append({"epoch": 3, "megabytes": 107.5})
    assert cache_memory.growth(rows) == {
        "name": "memory of a loader worker, epochs 2 to 3",
        "start_mb": 100.0,
        "end_mb": 107.5,
        "growth_mb": 7.5,
    }


def test_resident_memory_is_that_of_this_process() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    before = cache_memory.resident_bytes()
    block = torch.ones(100_000_000)  # 400 MB, touched
    assert cache_memory.resident_bytes() - before > 300e6
    assert block.sum() == 100_000_000
