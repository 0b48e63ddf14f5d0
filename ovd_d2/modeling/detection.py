"""From scores of regions to detections, for vocabularies of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2.modeling import traced
from ovd_d2.modeling.nms import suppress

FIRST_CANDIDATES = 1024  # (region, name) pairs that the first round of NMS looks at, at least
WIDEN_BY = 4  # candidates of the next round over those of the last
LARGEST_GROUP = 64  # scores of which only the highest is looked at in the first pass


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

    What Detectron2's `fast_rcnn_inference` is for, which puts every pair of region and
    name above the threshold through NMS: 20 million for 1,000 regions and 20,000 names at the
    paper's threshold of 0. A pair can only be suppressed by one with a higher score, so here the
    best pairs go first, and more only as long as fewer than `limit` are left.

    Args:
        boxes: one (N, 4) per image, absolute XYXY.
        scores: one (N, C) per image, no background column.
        image_sizes: (height, width) that boxes are clipped to.
        score_threshold: pairs count above it.
        nms_threshold: IoU.
        limit: detections per image; negative: all.

    Returns:
        `Instances` with `pred_boxes`, `scores`, `pred_classes`, best first. Regions whose box or
        score is not finite are left out.
    """
    return [
        _select(*one, score_threshold=score_threshold, nms_threshold=nms_threshold, limit=limit)
        for one in zip(boxes, scores, image_sizes, strict=True)
    ]


def merge_detections(
    boxes: Tensor,
    scores: Tensor,
    categories: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> Instances:
    """One image's detections out of those of several runs, as :func:`select_detections`.

    Args:
        boxes: (K, 4) absolute XYXY.
        scores, categories: (K,) of each.
        image_size: (height, width) that boxes are clipped to.
        score_threshold, nms_threshold, limit: as there.
    """
    counted = scores > score_threshold
    boxes, scores, categories = boxes[counted], scores[counted], categories[counted]
    clipped = Boxes(boxes.clone())
    clipped.clip(image_size)
    scores, order = scores.sort(descending=True, stable=True)
    keep = suppress(clipped.tensor[order], scores, categories[order], nms_threshold)
    keep = keep if limit < 0 else keep[:limit]
    return _instances(image_size, clipped[order[keep]], scores[keep], categories[order[keep]])


def _select(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    nms_threshold: float,
    limit: int,
) -> Instances:
    tracing = torch.jit.is_tracing()
    if not tracing:
        boxes, scores = _finite(boxes, scores)
    clipped = Boxes(boxes.clone())
    clipped.clip(image_size)
    select = traced.best_pairs if tracing else _best_pairs
    regions, categories, values = select(
        clipped.tensor, scores, score_threshold, nms_threshold, limit
    )
    return _instances(image_size, clipped[regions], values, categories)


def _instances(
    image_size: tuple[int, int], boxes: Boxes, scores: Tensor, categories: Tensor
) -> Instances:
    return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=categories)


def _finite(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    finite = scores.sum(dim=1).isfinite()  # one pass; but finite scores may add up to infinity
    finite[~finite] = scores[~finite].isfinite().all(dim=1)
    finite &= boxes.isfinite().all(dim=1)
    return (boxes, scores) if finite.all() else (boxes[finite], scores[finite])


def _best_pairs(
    boxes: Tensor, scores: Tensor, score_threshold: float, nms_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Region, category and score of what is left, best first, (D,) each."""
    wanted = scores.numel() if limit < 0 else limit
    candidates = min(scores.numel(), max(FIRST_CANDIDATES, WIDEN_BY * wanted))
    while True:
        regions, categories, values = _highest(scores, candidates, score_threshold)
        keep = suppress(boxes[regions], values, categories, nms_threshold)[:wanted]
        if len(keep) == wanted or len(values) < candidates or candidates == scores.numel():
            return regions[keep], categories[keep], values[keep]
        candidates = min(scores.numel(), WIDEN_BY * candidates)


def _highest(scores: Tensor, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of (N, C) scores, as far as they are above the threshold.

    Equal scores stay in the order of the table. Sorting 20 million scores would take longer than
    computing them. So each row is cut into groups: at least `count` scores reach the `count`-th
    highest of the groups' maxima, and only these are sorted.

    Returns:
        (K,) regions, (K,) categories, (K,) scores, falling; K <= `count`.
    """
    size = max(1, min(LARGEST_GROUP, scores.numel() // (4 * max(1, count))))
    maxima = _group_maxima(scores, size)
    if 0 < count < maxima.numel():
        threshold = max(threshold, _just_below(maxima.flatten().topk(count).values[-1]))
    regions, groups = (maxima > threshold).nonzero(as_tuple=True)
    columns = groups[:, None] * size + torch.arange(size, device=scores.device)
    inside = columns < scores.shape[1]
    values = scores[regions[:, None], columns.where(inside, 0)]
    reached = inside & (values > threshold)
    values, order = values[reached].sort(descending=True, stable=True)
    regions, categories = regions[:, None].expand_as(columns)[reached], columns[reached]
    return regions[order[:count]], categories[order[:count]], values[:count]


def _group_maxima(scores: Tensor, size: int) -> Tensor:
    """(N, C) -> (N, G): the highest of every `size` neighbours of a row; the last may be fewer."""
    whole = scores.shape[1] // size * size
    maxima = scores[:, :whole].unflatten(1, (-1, size)).amax(dim=2)
    if whole == scores.shape[1]:
        return maxima
    return torch.cat([maxima, scores[:, whole:].amax(dim=1, keepdim=True)], dim=1)


def _just_below(value: Tensor) -> float:
    """The next smaller number of the same type."""
    return torch.nextafter(value, value.new_tensor(-torch.inf)).item()
