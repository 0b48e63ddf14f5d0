"""The fast engine: hotcoco (Rust), prepared so that it returns what the reference returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np

from ovd_d2.evaluation.ground_truth import GroundTruth, for_iou_type
from ovd_d2.evaluation.protocols import Detection, Rules

SMALLEST_AREA = math.ulp(0.0)


class HotcocoEngine:
    """See :class:`ovd_d2.evaluation.engines.Engine`.

    hotcoco is given the same prepared annotations as the reference; what remained different under
    LVIS's rules:

    * a detection without area (an empty mask, a box without width): lvis leaves it out, hotcoco
      counts it. Left out here;
    * an `ignore` flag of an annotation: lvis leaves such objects out, hotcoco does not know the
      field. Refused;
    * ids that are not whole numbers from 0 on: hotcoco refuses them itself.
    """

    def __init__(self) -> None:
        """
        Raises:
            ImportError: hotcoco is not installed.
        """
        self._hotcoco = _import_hotcoco()

    def precision(
        self, ground_truth: GroundTruth, detections: Sequence[Detection], iou_type: str
    ) -> np.ndarray:
        _refuse_ignored(ground_truth)
        try:
            truth = self._hotcoco.COCO(_without_masks(ground_truth, iou_type))
        except ValueError as error:  # e.g. image ids that are words
            raise ValueError(
                f"{ground_truth.source}: hotcoco cannot read the annotations ({error}); set "
                "TEST.OVD.ENGINE reference"
            ) from error
        found = truth.load_res(for_iou_type(detections, iou_type))
        lvis_style = ground_truth.rules == "lvis"
        if lvis_style:
            found = found.filter(area_rng=[SMALLEST_AREA, math.inf], drop_empty_images=False)
            found = found.cap_detections_per_image(None)  # else it sets LVIS's limit of 300 itself
        evaluation = self._hotcoco.COCOeval(truth, found, iou_type, lvis_style=lvis_style)
        evaluation.params.max_dets = [max(1, len(detections))]  # the protocol has set its limit
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[..., 0]

    def describe(self, rules: Rules) -> str:
        return f"hotcoco {version('hotcoco')}"


def _import_hotcoco() -> ModuleType:
    try:
        import hotcoco
    except ImportError as error:
        raise ImportError(
            f"TEST.OVD.ENGINE hotcoco needs the package hotcoco ({error}): pip install hotcoco, "
            "or set TEST.OVD.ENGINE reference"
        ) from error
    return hotcoco


def _without_masks(ground_truth: GroundTruth, iou_type: str) -> dict[str, Any]:
    """The annotations without what boxes do not need: converting masks is most of the work."""
    dataset = ground_truth.as_dict()
    if iou_type == "bbox":
        for annotation in dataset["annotations"]:
            annotation.pop("segmentation", None)
    return dataset


def _refuse_ignored(ground_truth: GroundTruth) -> None:
    ignored = [one["image_id"] for one in ground_truth.annotations if one.get("ignore")]
    if ignored:
        raise ValueError(
            f"{ground_truth.source}: {len(ignored)} annotations have 'ignore' set (first: of image "
            f"{ignored[0]}), which hotcoco does not know; set TEST.OVD.ENGINE reference"
        )
