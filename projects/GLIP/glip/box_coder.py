"""Boxes relative to anchors, where the last pixel belongs to both (a width is x2 - x1 + 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of x, y, width, height
_LARGEST = math.log(1000 / 16)  # of the logarithm of a box's side over its anchor's


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(K, 4) XYXY and (K, 4) XYXY in pixels -> (K, 4) deltas."""
    center, side = _centers_and_sides(anchors)
    box_center, box_side = _centers_and_sides(boxes)
    weights = boxes.new_tensor(WEIGHTS)
    moved = (box_center - center) / side
    return torch.cat([moved, (box_side / side).log()], dim=-1) * weights


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """(..., K, 4) deltas and (K, 4) XYXY in pixels -> (..., K, 4) XYXY."""
    center, side = _centers_and_sides(anchors)
    moved, stretched = (deltas / deltas.new_tensor(WEIGHTS)).split(2, dim=-1)
    box_center = center + moved * side
    half = (side * stretched.clamp(max=_LARGEST).exp() - 1) / 2
    return torch.cat([box_center - half, box_center + half], dim=-1)


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes.split(2, dim=-1)
    return (low + high) / 2, high - low + 1
