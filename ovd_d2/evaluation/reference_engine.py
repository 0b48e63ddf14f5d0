"""The reference engine: the `lvis` package and pycocotools, each as it is."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd_d2.evaluation.ground_truth import GroundTruth, for_iou_type
from ovd_d2.evaluation.protocols import Detection, Rules

LIBRARIES = {"lvis": "lvis", "coco": "pycocotools"}


class ReferenceEngine:
    """See :class:`ovd_d2.evaluation.engines.Engine`."""

    def precision(
        self, ground_truth: GroundTruth, detections: Sequence[Detection], iou_type: str
    ) -> np.ndarray:
        results = for_iou_type(detections, iou_type)
        if ground_truth.rules == "lvis":
            from ovd_d2.evaluation.lvis_runner import run_lvis_eval  # lvis: 1 s of an import

            return run_lvis_eval(ground_truth, results, iou_type).eval["precision"]
        return _run_coco_eval(ground_truth, results, iou_type).eval["precision"][..., 0]

    def describe(self, rules: Rules) -> str:
        library = LIBRARIES[rules]
        return f"reference ({library} {version(library)})"


def _run_coco_eval(
    ground_truth: GroundTruth, results: list[dict[str, Any]], iou_type: str
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _index({**ground_truth.as_dict(), "info": {}})
        # loadRes fails on an empty list
        found = truth.loadRes(results) if results else _index({**truth.dataset, "annotations": []})
        coco_eval = COCOeval(truth, found, iou_type)
        coco_eval.params.maxDets = [max(1, len(results))]  # the protocol has set its limit
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
