"""What a traced graph does in place of loops over its data: ONNX's non-maximum suppression.

`torch.jit.trace` keeps the branches and the rounds of a loop that one image needed. Selecting
detections goes in rounds (:mod:`ovd_d2.modeling.detection`); here it is one pass with the same
result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

LEAVES_OUT = -1e30  # a score that no box has
_ALL = 2**31 - 1
_BELOW = 1 - 1e-6  # of a score, so that those that are equal to it are above


class _CategoryNMS(torch.autograd.Function):
    """ONNX's NonMaxSuppression of boxes that are shared by all categories."""

    @staticmethod
    def forward(
        ctx: Any, boxes: Tensor, scores: Tensor, most: Tensor, iou: Tensor, lowest: Tensor
    ) -> Tensor:
        """The same in PyTorch, for the image that is traced."""
        categories, places = (scores[0] > lowest).nonzero(as_tuple=True)
        values = scores[0][categories, places]
        kept = batched_nms(boxes[0][places], values, categories, float(iou))
        kept = kept[categories[kept].sort(stable=True).indices]
        return torch.stack([torch.zeros_like(kept), categories[kept], places[kept]], dim=1)

    @staticmethod
    def symbolic(g: Any, *inputs: Any) -> Any:
        return g.op("NonMaxSuppression", *inputs)


def category_nms(
    boxes: Tensor, scores: Tensor, nms_threshold: float, lowest: Tensor, most: int = _ALL
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within each category.

    Args:
        boxes: (N, 4) float32 absolute XYXY.
        scores: (C, N) float32.
        nms_threshold: IoU above which the worse of two boxes goes.
        lowest: () float32; scores count above it.
        most: boxes that a category keeps.

    Returns:
        (K,) int64 categories and (K,) int64 boxes, category by category.
    """
    options = torch.tensor([most]), torch.tensor([nms_threshold]), lowest.reshape(1)
    kept = _CategoryNMS.apply(boxes[None], scores[None], *options)
    return kept[:, 1], kept[:, 2]


def best_pairs(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Thresholding, suppression within each category and the cap on detections.

    Args:
        boxes: (N, 4) absolute XYXY; regions that are not finite are left out.
        scores: (N, C).
        score_threshold: pairs of region and category count above it.
        nms_threshold: IoU.
        limit: pairs that stay; negative: all.

    Returns:
        Region, category and score of what is left, best first, (D,) each; equal scores in the
        order of the table.
    """
    finite = scores.isfinite().all(dim=1) & boxes.isfinite().all(dim=1)
    scores = torch.where(finite[:, None], scores, LEAVES_OUT)
    boxes = torch.where(finite[:, None], boxes, 0.0)
    lowest = _lower_bound(scores, limit).clamp(min=score_threshold)
    most = _ALL if limit < 0 else limit
    categories, regions = category_nms(boxes, scores.t(), nms_threshold, lowest, most)
    places = regions * scores.shape[1] + categories
    left = torch.full_like(scores, LEAVES_OUT).flatten()
    left = left.scatter(0, places, scores.flatten()[places])
    count: Any = torch.clamp(torch.as_tensor(places.shape[0]), max=most)
    values, places = left.topk(count)
    regions = places.div(scores.shape[1], rounding_mode="floor")
    return regions, places - regions * scores.shape[1], values


def _lower_bound(scores: Tensor, limit: int) -> Tensor:
    """() a score that the `limit` best pairs are above.

    The best region of a category is never suppressed: where there are `limit` categories, what is
    left has as many scores as high as the lowest of the best `limit` categories.
    """
    nothing = scores.new_full((1,), LEAVES_OUT)
    if limit <= 0:
        return nothing[0]
    best = torch.cat([scores, nothing.expand(1, scores.shape[1])]).amax(dim=0)  # (C,)
    best = torch.cat([nothing.expand(limit), best])
    return best.topk(limit).values[-1] * _BELOW


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each of the rows that are equal once.

    Args:
        rows: (N, K).

    Returns:
        (U, K) and (N,) int64 places among these: the first at the second are `rows`.
    """
    return rows.unique(dim=0, return_inverse=True)
