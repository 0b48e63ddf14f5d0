"""From the head's outputs to detections of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import shapes_to_tensor
from torch import Tensor

from ovd_d2.modeling.nms import suppress
from ovd_d2.projects.glip.box_coder import decode
from ovd_d2.projects.glip.head import HeadOutputs
from ovd_d2.projects.glip.prompts import phrase_scores


@dataclass(frozen=True)
class Selection:
    """What is kept; the defaults are the public config's.

    Attributes:
        score_threshold: probability of a label that a location must have.
        per_level: the best so many of each level, pyramid by pyramid.
        nms_threshold: IoU above which the worse of two boxes of one label goes.
        limit: the best so many of all; those that are equal to the last stay.
        aggregation: how tokens make a label's score, see :func:`phrase_scores`.
    """

    score_threshold: float = 0.05
    per_level: int = 1000
    nms_threshold: float = 0.6
    limit: int = 100
    aggregation: str = "mean"


@dataclass(frozen=True)
class Candidates:
    """K boxes of an image; the last pixel belongs to a box.

    Attributes:
        boxes: (K, 4) float32 XYXY in pixels of the network's input.
        scores: (K,) float32.
        labels: (K,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def candidates(
    outputs: HeadOutputs,
    row: int,
    anchors: Sequence[Tensor],
    positives: Tensor,
    labels: Tensor,
    selection: Selection,
) -> Candidates:
    """The best boxes of each level under one prompt, before suppression.

    Args:
        outputs: of the head.
        row: of the image in the batch.
        anchors: (P, 4) of each level.
        positives: (C, L) share of each token in each label.
        labels: (C,) what the rows stand for.
        selection: what is kept.
    """
    found = [
        _of_level(
            outputs.logits[level][row].float(),
            outputs.deltas[level][row].float(),
            outputs.centerness[level][row].float(),
            anchors[level],
            positives,
            selection,
        )
        for level in range(len(anchors))
    ]
    boxes, scores, rows = (torch.cat(part) for part in zip(*found, strict=True))
    return Candidates(boxes, scores, labels.to(rows.device)[rows])


def _of_level(
    logits: Tensor,
    deltas: Tensor,
    centerness: Tensor,
    anchors: Tensor,
    positives: Tensor,
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = logits.sigmoid()[:, : positives.shape[1]]
    probabilities = phrase_scores(tokens, positives, selection.aggregation)  # (P, C)
    places, rows = (probabilities > selection.score_threshold).nonzero(as_tuple=True)
    scores = probabilities[places, rows] * centerness.sigmoid()[places]
    scores, best = scores.topk(min(selection.per_level, len(scores)))
    places, rows = places[best], rows[best]
    return decode(deltas[places], anchors[places]), scores.sqrt(), rows


def select(
    parts: Sequence[Candidates], image_size: tuple[int, int], selection: Selection
) -> Candidates:
    """The detections of an image, best first, over all prompts that it was asked.

    Args:
        parts: of each prompt, with labels of one list.
        image_size: (height, width) of the network's input without padding.
        selection: what is kept.
    """
    scores, order = torch.cat([one.scores for one in parts]).sort(descending=True, stable=True)
    boxes = clipped(torch.cat([one.boxes for one in parts])[order], image_size)
    labels = torch.cat([one.labels for one in parts])[order]
    end = boxes.new_tensor([0, 0, 1, 1])  # IoU, too, counts the last pixel
    kept = suppress(boxes + end, scores, labels, selection.nms_threshold)
    if len(kept) > selection.limit:
        kept = kept[scores[kept] >= scores[kept[selection.limit - 1]]]
    return Candidates(boxes[kept], scores[kept], labels[kept])


def clipped(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """(K, 4) XYXY with corners on pixels of the image."""
    height, width = image_size
    last = shapes_to_tensor([width, height, width, height]) - 1  # of a trace, too
    return boxes.clamp(min=0).minimum(last.to(boxes))
