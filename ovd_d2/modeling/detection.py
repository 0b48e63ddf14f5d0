"""From scores of regions to detections, for vocabularies of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.scoring import BLOCK

FIRST_CANDIDATES = 4096  # (region, name) pairs that the first round of NMS looks at, at least
WIDEN_BY = 4  # candidates of the next round over those of the last


def select_detections(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> list[Instances]:
    """Thresholding, non-maximum suppression within each category, the cap on detections.

    The same detections as Detectron2's `fast_rcnn_inference`, which puts every pair of region and
    name above the threshold through NMS: 20 million for 1,000 regions and 20,000 names at the
    paper's threshold of 0. A pair can only be suppressed by one with a higher score, so here the
    best pairs go first, and more only as long as fewer than `limit` are left.

    Args:
        boxes: one (N, 4) an image, absolute XYXY.
        scores: one (N, C) an image, no background column.
        image_sizes: (height, width) that boxes are clipped to.
        score_threshold: pairs count above it.
        nms_threshold: IoU.
        limit: detections an image; negative: all.

    Returns:
        `Instances` with `pred_boxes`, `scores`, `pred_classes`, best first. Regions whose box or
        score is not finite are left out.
    """
    return [
        _select(*one, score_threshold=score_threshold, nms_threshold=nms_threshold, limit=limit)
        for one in zip(boxes, scores, image_sizes, strict=True)
    ]


def _select(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> Instances:
    boxes, scores = _finite(boxes, scores)
    clipped = Boxes(boxes.clone())
    clipped.clip(image_size)
    regions, categories, values = _best_pairs(
        clipped.tensor, scores, score_threshold, nms_threshold, limit
    )
    result = Instances(image_size)
    result.pred_boxes = clipped[regions]
    result.scores = values
    result.pred_classes = categories
    return result


def _finite(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    valid = torch.isfinite(boxes).all(dim=1)
    valid &= torch.cat([torch.isfinite(block).all(dim=1) for block in _blocks(scores)])
    return (boxes, scores) if valid.all() else (boxes[valid], scores[valid])


def _best_pairs(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Region, category and score of what is left, best first, (D,) each."""
    num_categories = max(1, scores.shape[1])
    count = int(sum((block > score_threshold).sum() for block in _blocks(scores)))
    wanted = count if limit < 0 else min(limit, count)
    candidates = count if limit < 0 else min(count, max(FIRST_CANDIDATES, WIDEN_BY * limit))
    while True:
        values, pairs = _highest(scores, candidates)
        regions = torch.div(pairs, num_categories, rounding_mode="floor")
        categories = pairs % num_categories
        keep = batched_nms(boxes[regions], values, categories, nms_threshold)[:wanted]
        if len(keep) == wanted or candidates == count:
            return regions[keep], categories[keep], values[keep]
        candidates = min(count, WIDEN_BY * candidates)


def _highest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of (N, C) scores, falling, and their places in the flattened tensor.

    `scores.flatten().topk(count)`, but block by block: a view without the background column is
    copied when it is flattened, and on the CPU topk needs four times its input aside.
    """
    values, places, start = [], [], 0
    for block in _blocks(scores):
        highest, where = block.flatten().topk(min(count, block.numel()))
        values.append(highest)
        places.append(where + start)
        start += block.numel()
    best, order = torch.cat(values).topk(count)
    return best, torch.cat(places)[order]


def _blocks(scores: Tensor) -> Sequence[Tensor]:
    """(N, C) as views of some rows each, at least one."""
    return scores.split(max(1, BLOCK // max(1, scores.shape[1])))
