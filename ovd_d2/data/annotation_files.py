"""COCO- and LVIS-format annotation files: reading with clear errors, cutting, writing whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ovd_d2.data.json_stream import BAR_DELAY, BATCH, read_parts
from ovd_d2.files import atomic_write

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")


def read_annotations(path: Path, *, progress: bool = True) -> dict[str, Any]:
    """A complete annotation file, in the file's order of keys.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, not JSON, or without lists of images, annotations or categories.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file not found: {path} (see datasets/README.md)")
    logger.info("Reading %s (%.0f MB)", path, path.stat().st_size / 1e6)
    lists: dict[str, list[Any]] = {part: [] for part in PARTS}
    handlers = {part: entries.extend for part, entries in lists.items()}
    dataset = read_parts(path, handlers, exact=True, progress=progress)
    missing = [part for part in PARTS if dataset.get(part, False) is not None]
    if missing:
        raise ValueError(f"{path}: not a COCO / LVIS annotation file, it lacks {missing}")
    return {**dataset, **lists}


def write_annotations(
    path: Path, dataset: dict[str, Any], *, overwrite: bool, progress: bool = True
) -> None:
    """Writes compact JSON, whole or not at all.

    Raises:
        FileExistsError: the file is there and `overwrite` is not given.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it")
    total = sum(len(dataset[part]) for part in PARTS)
    bar = tqdm(total=total, desc=f"writing {path.name}", delay=BAR_DELAY, disable=not progress)
    with bar, atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(_json_pieces(dataset, bar))
    logger.info(
        "Wrote %s: %d images, %d annotations, %d categories",
        *(path, *(len(dataset[part]) for part in PARTS)),
    )


def _json_pieces(dataset: dict[str, Any], bar: tqdm[Any]) -> Iterator[str]:
    """The text of an object, a batch of its lists at a time: `json.dump` is ten times as slow."""
    yield "{"
    for number, (key, value) in enumerate(dataset.items()):
        yield f"{', ' if number else ''}{json.dumps(key)}: "
        if key not in PARTS:
            yield json.dumps(value)
            continue
        yield "["
        for start in range(0, len(value), BATCH):
            batch = value[start : start + BATCH]
            yield (", " if start else "") + json.dumps(batch)[1:-1]
            bar.update(len(batch))
        yield "]"
    yield "}"


def keep_annotations(
    dataset: dict[str, Any],
    category_ids: Collection[int],
    *,
    keep_image: Callable[[int, set[int]], bool] = lambda image_id, annotated: True,
) -> dict[str, Any]:
    """A copy with the annotations of some categories only; the list of categories stays.

    Args:
        dataset: COCO or LVIS format; not changed.
        category_ids: whose annotations are kept.
        keep_image: is given an image id and the ids of all images that keep an annotation.
    """
    kept = set(category_ids)
    annotations = [one for one in dataset["annotations"] if one["category_id"] in kept]
    annotated = {one["image_id"] for one in annotations}
    images = [one for one in dataset["images"] if keep_image(one["id"], annotated)]
    return {**dataset, "images": images, "annotations": annotations}
