"""Stored types of embeddings: values by hand, what rounding costs, bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.cache_reading import LVIS_IMAGES, make_manifest, write_random_store
from torch.nn.functional import normalize

from ovd_d2.cache import EmbeddingCache
from ovd_d2.cache.quantization import decode, encode, length_tolerance, lengths
from ovd_d2.cache.records import data_bytes, encode_record, value_problems
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.pictograms.dataset.glyphs import build_categories
from ovd_d2.pictograms.teacher_data import HELD_OUT_STREAM, render_crops

DTYPES = ["float32", "float16", "int8"]


def random_units(rows: int, dim: int = 512, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def cosines(rows: torch.Tensor, dtype: str) -> torch.Tensor:
    """Of float32 unit rows to what is read back, in float64."""
    back = decode(encode(rows, dtype)["embeddings"])
    return (normalize(rows.double(), dim=1) * back.double()).sum(dim=1)


def test_int8_by_hand() -> None:
    stored = encode(torch.tensor([[0.6, -0.8, 0.0], [0.0, 0.0, 1.0]]), "int8")
    assert stored["embeddings"].dtype == torch.int8
    # 0.6 / (0.8 / 127) = 95.25
    assert stored["embeddings"].tolist() == [[95, -127, 0], [0, 0, 127]]
    torch.testing.assert_close(stored["scales"], torch.tensor([0.8 / 127, 1 / 127]))
    length = (95**2 + 127**2) ** 0.5
    expected = torch.tensor([[95 / length, -127 / length, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(decode(stored["embeddings"]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_read_back_are_unit_rows_of_their_own(dtype: str) -> None:
    stored = encode(random_units(50), dtype)["embeddings"]
    before = stored.clone()
    rows = decode(stored)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50), atol=1e-6, rtol=0)
    rows.zero_()
    assert torch.equal(stored, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype: str) -> None:
    stored = encode(torch.zeros(0, 8), dtype)
    assert decode(stored["embeddings"]).shape == (0, 8)
    assert set(stored) == ({"embeddings", "scales"} if dtype == "int8" else {"embeddings"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_directions_survive(dtype: str) -> None:
    found = cosines(random_units(2000), dtype)
    assert found.mean() >= 0.9999
    assert found.min() >= 0.9998


def test_a_direction_that_one_number_dominates_survives() -> None:
    """As CLIP's: one component far above the rest makes the steps of int8 coarse."""
    rows = random_units(500)
    rows[:, 133] = 0.9
    assert cosines(normalize(rows, dim=1), "int8").min() >= 0.995


def test_embeddings_of_the_shipped_teacher_survive() -> None:
    teacher = CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")
    categories = build_categories(40)
    drawn = render_crops(categories, 3, stream=HELD_OUT_STREAM, seed=5, workers=1, progress=False)
    crops = [teacher.preprocess_image(crop.pixels) for group in drawn for crop in group]
    with torch.no_grad():
        rows = normalize(teacher.encode_images(torch.stack(crops)).float(), dim=1)
    found = cosines(rows, "int8")
    assert found.mean() >= 0.999
    assert found.min() >= 0.995


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_lengths_stay_within_the_tolerance(dtype: str) -> None:
    for dim in (2, 3, 64, 512):
        stored = encode(random_units(500, dim), dtype)
        embeddings, scales = stored["embeddings"], stored.get("scales")
        error = (lengths(embeddings, scales) - 1).abs()
        assert (error <= length_tolerance(embeddings, scales) + 1e-6).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0, float("nan")])
def test_a_wrong_scale_is_found(
    make_record: Callable, make_manifest: Callable, scale: float
) -> None:
    record = encode_record(make_manifest(dtype="int8"), 3, make_record(3))
    assert value_problems(record) == []
    record["scales"][1] = scale
    (problem,) = value_problems(record)
    assert "1 of 3" in problem


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_through_a_store(
    tmp_path: Path, build: Callable, make_record: Callable, dtype: str
) -> None:
    cache = EmbeddingCache(build(tmp_path, (2, 3, 4), dtype=dtype))
    assert cache.verify() == []
    for image_id in cache:
        read, written = cache[image_id], make_record(image_id)
        expected = encode(written["embeddings"], dtype)
        stored = torch.from_numpy(cache.read_undecoded(image_id)["embeddings"])
        assert torch.equal(stored, expected["embeddings"])
        assert torch.equal(read.embeddings, decode(expected["embeddings"]))
        assert torch.equal(read.boxes, written["boxes"])


@pytest.mark.parametrize(("dtype", "gib"), [("float32", 58), ("float16", 30), ("int8", 16)])
def test_bytes_of_lvis(dtype: str, gib: int) -> None:
    fields = make_manifest(dtype).fields
    assert data_bytes(fields, LVIS_IMAGES, LVIS_IMAGES * 300) <= gib * 2**30


@pytest.mark.parametrize("dtype", DTYPES)
def test_counted_bytes_are_those_of_a_real_shard(tmp_path: Path, dtype: str) -> None:
    write_random_store(tmp_path, dtype, images=4, rows=5, images_per_shard=4)
    (path,) = tmp_path.glob("shard-*")
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    assert header < 1024
    assert len(content) - 8 - header == data_bytes(make_manifest(dtype).fields, 4, 20)
