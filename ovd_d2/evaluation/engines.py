"""The libraries that match detections to ground truth, behind one small interface.

Everything else (limits on detections, named metrics, base and novel means) is computed once, from
the array that every engine returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

import numpy as np

from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.hotcoco_engine import HotcocoEngine
from ovd_d2.evaluation.protocols import Detection, Rules
from ovd_d2.evaluation.reference_engine import ReferenceEngine


class Engine(Interface):
    """What an engine is."""

    def precision(
        self, ground_truth: GroundTruth, detections: Sequence[Detection], iou_type: str
    ) -> np.ndarray:
        """
        Args:
            ground_truth: says by its `rules` how to match.
            detections: all count (`protocols.select` comes before); left unchanged.
            iou_type: "bbox" or "segm".

        Returns:
            (T, R, C, A) float64: interpolated precision at T = 10 IoU thresholds 0.50:0.95,
            R = 101 recall points, C categories in ascending id order and A = 4 areas (all, small,
            medium, large); -1 where a category has no ground truth.
        """

    def describe(self, rules: Rules) -> str:
        """Name and version of the library that serves these rules."""


# config key TEST.OVD.ENGINE -> engine
ENGINES: dict[str, type[Engine]] = {"reference": ReferenceEngine, "hotcoco": HotcocoEngine}


def build_engine(name: str) -> Engine:
    """The engine of that name ("reference" or "hotcoco").

    Raises:
        ValueError: there is none.
        ImportError: its library is not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"TEST.OVD.ENGINE is '{name}', expected one of {sorted(ENGINES)}")
    return ENGINES[name]()
