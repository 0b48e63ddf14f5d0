"""Does the memory of loader workers grow while they read the cache, epoch after epoch?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.cache_reading import ROWS, write_random_store
from benchmarks.speed import Row
from ovd_d2.cache import EmbeddingCache
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.passengers import CachedProposals

WORKERS, EPOCHS, IMAGES = 8, 20, 128
WARM_UP = 2  # epochs until every worker has allocated what it needs


class _Reporting(Dataset):
    """What the mapper makes of an image, with the memory of the worker that made it."""

    def __init__(
        self, mapper: OpenVocabularyDatasetMapper, entries: Sequence[dict[str, Any]]
    ) -> None:
        self.mapper = mapper
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, position: int) -> tuple[dict[str, Any], int, int]:
        sample = self.mapper(self.entries[position])
        return sample, os.getpid(), resident_bytes()


def measure(*, images: int = IMAGES, workers: int = WORKERS, epochs: int = EPOCHS) -> list[Row]:
    """The row of `growth`, with a made-up float16 cache in a temporary folder (40 MB)."""
    with tempfile.TemporaryDirectory() as name:
        store = write_random_store(Path(name) / "cache", "float16", images=images)
        folder = Path(name) / "images"
        return [growth(memory_by_epoch(store, folder, workers=workers, epochs=epochs))]


def memory_by_epoch(
    store: Path, folder: Path, *, workers: int = WORKERS, epochs: int = EPOCHS
) -> list[Row]:
    """Resident memory of the workers at the end of every epoch of a training's loader.

    Args:
        store: folder of a finished cache; a small image is drawn for each of its records.
        folder: for these images.

    Returns:
        A row per epoch: `epoch` from 1, `megabytes`: mean over the workers of their resident set,
        shared pages included.

    Raises:
        OSError: the system has no /proc.
    """
    cache = EmbeddingCache(store)
    entries = _draw_images(cache, folder)
    augmentations = [T.ResizeShortestEdge([96, 128], 160, "choice"), T.RandomFlip()]
    mapper = OpenVocabularyDatasetMapper(
        is_train=True,
        augmentations=augmentations,
        image_format="RGB",
        passengers=[CachedProposals(cache, per_image=ROWS)],
    )
    loader = DataLoader(
        _Reporting(mapper, entries),
        batch_size=None,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )
    rows = []
    for epoch in tqdm(range(1, epochs + 1), f"{workers} workers", unit="epoch"):
        resident = {process: size for _, process, size in loader}  # the last of each counts
        mean = sum(resident.values()) / len(resident)
        rows.append({"epoch": epoch, "megabytes": round(mean / 1e6, 1)})
    return rows


def growth(rows: Sequence[Row]) -> Row:
    """Megabytes that a worker gained from the warm-up to the last epoch."""
    start, end = rows[min(WARM_UP, len(rows)) - 1], rows[-1]
    return {
        "name": f"memory of a loader worker, epochs {start['epoch']} to {end['epoch']}",
        "start_mb": start["megabytes"],
        "end_mb": end["megabytes"],
        "growth_mb": round(end["megabytes"] - start["megabytes"], 1),
    }


def table_of(rows: Sequence[Row]) -> str:
    """Markdown."""
    return tabulate([row for row in rows if "growth_mb" in row], "keys", tablefmt="pipe")


def resident_bytes() -> int:
    """The resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _draw_images(cache: EmbeddingCache, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    entries = []
    for image_id in cache:
        path = folder / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 255, (120, 120, 3), dtype=np.uint8)).save(path)
        entries.append({"file_name": str(path), "image_id": image_id, "height": 120, "width": 120})
    return entries
