"""Which anchor learns which box: adaptive training sample selection (ATSS, arXiv 1912.02424)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

BACKGROUND = -1
NEAREST = 9  # anchors per level and box that are looked at
_INSIDE = 0.01  # pixels that a center must be away from the sides of its box


@torch.no_grad()
def assign(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """The box of each anchor.

    A box gets those of the anchors nearest to its center, from every level, whose IoU with it is
    at least mean plus standard deviation of all of these and whose center is inside. An anchor
    with several boxes takes the one of the largest IoU.

    Args:
        anchors: (A_l, 4) of each level, XYXY, the last pixel included.
        boxes: (M, 4), in the same coordinates.

    Returns:
        (A,) int64 places of boxes, `BACKGROUND` where there is none.
    """
    whole = torch.cat(list(anchors))
    if len(boxes) == 0:
        return torch.full((len(whole),), BACKGROUND, device=whole.device)
    iou = iou_with_last_pixel(whole, boxes)  # (A, M)
    candidates = _nearest(anchors, boxes)  # (K, M)
    found = iou.gather(0, candidates)
    least = found.mean(dim=0) + found.std(dim=0)
    positive = (found >= least) & _inside(_centers(whole)[candidates], boxes)
    best = torch.full_like(iou, -1.0)
    best.scatter_(0, candidates, torch.where(positive, found, -1.0))
    values, places = best.max(dim=1)
    return torch.where(values < 0, BACKGROUND, places)


def iou_with_last_pixel(boxes: Tensor, others: Tensor) -> Tensor:
    """(N, M) IoU of (N, 4) with (M, 4), where a width is x2 - x1 + 1."""
    end = boxes.new_tensor([0, 0, 1, 1])
    return pairwise_iou(Boxes(boxes + end), Boxes(others + end))


def _nearest(anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """(K, M) places among all anchors of the nearest ones of every level."""
    found, start = [], 0
    for level in anchors:
        apart = (_centers(level)[:, None] - _centers(boxes)[None]).pow(2).sum(dim=-1).sqrt()
        nearest = apart.topk(min(NEAREST, len(level)), dim=0, largest=False).indices
        found.append(nearest + start)
        start += len(level)
    return torch.cat(found)


def _inside(centers: Tensor, boxes: Tensor) -> Tensor:
    """(K, M, 2) and (M, 4) -> (K, M) bool."""
    sides = torch.cat([centers - boxes[:, :2], boxes[:, 2:] - centers], dim=-1)
    return sides.amin(dim=-1) > _INSIDE


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
