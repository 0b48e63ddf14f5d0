"""COCO- and LVIS-format annotation files: reading with clear errors, cutting, writing whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ovd_d2.files import atomic_write

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")


def read_annotations(path: Path) -> dict[str, Any]:
    """A complete annotation file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or without images, annotations or categories.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file not found: {path} (see datasets/README.md)")
    logger.info("Reading %s (%.0f MB)", path, path.stat().st_size / 1e6)
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, endless digits, endless brackets
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    missing = [part for part in PARTS if not isinstance(dataset, dict) or part not in dataset]
    if missing:
        raise ValueError(f"{path}: not a COCO / LVIS annotation file, it lacks {missing}")
    return dataset


def write_annotations(path: Path, dataset: dict[str, Any], *, overwrite: bool) -> None:
    """Writes compact JSON, whole or not at all.

    Raises:
        FileExistsError: the file is there and `overwrite` is not given.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it")
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(dataset, stream)
    logger.info(
        "Wrote %s: %d images, %d annotations, %d categories",
        *(path, *(len(dataset[part]) for part in PARTS)),
    )


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
