"""COCO-format annotation files as Detectron2's records, none of their boxes left out.

Detectron2's own loader leaves out every annotation whose polygons have fewer than three corners,
although its box is sound.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_utils
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ovd_d2.files import read_text

logger = logging.getLogger(__name__)

_COPIED = ("iscrowd", "bbox", "keypoints", "category_id", "tokens_positive")
# Of an image with a caption (MDETR's layout): the text, the phrases that are evaluated, and which
# sentence of which image it is.
_OF_CAPTIONS = ("caption", "tokens_positive_eval", "sentence_id", "original_img_id")
_FIX = "tools/check_setup.py lists what is wrong with it"


def register_coco_json(
    name: str, json_file: str, image_root: str, *, evaluator_type: str = "coco", **metadata: Any
) -> None:
    """Detectron2's `register_coco_instances` with :func:`load_coco_json`."""
    DatasetCatalog.register(name, partial(load_coco_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file, image_root=image_root, evaluator_type=evaluator_type, **metadata
    )


def load_coco_json(json_file: str, image_root: str, dataset_name: str) -> list[dict[str, Any]]:
    """The images of a file, by rising id, with all their annotations.

    Equal to Detectron2's `load_coco_json` for files without fault. Where an annotation has no valid
    segmentation (polygons of fewer than three corners, an RLE without size or counts), Detectron2
    leaves it out; here it keeps its box and has no `segmentation`. An `iscrowd` of null counts as
    0. An image's `caption` and an annotation's `tokens_positive` (MDETR's layout) come
    along where they are there. Sets the metadata fields `thing_classes` and
    `thing_dataset_id_to_contiguous_id`.

    Raises:
        ValueError: not JSON, or not COCO format; the message names the file.
    """
    path = PathManager.get_local_path(json_file)
    try:
        content = json.loads(read_text(Path(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    try:
        contiguous = _set_categories(content["categories"], dataset_name)
        records = _records(content, image_root, contiguous)
    except KeyError as error:
        raise ValueError(f"{path}: not COCO format: key {error} is missing; {_FIX}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not COCO format: {error}; {_FIX}") from error
    logger.info("Loaded %d images in COCO format from %s", len(records), path)
    return records


def _set_categories(categories: list[dict[str, Any]], dataset_name: str) -> dict[int, int]:
    """Tells the metadata the names; returns contiguous id by the file's id, in rising order."""
    ordered = sorted(categories, key=lambda one: one["id"])
    contiguous = {one["id"]: k for k, one in enumerate(ordered)}
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[one["name"] for one in ordered],
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    return contiguous


def _records(
    content: dict[str, Any], image_root: str, contiguous: Mapping[int, int]
) -> list[dict[str, Any]]:
    by_id = {image["id"]: image for image in content["images"]}
    annotations: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in by_id}
    others = 0
    for annotation in content["annotations"]:
        if annotation["image_id"] in annotations:
            annotations[annotation["image_id"]].append(_object(annotation, contiguous))
        else:
            others += 1
    if others:
        logger.warning("%d annotations are of images that the file does not list", others)
    return [
        {
            "file_name": os.path.join(image_root, by_id[image_id]["file_name"]),
            "height": by_id[image_id]["height"],
            "width": by_id[image_id]["width"],
            "image_id": image_id,
            "annotations": annotations[image_id],
            **{key: by_id[image_id][key] for key in _OF_CAPTIONS if key in by_id[image_id]},
        }
        for image_id in sorted(by_id)
    ]


def _object(annotation: Mapping[str, Any], contiguous: Mapping[int, int]) -> dict[str, Any]:
    """One annotation in Detectron2's form."""
    where = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
    found = {key: annotation[key] for key in _COPIED if key in annotation}
    if found.get("iscrowd", 0) is None:
        found["iscrowd"] = 0
    if "bbox" in found and not found["bbox"]:
        raise ValueError(f"{where} has an empty bbox")
    if annotation.get("ignore", 0):
        raise ValueError(f"{where} has the key 'ignore', which is not supported: remove it")
    if found["category_id"] not in contiguous:
        raise ValueError(f"{where} is of category {found['category_id']}, which is not listed")
    found["category_id"] = contiguous[found["category_id"]]
    if (segmentation := _segmentation(annotation.get("segmentation"))) is not None:
        found["segmentation"] = segmentation
    if found.get("keypoints"):
        found["keypoints"] = _keypoints(found["keypoints"])
    found["bbox_mode"] = BoxMode.XYWH_ABS
    return found


def _segmentation(found: Any) -> Any:
    """Valid polygons, or an RLE with its counts compressed; None where there is neither."""
    if isinstance(found, list):
        valid = [one for one in found if isinstance(one, list) and _is_polygon(one)]
        return valid or None
    if not isinstance(found, dict) or "size" not in found or "counts" not in found:
        return None
    if not isinstance(found["counts"], list):
        return found
    try:
        return mask_utils.frPyObjects(found, *found["size"])
    except (TypeError, ValueError, OverflowError):  # counts that are no numbers, or negative
        return None


def _is_polygon(numbers: list[Any]) -> bool:
    return len(numbers) >= 6 and len(numbers) % 2 == 0


def _keypoints(numbers: list[float]) -> list[float]:
    """x, y, visibility, ...: from COCO's pixel indices to continuous coordinates."""
    return [value + 0.5 if k % 3 < 2 else value for k, value in enumerate(numbers)]
