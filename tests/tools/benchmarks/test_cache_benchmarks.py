"""The cache's benchmarks on tiny data: what is counted, and what the tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import cache_building, cache_loading, cache_page
from benchmarks.cache_building import (
    STAGES,
    Workload,
    build_rates,
    load_teacher,
    make_boxes,
    make_image,
    stage_shares,
    table_of,
    workloads,
    write_images,
    write_proposals,
)

from ovd_d2.engine.cache_builder import load_image
from ovd_d2.structures import cached_proposals_of

TINY = Workload("Pictogram-RN", "shipped", (48, 64), 2, 3, 8, 1)


def test_one_workload_is_measured_and_extrapolated() -> None:
    row = cache_building.measure(TINY)
    assert row["name"] == "Pictogram-RN (shipped), 64 x 48, cpu"
    assert row["crops_per_second"] > 0
    crops = 100_170 * 300 * 2
    hours = crops / row["crops_per_second"] / 3600
    assert row["lvis_hours"] == pytest.approx(hours, abs=0.01)
    assert sum(row["shares"].values()) == pytest.approx(1, abs=0.01)
    assert list(row["shares"]) == list(STAGES)
    text = table_of([row])
    assert "Pictogram-RN (shipped)" in text
    assert "%" in text


def test_ratios_are_of_times_a_crop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """12 crops built in 3 s, 16 passed forward in 2 s, and 6 the naive way in 9 s."""
    seconds = {"build": [3.0], "forward": [2.0], "naive": [9.0]}
    monkeypatch.setattr(cache_building, "time_alternately", lambda things, rounds, title: seconds)
    entries = [{"image_id": 0}, {"image_id": 1}]
    rates = build_rates(TINY, None, entries, None, tmp_path)  # type: ignore[arg-type]
    assert rates["crops_per_second"] == 4.0
    assert rates["of_forward"] == 0.5  # 4 of 8 per second
    assert rates["over_naive"] == 6.0  # 1.5 s per crop over 0.25 s
    assert rates["forward_over_naive"] == 12.0


def test_shares_are_of_the_sum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seconds = {"decode": [1.0], "crop": [2.0], "encode": [6.0], "write": [1.0]}
    monkeypatch.setattr(cache_building, "time_alternately", lambda things, rounds, title: seconds)
    entries = write_images(tmp_path / "images", TINY)
    proposals = write_proposals(tmp_path / "proposals", entries, 3)
    shares = stage_shares(TINY, load_teacher(TINY), entries, proposals, tmp_path / "written")
    assert shares == {"decode": 0.1, "crop": 0.2, "encode": 0.6, "write": 0.1}


def test_workloads_of_a_device() -> None:
    small, large_images, usual = workloads("cpu")
    assert small.pretrained == large_images.pretrained == "shipped"
    assert small.image_size < large_images.image_size
    assert usual.architecture == "ViT-B-32"
    (large,) = workloads("cuda:0")
    assert large.image_size == (1024, 1024)
    assert large.device == "cuda:0"
    assert large.crops == 64 * 300 * 2
    assert [work.architecture for work in workloads("cpu", "RN50")] == ["RN50"]


def test_random_weights_are_the_same_in_every_run(tmp_path: Path) -> None:
    work = replace(TINY, pretrained="")
    assert load_teacher(work).fingerprint == load_teacher(work).fingerprint
    assert load_teacher(work).fingerprint != load_teacher(TINY).fingerprint


def test_made_up_data_is_what_it_says(tmp_path: Path) -> None:
    entries = write_images(tmp_path, TINY)
    assert [load_image(entry).shape for entry in entries] == [(48, 64, 3)] * 2
    image = make_image(48, 64, np.random.default_rng(0)).astype(float)
    neighbours = np.abs(np.diff(image, axis=1)).mean()
    assert neighbours < 0.75 * image.std()  # of white noise 1.13
    boxes = make_boxes(480, 640, 500, np.random.default_rng(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [640.01, 480.01]).all()
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    assert sides.min() < 20
    assert sides.max() > 250


def test_loading_is_measured_for_both_types(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cache_loading.measure(rounds=2, images=2, rows=4, dim=8)
    assert [row["name"] for row in rows] == [
        "loading, float16 cache / without",
        "loading, int8 cache / without",
    ]
    assert all(row["loading_ratio"] > 0 for row in rows)
    assert "int8 cache" in cache_loading.table_of(rows)


def test_both_mappers_see_the_same_image_and_one_brings_proposals(tmp_path: Path) -> None:
    work = replace(TINY, image_size=(480, 640), images=1)
    (entry,) = [cache_loading.with_annotations(e) for e in write_images(tmp_path / "p", work)]
    cache = cache_loading.write_random_store(tmp_path / "c", "int8", images=1, rows=300, dim=8)
    without = cache_loading._mapper("vild_text_r50", [])
    distils = cache_loading._mapper("vild_r50", ["MODEL.VILD.DISTILLATION.CACHE", str(cache)])
    outputs = []
    for mapper in (without, distils):
        np.random.seed(3)
        outputs.append(mapper(entry))
    assert torch.equal(outputs[0]["image"], outputs[1]["image"])
    assert cached_proposals_of(outputs[0]["instances"]) is None
    assert len(cached_proposals_of(outputs[1]["instances"])) > 0


def test_page_holds_all_parts() -> None:
    built = {
        "name": "T",
        "batch_size": 4,
        "precision": "float32",
        "crops_per_second": 1234.5,
        "of_forward": 0.9,
        "over_naive": 6.0,
        "forward_over_naive": 6.6,
        "lvis_hours": 13.5,
        "shares": {"decode": 0.1, "crop": 0.2, "encode": 0.6, "write": 0.1},
    }
    loading = {
        "name": "L",
        "loading_ratio": 1.01,
        "milliseconds_without": 20.0,
        "milliseconds_added": 0.2,
    }
    reading = {"name": "R", "median_us": 60.0, "p90_us": 70.0, "p99_us": 90.0}
    rows = [built, loading, reading, cache_page.machine()]
    text = cache_page.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    for part in ("`python x`\non 2026-01-04", "1,234", "0.90", "60.0 %", "1.010", "median_us"):
        assert part in text
