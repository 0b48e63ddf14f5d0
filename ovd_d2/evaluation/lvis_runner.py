"""Runs the `lvis` package on annotations and detections held in memory.

Detectron2's own helper hides the LVISEval object, and with it the precision array from which AP
over base and novel categories is computed, so this package runs LVISEval itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ovd_d2.evaluation.lvis_compat import patch_lvis

patch_lvis()  # before the first import of lvis anywhere

from lvis import LVIS, LVISEval, LVISResults  # noqa: E402

MAX_DETECTIONS_PER_IMAGE = 300  # LVIS's protocol


class InMemoryLVIS(LVIS):
    """An LVIS index over a dictionary in the LVIS v1 format; the library reads files only.

    COCO annotations are accepted as well: they are exhaustive (every category is checked in every
    image) and know no frequencies.
    """

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        self.logger = logging.getLogger(__name__)
        self.dataset = _as_lvis(dataset)
        self._create_index()


class Detections(LVISResults):
    """`LVISResults` that also accepts no detections at all; the library fails on an empty list."""

    def __init__(self, lvis_gt: LVIS, results: list[dict[str, Any]], max_dets: int) -> None:
        if results:
            super().__init__(lvis_gt, results, max_dets=max_dets)
            return
        self.logger = logging.getLogger(__name__)
        self.dataset = {**lvis_gt.dataset, "annotations": []}
        self._create_index()


def run_lvis_eval(
    lvis_gt: LVIS,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    *,
    max_dets_per_image: int = MAX_DETECTIONS_PER_IMAGE,
    category_ids: Sequence[int] | None = None,
) -> LVISEval:
    """One complete LVISEval run.

    Args:
        lvis_gt: the ground truth index; LVISEval adds bookkeeping fields to its annotations.
        results: detections in COCO's result format (`image_id`, `category_id` of the data set,
            `bbox` XYWH, `score`, `segmentation` RLE); left unchanged.
        iou_type: "bbox" or "segm".
        max_dets_per_image: the best-scored detections of an image across categories that count.
        category_ids: evaluate these only; all by default.

    Returns:
        The finished LVISEval: `.results` (fractions, -1 where undefined), `.eval["precision"]`
        (T, R, C, A) with categories in ascending id order.
    """
    detections = Detections(lvis_gt, _for_iou_type(results, iou_type), max_dets_per_image)
    lvis_eval = LVISEval(lvis_gt, detections, iou_type)
    if category_ids is not None:
        lvis_eval.params.cat_ids = sorted(category_ids)
    lvis_eval.run()
    return lvis_eval


def _for_iou_type(results: Sequence[Mapping[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """Copies without `bbox` for masks: where a box is present, LVIS takes its area, not the mask's,
    for the small / medium / large bins. The copies keep LVIS's bookkeeping out of the caller's."""
    dropped = {"bbox"} if iou_type == "segm" else set()
    return [{key: result[key] for key in result if key not in dropped} for result in results]


def _as_lvis(dataset: Mapping[str, Any]) -> dict[str, Any]:
    category_ids = [category["id"] for category in dataset["categories"]]
    images = [
        {"neg_category_ids": category_ids, "not_exhaustive_category_ids": [], **image}
        for image in dataset["images"]
    ]
    categories = [{"frequency": "f", **category} for category in dataset["categories"]]
    annotations = [
        {**annotation, "ignore": annotation.get("iscrowd", 0)}
        for annotation in dataset["annotations"]
    ]
    return {"images": images, "categories": categories, "annotations": annotations}
