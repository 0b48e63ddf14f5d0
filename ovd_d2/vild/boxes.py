"""Boxes as the official ViLD code counts them: the last pixel belongs to a side.

tensorflow/tpu, models/official/detection/utils/box_utils.py.
"""

from __future__ import annotations

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor


class InclusiveBox2BoxTransform(Box2BoxTransform):
    """Detectron2's transform with sides of x2 - x1 + 1."""

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4), (N, 4) XYXY -> (N, 4) deltas."""
        return super().get_deltas(_with_last_pixel(src_boxes), _with_last_pixel(target_boxes))

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4 k), (N, 4) XYXY -> (N, 4 k) XYXY."""
        decoded = super().apply_deltas(deltas, _with_last_pixel(boxes))
        return (decoded.unflatten(1, (-1, 4)) - decoded.new_tensor([0.0, 0, 1, 1])).flatten(1)


class AnchorTransform(InclusiveBox2BoxTransform):
    """That of the official RPN: it learns deltas without the + 1 and applies them with it."""

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4), (N, 4) XYXY -> (N, 4) deltas."""
        return Box2BoxTransform.get_deltas(self, src_boxes, target_boxes)


def clip_to_pixels(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(..., 4) XYXY moved into 0 .. width - 1, 0 .. height - 1; `image_size` is (height, width)."""
    height, width = image_size
    limits = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), limits)


def _with_last_pixel(boxes: Tensor) -> Tensor:
    return boxes + boxes.new_tensor([0.0, 0, 1, 1])
