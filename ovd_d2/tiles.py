"""Large images in overlapping tiles, their detections merged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from ovd_d2.modeling.nms import suppress
from ovd_d2.prediction import Prediction
from ovd_d2.predictor import Names, OpenVocabularyPredictor

NMS_THRESHOLD = 0.5
_AT_THE_EDGE = 2.0  # px from a tile's edge at which a box counts as cut


class Window(NamedTuple):
    """Part of an image, XYXY in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def windows(height: int, width: int, side: int, overlap: float) -> list[Window]:
    """Squares of `side`, the last of a row or column moved back into the image.

    Args:
        height, width: of the image, px.
        side: px.
        overlap: least share of a side that neighbours have in common, from 0 to below 1.

    Raises:
        ValueError: `side` or `overlap` is no such number.
    """
    if side < 1 or not 0 <= overlap < 1:
        raise ValueError(f"tiles of {side} px that overlap by {overlap}: expected 1 and [0, 1)")
    step = max(1, int(side * (1 - overlap)))
    return [
        Window(left, top, min(left + side, width), min(top + side, height))
        for top in _starts(height, side, step)
        for left in _starts(width, side, step)
    ]


def _starts(length: int, side: int, step: int) -> list[int]:
    if length <= side:
        return [0]
    return [*range(0, length - side, step), length - side]


def predict_in_tiles(
    predictor: OpenVocabularyPredictor,
    image_bgr: NDArray[np.uint8],
    names: Names | None,
    threshold: float,
    *,
    side: int,
    overlap: float = 0.2,
    least_presence: float = 0.0,
) -> Prediction:
    """What is found in the whole image and in its tiles.

    A box that a tile's edge inside of the image cuts is left out: a neighbour or the whole image
    has all of it. Of boxes of a category that overlap the best one stays.

    Args:
        predictor: the detector.
        image_bgr: (H, W, 3) uint8.
        names, threshold: as of a call of the predictor.
        side, overlap: see :func:`windows`.
        least_presence: as of a call, in the whole image or any tile.
    """
    height, width = image_bgr.shape[:2]
    parts = predictor.detected([image_bgr], names, threshold, "BGR")
    places = [Window(0, 0, width, height)]
    if max(height, width) > side:
        for one in windows(height, width, side, overlap):
            tile = np.ascontiguousarray(image_bgr[one.top : one.bottom, one.left : one.right])
            parts += predictor.detected([tile], names, threshold, "BGR")
            places.append(one)
    whole = [_uncut(p.instances, w, height, width) for p, w in zip(parts, places, strict=True)]
    merged = Prediction(
        _merged(whole, places, height, width), parts[0].categories, *_best(parts, places)
    )
    return predictor.judged(merged, image_bgr, names, "BGR", least_presence=least_presence)


def _best(parts: list[Prediction], places: list[Window]) -> tuple[tuple[float, ...], torch.Tensor]:
    """Best scores and their boxes, in pixels of the whole image."""
    of_parts = torch.tensor([one.best_scores for one in parts], dtype=torch.float64)
    scores, of_part = of_parts.max(dim=0)
    boxes = torch.stack([p.best_boxes + _corner(w) for p, w in zip(parts, places, strict=True)])
    return tuple(scores.tolist()), boxes[of_part, torch.arange(len(scores))]


def _corner(window: Window) -> torch.Tensor:
    """What a box of a window is moved by."""
    return torch.tensor([window.left, window.top] * 2, dtype=torch.float32)


def _uncut(found: Instances, window: Window, height: int, width: int) -> Instances:
    boxes = found.pred_boxes.tensor
    right, bottom = window.right - window.left, window.bottom - window.top
    edges = boxes.new_tensor(
        [
            _AT_THE_EDGE if window.left else -1,
            _AT_THE_EDGE if window.top else -1,
            right - _AT_THE_EDGE if window.right < width else width + 1,
            bottom - _AT_THE_EDGE if window.bottom < height else height + 1,
        ]
    )
    inside = (boxes[:, :2] > edges[:2]).all(dim=1) & (boxes[:, 2:] < edges[2:]).all(dim=1)
    return found[inside]


def _merged(parts: list[Instances], places: list[Window], height: int, width: int) -> Instances:
    moved = [p.pred_boxes.tensor + _corner(w) for p, w in zip(parts, places, strict=True)]
    of_part = [(k, row) for k, part in enumerate(parts) for row in range(len(part))]
    scores, order = torch.cat([one.scores for one in parts]).sort(descending=True, stable=True)
    boxes = torch.cat(moved)[order]
    classes = torch.cat([one.pred_classes for one in parts])[order]
    keep = suppress(boxes, scores, classes, NMS_THRESHOLD)
    found = Instances(
        (height, width),
        pred_boxes=Boxes(boxes[keep]),
        scores=scores[keep],
        pred_classes=classes[keep],
    )
    if all(one.has("pred_masks") for one in parts):
        masks = torch.zeros(len(keep), height, width, dtype=torch.bool)
        for mask, place in zip(masks, order[keep].tolist(), strict=True):
            k, row = of_part[place]
            left, top, right, bottom = places[k]
            mask[top:bottom, left:right] = parts[k].pred_masks[row]
        found.pred_masks = masks
    return found
