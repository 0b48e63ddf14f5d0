"""What a cache out of dense maps costs beside one of crops.

Both are built in turns, and the ratio of their times stands beside that of their operations. A pass
over the whole image costs the same whatever the number of proposals, crops cost their number: so
the ratio is measured with few proposals, and predicted for as many as a training has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from tabulate import tabulate

from benchmarks.cache_building import (
    SCALES,
    Workload,
    build,
    load_teacher,
    write_images,
    write_proposals,
)
from benchmarks.cache_reading import ROWS
from benchmarks.speed import Row, operations_of, ratio_of, time_alternately
from ovd_d2.clip.crops import CropRecipe
from ovd_d2.clip.dense import DenseRecipe, DenseViT
from ovd_d2.clip.untrained import untrained_model

SIZE = 1024
TERA = 1e12


def workload(device: str) -> Workload:
    """Few proposals on the CPU, where a crop takes a quarter of a second, and as many images as
    the builder encodes side by side.
    """
    if device == "cpu":
        images = min(4, torch.get_num_threads())
        return Workload("ViT-B-16", "", (480, 640), images, 32, 32, 3)
    return Workload("ViT-B-16", "", (480, 640), 32, ROWS, 512, 5, device)


def measure(work: Workload, size: int = SIZE) -> Row:
    """One row: time over time, operations over operations, and those for 300 proposals."""
    teacher = load_teacher(work)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write_images(folder / "images", work)
        proposals = write_proposals(folder / "proposals", entries, work.proposals)
        crops = CropRecipe.on(teacher.device), work.batch_size
        dense = DenseRecipe.on(teacher.device, size=size), None
        things: dict[str, Callable[[int], None]] = {
            "crops": partial(build, entries, proposals, teacher, folder / "crops", *crops),
            "dense": partial(build, entries, proposals, teacher, folder / "dense", *dense),
        }
        seconds = time_alternately(things, work.rounds, f"crops and dense, {work.name}")
    return {
        "name": work.name,
        "dense_size": size,
        "proposals": work.proposals,
        "crops_over_dense": round(ratio_of(seconds, "crops", "dense"), 2),
        **predicted(work, size),
    }


def predicted(work: Workload, size: int = SIZE) -> dict[str, Any]:
    """By multiplications with addition, of an image, in 1e12; no image is read or resized."""
    height, width = work.image_size
    scale = size / max(height, width)
    visual = untrained_model(work.architecture, "meta").eval()
    network = DenseViT(visual.visual)
    side = open_clip.get_model_preprocess_cfg(visual)["size"]
    dense = _multiplications(network, round(height * scale), round(width * scale))
    square = _multiplications(network, size, size)
    crop = _multiplications(visual.encode_image, *((side, side) if isinstance(side, int) else side))
    return {
        "predicted": round(work.proposals * SCALES * crop / dense, 2),
        "predicted_lvis": round(ROWS * SCALES * crop / dense, 2),
        "dense_tmac": round(dense, 3),
        "square_tmac": round(square, 3),
        "crops_tmac_lvis": round(ROWS * SCALES * crop, 2),
    }


def _multiplications(network: Callable[[torch.Tensor], Any], height: int, width: int) -> float:
    pixels = torch.zeros(1, 3, height, width, device="meta")
    with torch.no_grad():
        return operations_of(lambda: network(pixels)) / 2 / TERA  # it counts both


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; empty where nothing of this was measured."""
    cells = [
        [
            row["name"],
            row["dense_size"],
            row["proposals"],
            f"{row['crops_over_dense']:.1f}",
            f"{row['predicted']:.1f}",
            f"{row['predicted_lvis']:.1f}",
            f"{row['dense_tmac']:.2f} ({row['square_tmac']:.2f})",
            f"{row['crops_tmac_lvis']:.1f}",
        ]
        for row in rows
        if "crops_over_dense" in row
    ]
    header = [
        "crops / dense",
        "longer side",
        "proposals",
        "measured",
        "by operations",
        f"{ROWS} proposals, by operations",
        "TMAC dense (square)",
        f"TMAC {ROWS} x {SCALES} crops",
    ]
    return tabulate(cells, header, tablefmt="pipe", disable_numparse=True) if cells else ""
