"""What the cache adds to loading a training image, at LVIS's settings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.cache_building import Entry, Workload, write_images
from benchmarks.cache_reading import DIM, ROWS, write_random_store
from benchmarks.speed import Row, ratio_of, time_alternately
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.engine.run import load_config
from ovd_d2.pipeline.pipeline import repository_root

IMAGES, ROUNDS = 16, 120
ANNOTATIONS, CORNERS = 12, 20  # of an LVIS image, mean; points of a polygon
DTYPES = ("float16", "int8")


def measure(
    rounds: int = ROUNDS, images: int = IMAGES, rows: int = ROWS, dim: int = DIM
) -> list[Row]:
    """An image through the mapper with cached proposals over the same one without.

    640 x 480 JPEG, 12 polygons, large-scale jitter to 1,024 pixels, 300 x 512 embeddings; the same
    jitter for all, so that the ratio is the cache's alone.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = Workload("", "", (480, 640), images, rows, 1, rounds)
        entries = [with_annotations(entry) for entry in write_images(folder / "images", work)]
        caches = {
            dtype: write_random_store(folder / dtype, dtype, images=images, rows=rows, dim=dim)
            for dtype in DTYPES
        }
        mappers = {"none": _mapper("vild_text_r50", [])}
        for dtype, path in caches.items():
            options = ["MODEL.VILD.DISTILLATION.CACHE", str(path)]
            mappers[dtype] = _mapper("vild_r50", options)
        things = {key: partial(_load, mapper, entries) for key, mapper in mappers.items()}
        seconds = time_alternately(things, rounds, "loading")
    return [
        {
            "name": f"loading, {dtype} cache / without",
            "loading_ratio": round(ratio_of(seconds, dtype, "none"), 4),
            "milliseconds_without": round(1000 * float(np.median(seconds["none"])), 2),
            "milliseconds_added": round(
                1000 * float(np.median(np.subtract(seconds[dtype], seconds["none"]))), 3
            ),
        }
        for dtype in DTYPES
    ]


def with_annotations(entry: Entry, seed: int = 0) -> Entry:
    """The data set dict with polygons of LVIS's number and size."""
    rng = np.random.default_rng([seed, entry["image_id"]])
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    annotations = []
    for _ in range(ANNOTATIONS):
        radius = np.exp(rng.uniform(np.log(5), np.log(100)))
        centre = rng.uniform([radius] * 2, [entry["width"] - radius, entry["height"] - radius])
        polygon = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        box = [*(centre - radius), *(centre + radius)]
        annotations.append(
            {
                "bbox": [float(value) for value in box],
                "bbox_mode": 0,  # BoxMode.XYXY_ABS
                "category_id": 0,
                "iscrowd": 0,
                "segmentation": [polygon.flatten().tolist()],
            }
        )
    return {**entry, "annotations": annotations}


def _mapper(config: str, options: Sequence[str]) -> OpenVocabularyDatasetMapper:
    cfg = load_config(str(repository_root() / f"configs/{config}.yaml"), list(options))
    return OpenVocabularyDatasetMapper(cfg, is_train=True)


def _load(mapper: Callable[[Entry], Any], entries: Sequence[Entry], number: int) -> None:
    np.random.seed(number)  # Detectron2 draws its augmentations from here
    mapper(entries[number % len(entries)])


def table_of(rows: Sequence[Row]) -> str:
    """Markdown."""
    body = [
        [
            row["name"],
            f"{row['loading_ratio']:.3f}",
            f"{row['milliseconds_without']:.1f}",
            f"{row['milliseconds_added']:.2f}",
        ]
        for row in rows
        if "loading_ratio" in row
    ]
    header = ["an image through the mapper", "ratio", "ms without", "ms added"]
    return tabulate(body, header, tablefmt="pipe", disable_numparse=True)
