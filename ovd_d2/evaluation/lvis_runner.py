"""Runs the `lvis` package on annotations and detections held in memory.

Detectron2's own helper hides the LVISEval object, and with it the precision array from which AP
over base and novel categories is computed, so this package runs LVISEval itself.
"""

from __future__ import annotations

import logging
from typing import Any

from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.lvis_compat import patch_lvis

patch_lvis()  # before the first import of lvis anywhere

from lvis import LVIS, LVISEval, LVISResults  # noqa: E402


class InMemoryLVIS(LVIS):
    """An LVIS index over prepared ground truth; the library reads files only."""

    def __init__(self, ground_truth: GroundTruth) -> None:
        self.logger = logging.getLogger(__name__)
        self.dataset = ground_truth.as_dict()
        # lvis needs a letter of each category, for means that are not taken from it
        self.dataset["categories"] = [
            {**category, "frequency": category.get("frequency") or "f"}
            for category in ground_truth.categories
        ]
        self._create_index()


class Detections(LVISResults):
    """`LVISResults` that also accepts no detections at all; the library fails on an empty list."""

    def __init__(self, lvis_gt: LVIS, results: list[dict[str, Any]]) -> None:
        if results:
            super().__init__(lvis_gt, results, max_dets=-1)  # the protocol has set its limit
            return
        self.logger = logging.getLogger(__name__)
        self.dataset = {**lvis_gt.dataset, "annotations": []}
        self._create_index()


def run_lvis_eval(
    ground_truth: GroundTruth, results: list[dict[str, Any]], iou_type: str
) -> LVISEval:
    """One complete LVISEval run.

    Args:
        ground_truth: under LVIS's rules.
        results: detections in COCO's result format with the geometry of `iou_type`; all count.
            LVIS adds bookkeeping fields to them.
        iou_type: "bbox" or "segm".

    Returns:
        The finished LVISEval: `.results` (fractions, -1 where undefined), `.eval["precision"]`
        (T, R, C, A) with categories in ascending id order.
    """
    truth = InMemoryLVIS(ground_truth)
    lvis_eval = LVISEval(truth, Detections(truth, results), iou_type)
    lvis_eval.run()
    return lvis_eval
