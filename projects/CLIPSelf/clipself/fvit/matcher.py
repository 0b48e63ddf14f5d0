"""Which anchor or proposal belongs to which object, as mmdetection's `MaxIoUAssigner` decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


class BestOfObjectMatcher(Matcher):
    """Detectron2's matcher, in which the best boxes of an object become that object's.

    Detectron2's low-quality matches differ in two ways: they count whatever their IoU, and a box
    that lies better on another object is taken to be that other one's.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        *,
        least_iou: float,
        objects_appended: bool = False,
    ) -> None:
        """
        Args:
            thresholds, labels: of :class:`Matcher`.
            least_iou: of a best box with its object.
            objects_appended: the last boxes are the objects themselves, as among proposals in
                training; they are nobody's best box.
        """
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.least_iou = least_iou
        self.objects_appended = objects_appended

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """(objects, boxes) IoU -> (boxes,) matched object, (boxes,) int8 label."""
        matches, labels = super().__call__(match_quality_matrix)
        objects, boxes = match_quality_matrix.shape
        candidates = boxes - objects if self.objects_appended else boxes
        if objects == 0 or candidates == 0:
            return matches, labels
        for number, quality in enumerate(match_quality_matrix[:, :candidates]):
            best = (quality == quality.max()) & (quality >= self.least_iou)
            matches[:candidates] = torch.where(best, number, matches[:candidates])
            labels[:candidates] = torch.where(best, 1, labels[:candidates])
        return matches, labels
