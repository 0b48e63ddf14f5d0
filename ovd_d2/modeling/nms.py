"""Non-maximum suppression within each category, exact for any number of categories."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

COMPARED_AT_ONCE = 64  # boxes of a category, at most; of more NMS looks at each in turn
# Boxes that one call of NMS compares pair by pair: of more, the categories are taken apart.
ONE_CALL = {"cpu": 1000, "cuda": 25_000}


def suppress(boxes: Tensor, scores: Tensor, categories: Tensor, threshold: float) -> Tensor:
    """Which boxes non-maximum suppression within each category keeps.

    IoU is computed in float64. Torchvision's `batched_nms` moves every category to a place of its
    own by adding to float32 coordinates: with 20,000 categories these are 10^7, whose next number
    is one pixel away. It goes through the categories one by one where there are many boxes: 0.2 ms
    each.

    Args:
        boxes: (K, 4) absolute XYXY, best first.
        scores: (K,) falling.
        categories: (K,) int64.
        threshold: a box goes if its IoU with a better one of its category is above it.

    Returns:
        (D,) int64 places of what is kept, rising: best first.
    """
    if len(boxes) <= ONE_CALL.get(boxes.device.type, 1000):
        return _suppress_in_one_call(boxes.double(), scores, categories, threshold)
    categories, order = categories.sort(stable=True)
    keep = _suppress_sorted(boxes[order].double(), scores[order], categories, threshold)
    return order[keep].sort().values


def _suppress_in_one_call(
    boxes: Tensor, scores: Tensor, categories: Tensor, threshold: float
) -> Tensor:
    if len(boxes) == 0:
        return categories
    low, high = boxes.aminmax()
    offsets = categories * (high - low + 1)  # float64: 10^7 leaves 28 bits for the fraction
    return nms(boxes + offsets[:, None], scores.double(), threshold).sort().values


def _suppress_sorted(boxes: Tensor, scores: Tensor, categories: Tensor, threshold: float) -> Tensor:
    """(K,) bool: what is kept of boxes in the order of their categories, in each best first."""
    sizes = categories.unique_consecutive(return_counts=True)[1]
    ends, few = sizes.cumsum(0), sizes <= COMPARED_AT_ONCE
    places = torch.arange(len(boxes), device=boxes.device)
    followers = (ends * few).repeat_interleave(sizes) - 1 - places
    kept = [True] * len(boxes)
    for better, other in _overlapping(boxes, followers.clamp(min=0), threshold).tolist():
        if kept[better]:
            kept[other] = False
    keep = torch.tensor(kept, device=boxes.device)
    for start, end in torch.stack([ends - sizes, ends], dim=1)[~few].tolist():
        keep[start:end] = False
        keep[start + nms(boxes[start:end], scores[start:end].double(), threshold)] = True
    return keep


def _overlapping(boxes: Tensor, followers: Tensor, threshold: float) -> Tensor:
    """(P, 2): pairs of boxes whose IoU is above the threshold.

    Args:
        boxes: (K, 4).
        followers: (K,) how many of the boxes right after it each is compared with.
        threshold: IoU.
    """
    places = torch.arange(len(boxes), device=boxes.device)
    first = places.repeat_interleave(followers)
    begins = (followers.cumsum(0) - followers).repeat_interleave(followers)
    second = first + 1 + torch.arange(len(first), device=boxes.device) - begins
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    one, other = boxes[first], boxes[second]
    sides = torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])
    shared = sides.clamp(min=0).prod(dim=1)
    iou = shared / (areas[first] + areas[second] - shared)
    return torch.stack([first, second], dim=1)[iou > threshold]
