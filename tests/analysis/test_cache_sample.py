"""What `sample` and `info` say of a store, in words and as an image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.analysis.cache_info import info_table, store_info
from ovd_d2.analysis.cache_sample import sample_ids, sample_records, sample_rows, sample_sheet
from ovd_d2.cache import (
    CacheError,
    EmbeddingCache,
    Manifest,
    ProposalStore,
    RecordWriter,
    dataset_fingerprint,
)
from ovd_d2.cache.manifest import DatasetInfo
from ovd_d2.data.image_faults import ImageError
from ovd_d2.visualization import BASE_COLOR, NOVEL_COLOR
from ovd_d2.vocabulary import Vocabulary

TEACHER = "Toy-RN-0123"
AXES = torch.eye(8)
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def vocabulary() -> Vocabulary:
    novel = torch.tensor([False, True, False])
    return Vocabulary(["anchor", "snowman", "skull"], AXES[:3].clone(), novel, teacher=TEACHER)


@pytest.fixture
def cache(tmp_path: Path, build: Callable[..., Path]) -> EmbeddingCache:
    """Image 1: an anchor that is somewhat a skull, and a snowman. Image 2: nothing."""
    anchor = AXES[0] * 0.8 + AXES[2] * 0.6
    records = {
        1: {
            "boxes": torch.tensor([[4.0, 4, 24, 24], [30, 10, 60, 40]]),
            "objectness": torch.tensor([0.9, 0.7]),
            "embeddings": torch.stack([anchor, AXES[1]]),
        },
        2: {
            "boxes": torch.zeros(0, 4),
            "objectness": torch.zeros(0),
            "embeddings": torch.zeros(0, 8),
        },
    }
    return EmbeddingCache(
        build(tmp_path / "cache", records, record=lambda image_id, kind: records[image_id])
    )


@pytest.fixture
def entries(tmp_path: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for image_id in (1, 2):
        path = tmp_path / f"{image_id}.png"
        Image.new("RGB", (WIDTH, HEIGHT), (200, 200, 200)).save(path)
        found[image_id] = {
            "image_id": image_id,
            "file_name": str(path),
            "width": WIDTH,
            "height": HEIGHT,
        }
    return found


def test_the_nearest_names_come_with_their_cosine(
    cache: EmbeddingCache, vocabulary: Vocabulary
) -> None:
    (image,) = sample_records(cache, [1], proposals=5, vocabulary=vocabulary)
    first, second = image.proposals
    assert [name for name, _ in first.names] == ["anchor", "skull", "snowman"]
    assert [value for _, value in first.names] == pytest.approx([0.8, 0.6, 0.0], abs=1e-3)
    assert (first.novel, second.novel) == (False, True)
    assert second.names[0] == ("snowman", pytest.approx(1.0, abs=1e-3))
    assert first.box == (4, 4, 24, 24)
    assert image.total == 2


def test_only_the_first_proposals_are_shown(cache: EmbeddingCache) -> None:
    (image,) = sample_records(cache, [1], proposals=1)
    assert (len(image.proposals), image.total) == (1, 2)
    assert image.proposals[0].names == ()


def test_in_words(cache: EmbeddingCache, vocabulary: Vocabulary) -> None:
    rows = sample_rows(sample_records(cache, [1, 2], proposals=1, vocabulary=vocabulary))
    assert rows == [
        ["1", "1 of 2", "0.900", "4, 4, 24, 24", "anchor 0.80, skull 0.60, snowman 0.00"],
        ["2", "none", "", "", ""],
    ]


def test_the_choice_is_random_and_repeatable(build: Callable[..., Path], tmp_path: Path) -> None:
    cache = EmbeddingCache(build(tmp_path / "many", range(30)))
    first = sample_ids(cache, 5, seed=0)
    assert first == sample_ids(cache, 5, seed=0) == sorted(set(first))
    assert any(sample_ids(cache, 5, seed=seed) != first for seed in range(1, 4))
    assert sample_ids(cache, 99, seed=0) == list(range(30))


def test_the_sheet_has_a_line_per_image_and_marks_novel_names(
    cache: EmbeddingCache,
    entries: dict[int, dict[str, Any]],
    vocabulary: Vocabulary,
    tmp_path: Path,
) -> None:
    path = tmp_path / "sheet.png"
    one = sample_records(cache, [1], proposals=5, vocabulary=vocabulary)
    sample_sheet(one, entries, path, "toy")
    lower = np.asarray(Image.open(path))
    colors = {tuple(color) for color in np.unique(lower.reshape(-1, 3), axis=0).tolist()}
    assert {BASE_COLOR, NOVEL_COLOR} <= colors
    both = sample_records(cache, [1, 2], proposals=5, vocabulary=vocabulary)
    sample_sheet(both, entries, path, "toy")
    higher = np.asarray(Image.open(path))
    assert higher.shape[1] == lower.shape[1]
    assert higher.shape[0] > lower.shape[0] + 250
    # The second image has no proposals: nothing stands right of its image.
    assert (higher[lower.shape[0] :, 24 + 264 + 10 : -24] == 255).all()


def test_a_vocabulary_of_another_teacher_is_refused(cache: EmbeddingCache) -> None:
    foreign = Vocabulary(["anchor"], AXES[:1].clone(), teacher="Other-RN-1")
    with pytest.raises(CacheError, match=r"'Other-RN-1' .* of 'Toy-RN-0123'"):
        sample_records(cache, [1], proposals=5, vocabulary=foreign)


def test_images_that_are_not_there_are_named(
    cache: EmbeddingCache, entries: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match=r"no record of the images \[7\]"):
        sample_records(cache, [1, 7], proposals=5)
    sampled = sample_records(cache, [1, 2], proposals=5)
    with pytest.raises(CacheError, match=r"does not have the images \[2\]"):
        sample_sheet(sampled, {1: entries[1]}, tmp_path / "x.png", "toy")
    Path(entries[2]["file_name"]).unlink()
    with pytest.raises(ImageError, match=r"image 2: .*2\.png is missing"):
        sample_sheet(sampled, entries, tmp_path / "x.png", "toy")
    assert not (tmp_path / "x.png").exists()


def test_proposals_can_be_looked_at_before_they_have_embeddings(
    build: Callable[..., Path], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    store = ProposalStore(build(tmp_path / "proposals", range(1, 4), kind="proposals"))
    (image,) = sample_records(store, [3], proposals=2)
    assert (len(image.proposals), image.total) == (2, 3)
    with pytest.raises(CacheError, match="without embeddings: no names"):
        sample_records(store, [3], proposals=2, vocabulary=vocabulary)


# One cache, several trainings


def test_the_first_proposals_are_the_best_ones(tmp_path: Path, build: Callable[..., Path]) -> None:
    record = {
        "boxes": torch.tensor([[0.0, 0, k, k] for k in (1, 2, 3)]),
        "objectness": torch.tensor([0.9, 0.5, 0.1]),
        "embeddings": AXES[:3].clone(),
    }
    cache = EmbeddingCache(build(tmp_path / "cache", [1], record=lambda image_id, kind: record))
    for count in (0, 1, 2, 3, 99):
        some, everything = cache.read(1, count), cache[1]
        assert torch.equal(some.boxes, everything.boxes[:count])
        assert torch.equal(some.objectness, everything.objectness[:count])
        assert torch.equal(some.embeddings, everything.embeddings[:count])


# info


def facts(path: Path) -> dict[str, str]:
    return dict(info_table(store_info(path)))


def test_info_of_a_finished_cache(build: Callable[..., Path], tmp_path: Path) -> None:
    path = build(tmp_path / "cache", range(1, 6))
    info = store_info(path)
    assert info.complete
    assert info.problem == ""
    assert (info.images, info.dataset_images) == (5, 5)
    assert info.proposals == 1 + 2 + 3 + 0 + 1
    assert info.proposals_per_image == (0, 1.0, 3)
    assert info.bytes == sum(shard.stat().st_size for shard in path.glob("shard-*"))
    assert info.bytes_per_image == info.bytes / 5
    assert info.fingerprint == EmbeddingCache(path).fingerprint
    table = facts(path)
    assert table["state"] == "complete"
    assert table["proposals per image"] == "0 / 1 / 3 (min / median / max)"
    assert table["holds"] == "proposals with teacher embeddings, 8 x float16 each"
    assert json.loads(info.json())["teacher"] == TEACHER


def test_info_counts_what_an_unfinished_build_has_stored(
    tmp_path: Path,
    open_writer: Callable[..., RecordWriter],
    make_record: Callable[..., dict[str, torch.Tensor]],
) -> None:
    path = tmp_path / "cache"
    with open_writer(path, range(1, 11), shard=3) as writer:
        for image_id in range(1, 5):
            writer.add(image_id, make_record(image_id))
        info = store_info(path)
    assert (info.images, info.complete) == (3, False)
    assert info.proposals_per_image == (1, 2.0, 3)
    assert facts(path)["state"] == "unfinished: 3 of 10 images (30.0%)"
    assert info.fingerprint == ""


def test_info_of_a_build_that_has_just_begun(
    tmp_path: Path, open_writer: Callable[..., RecordWriter]
) -> None:
    open_writer(tmp_path / "cache", range(10))
    table = facts(tmp_path / "cache")
    assert table["state"] == "unfinished: 0 of 10 images (0.0%)"
    assert table["proposals per image"] == "-"
    assert table["bytes per image"] == "0"


@pytest.mark.parametrize("what", ["shard-n002-00001.safetensors", "index.safetensors"])
def test_info_says_that_a_file_is_gone(
    build: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    path = build(tmp_path / "cache", range(1, 6))
    (path / what).unlink()
    assert facts(path)["state"].startswith(f"damaged: {path / what} is missing")


def test_info_of_proposals(build: Callable[..., Path], tmp_path: Path) -> None:
    table = facts(build(tmp_path / "proposals", kind="proposals"))
    assert table["holds"] == "proposals (boxes and objectness)"
    assert "teacher" not in table


def test_info_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no record store in"):
        store_info(tmp_path)


def test_fingerprints_of_the_data_set_are_shown(tmp_path: Path) -> None:
    dataset = [{"image_id": 1, "file_name": "a/1.jpg", "height": 3, "width": 4}]
    info = DatasetInfo("one", dataset_fingerprint(dataset), 1)
    manifest = Manifest(kind="proposals", dataset=info, proposals="p")
    with RecordWriter(tmp_path / "cache", manifest, images=dataset) as writer:
        writer.add(1, {"boxes": torch.zeros(0, 4), "objectness": torch.zeros(0)})
        writer.finish()
    assert facts(tmp_path / "cache")["data set"] == f"one (1 images, {info.fingerprint})"
