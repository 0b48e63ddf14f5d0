"""Losses of open-vocabulary detectors: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

NOVEL_LOGIT_MODES = ("zero", "exclude")


def distillation_l1(student: Tensor, teacher: Tensor, weight: float) -> Tensor:
    """ViLD-image loss (ViLD, section 3.3, L_ViLD-image).

    `weight * mean over rows of sum |s - t|`, both sides L2-normalised here, in float32.

    Args:
        student: (N, D) region embeddings, any scale; gradients flow into it.
        teacher: (N, D) CLIP embeddings of the same regions, any scale, also int8; no gradient.
        weight: the paper's w.

    Returns:
        Scalar float32. For N = 0 it is 0 and still connected to `student`'s graph, so that
        every process of a distributed run takes part in the backward pass.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: is the cache of another teacher than EMBEDDING_DIM says?"
        )
    if student.shape[0] == 0:
        return student.float().sum() * weight
    difference = F.normalize(student.float(), dim=1) - F.normalize(teacher.detach().float(), dim=1)
    return weight * difference.abs().sum(dim=1).mean()  # (N, D) -> (N,) -> ()


def suppress_novel_logits(logits: Tensor, novel: Tensor, mode: str) -> Tensor:
    """Takes novel categories out of the training classification.

    Args:
        logits: (N, C + 1), background last.
        novel: (C,) bool.
        mode: "zero" sets their logits to 0, as the official ViLD code does: a constant negative
            of similarity 0. "exclude" sets them to -inf: they take no part in the softmax.

    Returns:
        (N, C + 1); no gradient reaches the novel columns.
    """
    if mode not in NOVEL_LOGIT_MODES:
        raise ValueError(f"novel logits must be one of {NOVEL_LOGIT_MODES}, got '{mode}'")
    value = 0.0 if mode == "zero" else float("-inf")
    columns = torch.cat([novel, novel.new_zeros(1)])  # (C + 1,): background stays
    return logits.masked_fill(columns, value)


def level_huber_loss(
    predicted: Sequence[Tensor], targets: Sequence[Tensor], delta: float
) -> Tensor:
    """Box loss of the RPN in the official ViLD code: the mean over coordinates of each pyramid
    level, summed over the levels.

    Args:
        predicted: of each level (P_l, 4), the deltas predicted for its positive anchors, any type.
        targets: of each level (P_l, 4), float32.
        delta: where the loss turns linear: `0.5 x^2` below, `delta * (|x| - delta / 2)` above.

    Returns:
        Scalar float32. A level without positive anchors adds 0, still connected to the graph.
    """
    return torch.stack(
        [
            F.huber_loss(ours.float(), theirs, delta=delta) if len(ours) else ours.float().sum()
            for ours, theirs in zip(predicted, targets, strict=True)
        ]
    ).sum()
