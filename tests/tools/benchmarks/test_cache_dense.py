"""Crops beside dense maps: both builds take turns, and the operations are those of arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import cache_dense, cache_page
from benchmarks.cache_building import Workload

from ovd_d2.cache import EmbeddingCache
from tests.tiny_vits import NATIVE, folder_of_architecture


def gemacs(tokens: int, width: int = 768, blocks: int = 12, embedding: int = 512) -> float:
    """A ViT-B/16's multiplications, in 1e9: patches, blocks with attention, projection."""
    attention = 2 * tokens**2 * width
    block = 12 * tokens * width**2 + attention
    return (blocks * block + (tokens - 1) * 3 * 256 * width + tokens * width * embedding) / 1e9


def test_operations_are_those_of_arithmetic() -> None:
    found = cache_dense.predicted(cache_dense.workload("cpu"))
    # the last block has no attention: neither queries and keys nor products of tokens
    last = (2 * 4097 * 768**2 + 2 * 4097**2 * 768) / 1e9
    assert 1000 * found["square_tmac"] == pytest.approx(gemacs(4097) - last, rel=0.01)
    assert found["crops_tmac_lvis"] == pytest.approx(600 * gemacs(197) / 1000, rel=0.01)
    assert found["dense_tmac"] < 0.75 * found["square_tmac"]  # 1024 x 768
    ratio = found["crops_tmac_lvis"] / found["dense_tmac"]
    assert found["predicted_lvis"] == pytest.approx(ratio, rel=0.01)
    assert found["predicted"] == pytest.approx(ratio * 32 / 300, rel=0.01)


def test_both_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of_architecture(tmp_path, NATIVE)
    seen = []

    def time_alternately(things, rounds, title):
        for thing in things.values():
            thing(0)
            seen.append(EmbeddingCache(thing.args[3]).manifest)
        return {"crops": [6.0, 8.0, 9.0], "dense": [2.0, 2.0, 3.0]}

    monkeypatch.setattr(cache_dense, "time_alternately", time_alternately)
    row = cache_dense.measure(Workload(NATIVE, "", (48, 64), 2, 3, 8, 3), size=64)
    assert row["crops_over_dense"] == 3.0
    crops, dense = seen
    assert dense.recipe["teacher"] == "dense" and dense.recipe["size"] == 64
    assert crops.recipe["scales"] == [1.0, 1.5]
    assert crops.teacher == dense.teacher and crops.num_rows == dense.num_rows == 6
    assert f"| {NATIVE} (random), 64 x 48, cpu |" in cache_dense.table_of([row])
    assert "### By crops or out of a dense map" in cache_page._dense_section([row])


def test_documents_of_before_have_no_such_section() -> None:
    assert cache_dense.table_of([{"name": "other"}]) == ""
    assert cache_page._dense_section([{"name": "other"}]) == ""
