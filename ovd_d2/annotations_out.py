"""Detections as annotations that labelling tools open: COCO's JSON and Label Studio's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray

_LEAST_CORNERS = 3


class Found(TypedDict):
    """The detections of an image.

    Attributes:
        file: of the image.
        height, width: px.
        objects: `name`, `score`, `box` (XYXY) and, of masks, `polygons` ([x, y, x, y, ...]).
    """

    file: str
    height: int
    width: int
    objects: list[dict[str, Any]]


def coco_dataset(found: Sequence[Found], names: Sequence[str]) -> dict[str, Any]:
    """A COCO data set: image ids and category ids count from 1, in order.

    An annotation has its `score`, too, which COCO's format does not know and readers pass over.
    """
    ids = {name: k for k, name in enumerate(names, 1)}
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(found, 1):
        for one in image["objects"]:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0}
                | _coco_object(one, ids)
            )
    images = [
        {"id": k, "file_name": one["file"], "height": one["height"], "width": one["width"]}
        for k, one in enumerate(found, 1)
    ]
    categories = [{"id": k, "name": name, "supercategory": ""} for name, k in ids.items()]
    return {
        "info": {"description": "pre-annotation by ovd_d2"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _coco_object(one: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    left, top, right, bottom = one["box"]
    return {
        "category_id": ids[one["name"]],
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "segmentation": one.get("polygons", []),
        "score": one["score"],
    }


def coco_results(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of COCO's results format, with the ids of a data set of :func:`coco_dataset`."""
    keys = ("image_id", "category_id", "bbox", "score")
    return [{key: one[key] for key in keys} for one in dataset["annotations"]]


def label_studio_tasks(found: Sequence[Found], model: str) -> list[dict[str, Any]]:
    """Tasks with predictions, for Label Studio's import.

    They fit a labelling configuration with `<Image name="image" value="$image"/>` and
    `<RectangleLabels name="label" toName="image">`.

    Args:
        found: of each image; `file` becomes the task's `image`.
        model: what Label Studio shows as the version of the model.
    """
    return [
        {
            "data": {"image": image["file"]},
            "predictions": [
                {
                    "model_version": model,
                    "score": max((one["score"] for one in image["objects"]), default=0.0),
                    "result": [_region(k, one, image) for k, one in enumerate(image["objects"])],
                }
            ],
        }
        for image in found
    ]


def _region(number: int, one: Mapping[str, Any], image: Found) -> dict[str, Any]:
    """A rectangle in per cent of the image."""
    left, top, right, bottom = one["box"]
    width, height = image["width"], image["height"]
    return {
        "id": f"{number}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": one["score"],
        "value": {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * (right - left) / width,
            "height": 100 * (bottom - top) / height,
            "rotation": 0,
            "rectanglelabels": [one["name"]],
        },
    }


def polygons_of(mask: NDArray[np.bool_]) -> list[list[float]]:
    """The outlines of a mask, (H, W); holes are filled, specks without area left out."""
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [
        [float(value) for value in one.ravel()] for one in outlines if len(one) >= _LEAST_CORNERS
    ]
