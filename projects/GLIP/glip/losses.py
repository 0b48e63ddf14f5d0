"""GLIP's losses: pure functions of tensors, float32 whatever they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.projects.glip.assignment import assign
from ovd_d2.projects.glip.box_coder import decode
from ovd_d2.projects.glip.head import HeadOutputs

_TINY = 1e-7


@dataclass(frozen=True)
class LossSettings:
    """The defaults are the public code's.

    Attributes:
        alpha: weight of pairs that belong together in the focal loss; 1 - alpha: of the others.
        gamma: its exponent: the larger, the less a pair counts that is nearly right.
        box_weight: of `loss_box`.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    box_weight: float = 2.0


PUBLIC = LossSettings()


def glip_losses(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    boxes: Sequence[Tensor],
    tokens: Sequence[Tensor],
    mask: Tensor,
    settings: LossSettings = PUBLIC,
) -> dict[str, Tensor]:
    """What is learned from a batch; N images, of which any may have no box.

    Sums are divided by their mean number over all processes, whose gradients, averaged, are then
    those of one process with the joint batch.

    Args:
        outputs: of the head.
        anchors: (P, 4) of each level.
        boxes: N times (M, 4) XYXY in pixels of the network's input, the last pixel included.
        tokens: N times (M, L) bool, the tokens of the phrase of each box.
        mask: (N, L) bool, False where padded.
        settings: weights of its parts.

    Returns:
        Scalars `loss_tokens`, `loss_box` and `loss_centerness`.
    """
    matched = [assign(anchors, one) for one in boxes]
    positive = torch.stack(matched) >= 0  # (N, A)
    places = [one[one >= 0] for one in matched]
    objects = torch.cat([one[place] for one, place in zip(boxes, places, strict=True)]).float()
    own_anchors = torch.cat(list(anchors)).expand(*positive.shape, 4)[positive]
    logits = torch.cat(outputs.logits, dim=1)
    targets = torch.zeros_like(logits, dtype=torch.bool)
    targets[positive] = torch.cat([one[place] for one, place in zip(tokens, places, strict=True)])
    count = mean_over_ranks(positive.sum().float()).clamp(min=1)
    weights = centerness_targets(own_anchors, objects)
    deltas = torch.cat(outputs.deltas, dim=1)[positive].float()
    apart = (weights * giou_losses(decode(deltas, own_anchors), objects)).sum()
    centerness = torch.cat(outputs.centerness, dim=1)[positive].float()
    entropy = F.binary_cross_entropy_with_logits(centerness, weights, reduction="sum")
    return {
        "loss_tokens": token_focal_loss(logits, targets, mask, settings) / count,
        "loss_box": settings.box_weight * apart / mean_over_ranks(weights.sum()).clamp(min=_TINY),
        "loss_centerness": entropy / count,
    }


def token_focal_loss(
    logits: Tensor, targets: Tensor, mask: Tensor, settings: LossSettings = PUBLIC
) -> Tensor:
    """The sum of the focal loss over all pairs of a location and a valid token.

    Args:
        logits: (N, A, L).
        targets: (N, A, L), 0 or 1.
        mask: (N, L) bool, False where padded.
        settings: alpha and gamma.

    Returns:
        A scalar.
    """
    logits, targets = logits.float(), targets.float()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = 1 - torch.exp(-entropy)  # 1 - the probability of what is true
    weight = settings.alpha * targets + (1 - settings.alpha) * (1 - targets)
    return (weight * missed**settings.gamma * entropy * mask[:, None]).sum()


def giou_losses(boxes: Tensor, targets: Tensor) -> Tensor:
    """(K, 4) and (K, 4) XYXY -> (K,) 1 - GIoU, where a width is x2 - x1.

    A box whose sides are the wrong way round is empty.
    """
    boxes, targets = boxes.float(), targets.float()
    boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    low = torch.maximum(boxes[:, :2], targets[:, :2])
    high = torch.minimum(boxes[:, 2:], targets[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    union = _areas(boxes) + _areas(targets) - shared + _TINY
    low = torch.minimum(boxes[:, :2], targets[:, :2])
    high = torch.maximum(boxes[:, 2:], targets[:, 2:])
    enclosure = (high - low).prod(dim=1) + _TINY
    return 1 - (shared / union - (enclosure - union) / enclosure)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How far in the middle of its box the center of an anchor is: (K, 4), (K, 4) XYXY -> (K,).

    1 in the middle, 0 at a side.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    first, second = centers - boxes[:, :2], boxes[:, 2:] - centers
    ratios = torch.minimum(first, second) / torch.maximum(first, second)
    return ratios.prod(dim=1).sqrt()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Of a scalar of every process, without gradient; the value itself where there is one."""
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()):
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
