"""Agreement of two caches, by numbers that can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovd_d2.analysis.cache_comparison import agreement_rows, compare_caches
from ovd_d2.cache import CacheError, EmbeddingCache
from ovd_d2.vocabulary import Vocabulary

AXES = torch.eye(8)
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 33, 33]])
Cache = Callable[..., EmbeddingCache]


def words(teacher: str = "Toy-RN-0123") -> Vocabulary:
    novel = torch.tensor([False, True])
    return Vocabulary(["anchor", "snowman"], AXES[:2].clone(), novel, teacher=teacher)


@pytest.fixture
def cache(tmp_path: Path, build: Callable[..., Path]) -> Cache:
    """`cache(name, rows)`: image 1 has two boxes with these embeddings, image 2 none."""

    def make(
        name: str, rows: torch.Tensor, boxes: torch.Tensor = BOXES, **header
    ) -> EmbeddingCache:
        first = {"boxes": boxes, "objectness": torch.tensor([0.9, 0.5]), "embeddings": rows}
        empty = {key: value[:0] for key, value in first.items()}
        records = {1: first, 2: empty}
        made = build(
            tmp_path / name, records, record=lambda i, kind: records[i], dtype="float32", **header
        )
        return EmbeddingCache(made)

    return make


def test_by_hand(cache: Cache) -> None:
    first = cache("a", torch.stack([AXES[0], AXES[1]]))
    second = cache("b", torch.stack([0.8 * AXES[0] + 0.6 * AXES[1], AXES[0]]))
    found = compare_caches(first, second, words())
    assert list(found) == ["all", "small", "medium"]
    everything, small, medium = found.values()
    assert (everything.proposals, small.proposals, medium.proposals) == (2, 1, 1)
    assert small.cosine == pytest.approx(0.8, abs=1e-3)
    assert medium.cosine == pytest.approx(0, abs=1e-3)
    assert everything.cosine == pytest.approx(0.4, abs=1e-3)
    assert small.chance == pytest.approx(1, abs=1e-3)  # with the other box of the second cache
    assert medium.chance == pytest.approx(0.6, abs=1e-3)
    assert (small.same_name, medium.same_name, everything.same_name) == (1, 0, 0.5)
    assert agreement_rows(found)[1] == ["small", "1", "0.8000", "1.0000", "100.0%"]


def test_without_names(cache: Cache) -> None:
    first = cache("a", torch.stack([AXES[0], AXES[1]]))
    found = compare_caches(first, first)
    assert found["all"].cosine == pytest.approx(1, abs=1e-6)
    assert found["all"].same_name is None
    assert agreement_rows(found)[0][-1] == ""


def test_a_single_proposal_has_no_other(tmp_path: Path, build: Callable[..., Path]) -> None:
    one = {"boxes": BOXES[:1], "objectness": torch.ones(1), "embeddings": AXES[:1]}
    path = build(tmp_path / "one", [1], record=lambda i, kind: one)
    assert math.isnan(compare_caches(EmbeddingCache(path), EmbeddingCache(path))["all"].chance)


def test_what_does_not_compare(cache: Cache, tmp_path: Path, build: Callable[..., Path]) -> None:
    rows = torch.stack([AXES[0], AXES[1]])
    first = cache("a", rows)
    with pytest.raises(CacheError, match="other proposals of image 1: .*same --top-k"):
        compare_caches(first, cache("moved", rows, BOXES + 1))
    with pytest.raises(CacheError, match="8 wide, .* 2"):
        compare_caches(first, cache("narrow", torch.eye(2), embedding_dim=2))
    with pytest.raises(CacheError, match="vocabulary is of teacher 'X-1'"):
        compare_caches(first, first, words("X-1"))
    refined = cache("refined", rows, teacher="Toy-RN-9")
    assert compare_caches(first, refined, words("Toy-RN-9"))["all"].same_name == 1
    with pytest.raises(CacheError, match="no image in common"):
        compare_caches(first, EmbeddingCache(build(tmp_path / "others", [7])))
