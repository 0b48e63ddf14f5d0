"""From scores of regions to detections, for vocabularies of any length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms, nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

FIRST_CANDIDATES = 1024  # (region, name) pairs that the first round of NMS looks at, at least
WIDEN_BY = 4  # candidates of the next round over those of the last
LARGEST_GROUP = 64  # scores of which only the highest is looked at in the first pass
COMPARED_AT_ONCE = 64  # boxes of a category, at most; of more NMS looks at each in turn
ONE_PASS = 1000  # boxes: of more, torchvision's batched_nms keeps categories apart exactly (CPU)


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
        keep = _suppress(boxes[regions], values, categories, nms_threshold)[:wanted]
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


def _suppress(boxes: Tensor, scores: Tensor, categories: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each category: places of what is kept, rising.

    Torchvision's goes through the categories one by one on the CPU if there are many boxes: 0.2 ms
    each, 700 ms for the best 4,096 pairs with 20,000 names.

    Args:
        boxes, scores, categories: (K, 4), (K,), (K,), best first.
        threshold: IoU.
    """
    if boxes.device.type != "cpu" or len(boxes) <= ONE_PASS:
        return batched_nms(boxes, scores, categories, threshold)
    categories, order = categories.sort(stable=True)
    boxes, scores = boxes[order].float(), scores[order]
    sizes = categories.unique_consecutive(return_counts=True)[1]
    ends, few = sizes.cumsum(0), sizes <= COMPARED_AT_ONCE
    followers = (ends * few).repeat_interleave(sizes) - 1 - torch.arange(len(order))
    kept = [True] * len(order)
    for first, second in _overlapping(boxes, followers.clamp(min=0), threshold).tolist():
        if kept[first]:
            kept[second] = False
    keep = torch.tensor(kept)
    for start, end in torch.stack([ends - sizes, ends], dim=1)[~few].tolist():
        keep[start:end] = False
        keep[start + nms(boxes[start:end], scores[start:end], threshold)] = True
    return order[keep].sort().values


def _overlapping(boxes: Tensor, followers: Tensor, threshold: float) -> Tensor:
    """(P, 2): pairs of boxes whose IoU, computed as in torchvision's NMS, is above the threshold.

    Args:
        boxes: (K, 4) float32.
        followers: (K,) how many of the boxes right after it each is compared with.
        threshold: IoU.
    """
    first = torch.arange(len(boxes)).repeat_interleave(followers)
    begins = (followers.cumsum(0) - followers).repeat_interleave(followers)
    second = first + 1 + torch.arange(len(first)) - begins
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    one, other = boxes[first], boxes[second]
    sides = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    iou = shared / (areas[first] + areas[second] - shared)
    return torch.stack([first, second], dim=1)[iou.double() > threshold]
