"""Annotations as every engine takes them: the one place that makes the libraries' inputs alike."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ovd_d2.evaluation.protocols import Detection, Rules

FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


class GroundTruth:
    """The annotations of one data set under the rules of LVIS or of COCO.

    What is made alike, so that the result does not depend on the engine:

    * annotation ids are given anew from 1 on: lvis and pycocotools take a match with id 0 for none;
    * a missing or null `area` is that of the box (files with boxes only);
    * the lvis package leaves out objects (and detections) without area, COCO's tools do not; under
      LVIS's rules such annotations are left out here;
    * LVIS has no crowds, and the lvis package does not look at `iscrowd`: the field is dropped.
      COCO has: the field is there, 0 where it is missing or null, and an `ignore` field is dropped
      as pycocotools overwrites it.

    Attributes:
        rules: "lvis" or "coco".
        images: the data set's, untouched.
        categories: in ascending id order; so are the columns of an engine's precision array.
        annotations: copies with the changes above.
        has_masks: whether the annotations have segmentations, and masks are evaluated.
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        rules: Rules,
        source: str = "annotations",
        *,
        masks: bool = True,
    ) -> None:
        """
        Args:
            dataset: `images`, `annotations`, `categories` in the LVIS v1 or COCO format.
            rules: LVIS's need `neg_category_ids` and `not_exhaustive_category_ids` of each image.
            source: the file or data set, for error messages.
            masks: they are evaluated; where they are not, it does not matter which objects have
                one.

        Raises:
            ValueError: the federated fields are missing, a box or area is not finite; and where
                masks are evaluated: only some annotations have one, or an image has no size.
        """
        self.rules = rules
        self.source = source
        self.images: list[dict[str, Any]] = list(dataset["images"])
        self.categories = sorted(dataset["categories"], key=lambda category: category["id"])
        if rules == "lvis":
            self._check_federated()
        self._check_boxes(dataset["annotations"])
        prepared = (
            _prepared(annotation, number, rules)
            for number, annotation in enumerate(dataset["annotations"], 1)
        )
        self.annotations = [one for one in prepared if rules == "coco" or one["area"] > 0]
        self.has_masks = masks and self._all_or_none_have_masks()
        if self.annotations and self.has_masks:
            self._check_sizes()

    def as_dict(self) -> dict[str, Any]:
        """A data set in COCO's layout whose annotations a library may write to."""
        return {
            "images": self.images,
            "categories": self.categories,
            "annotations": [dict(annotation) for annotation in self.annotations],
        }

    @cached_property
    def image_ids(self) -> frozenset[int]:
        return frozenset(image["id"] for image in self.images)

    @property
    def category_ids(self) -> list[int]:
        """In ascending order."""
        return [category["id"] for category in self.categories]

    @property
    def frequencies(self) -> list[str | None]:
        """LVIS's r / c / f of each category, None where the file does not say."""
        return [category.get("frequency") for category in self.categories]

    def objects_per_category(self) -> Counter[int]:
        """Category id -> annotated objects, crowds not counted."""
        return Counter(one["category_id"] for one in self.annotations if not one.get("iscrowd"))

    def check(self, detections: Sequence[Detection]) -> None:
        """Refuses what the libraries would each take differently.

        Raises:
            ValueError: a detection in an unknown image, or a score or box that is not finite.
        """
        unknown = {one["image_id"] for one in detections} - self.image_ids
        if unknown:
            raise ValueError(
                f"detections in images {sorted(unknown)[:5]} that {self.source} does not have: "
                "the model ran on another data set"
            )
        scores = np.array([one["score"] for one in detections], dtype=np.float64)
        boxes = np.array([one["bbox"] for one in detections if "bbox" in one], dtype=np.float64)
        wrong = int((~np.isfinite(scores)).sum() + (~np.isfinite(boxes)).any(axis=-1).sum())
        if wrong:
            raise ValueError(
                f"{wrong} of {len(scores)} detections have a score or box that is not finite: "
                "has training diverged?"
            )

    def _check_federated(self) -> None:
        for field in FEDERATED_FIELDS:
            lacking = [image["id"] for image in self.images if field not in image]
            if lacking:
                raise ValueError(
                    f"{self.source}: {len(lacking)} of {len(self.images)} images have no '{field}' "
                    f"(first: image {lacking[0]}); LVIS's protocols need it. For exhaustively "
                    'annotated data set the metadata\'s evaluator_type to "coco"'
                )

    def _check_boxes(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        wrong = [one for one in annotations if not _is_finite(one)]
        if wrong:
            first = wrong[0]
            raise ValueError(
                f"{self.source}: {len(wrong)} of {len(annotations)} annotations have a 'bbox' or "
                f"'area' that is not finite (first: annotation {first.get('id')} of image "
                f"{first.get('image_id')}, bbox {first.get('bbox')}, area {first.get('area')}); "
                "expected four numbers [x, y, width, height] and one: correct or remove them"
            )

    def _all_or_none_have_masks(self) -> bool:
        without = [one for one in self.annotations if "segmentation" not in one]
        if without and len(without) < len(self.annotations):
            raise ValueError(
                f"{self.source}: {len(without)} of {len(self.annotations)} annotations have no "
                f"segmentation (first: of image {without[0]['image_id']}); give all or none"
            )
        return not without

    def _check_sizes(self) -> None:
        without = [one["id"] for one in self.images if not {"height", "width"} <= one.keys()]
        if without:
            raise ValueError(
                f"{self.source}: {len(without)} images have no height and width (first: image "
                f"{without[0]}), which masks need"
            )


def _is_finite(annotation: Mapping[str, Any]) -> bool:
    box, area = annotation.get("bbox"), annotation.get("area")
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    try:
        return all(map(math.isfinite, (*box, 0 if area is None else area)))
    except TypeError:  # words, null
        return False


def _prepared(annotation: Mapping[str, Any], number: int, rules: Rules) -> dict[str, Any]:
    dropped = "iscrowd" if rules == "lvis" else "ignore"
    prepared = {key: value for key, value in annotation.items() if key != dropped}
    prepared["id"] = number
    if prepared.get("area") is None:
        prepared["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    if not prepared.get("segmentation", True):  # [] or None
        del prepared["segmentation"]
    if rules == "coco":
        prepared["iscrowd"] = int(annotation.get("iscrowd") or 0)  # null is 0, as in training
    return prepared


def for_iou_type(detections: Iterable[Detection], iou_type: str) -> list[dict[str, Any]]:
    """Copies that a library may write to, with the geometry of `iou_type` alone.

    Where a box is present, lvis, pycocotools and hotcoco take its area and not the mask's for the
    small / medium / large bins; so masks come without boxes, and boxes without masks.
    """
    dropped = "bbox" if iou_type == "segm" else "segmentation"
    return [{key: one[key] for key in one if key != dropped} for one in detections]
