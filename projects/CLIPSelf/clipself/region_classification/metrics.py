"""Accuracy of naming regions, each category weighing the same (mAcc)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.scoring import best_of_words


class MacroAccuracy(NamedTuple):
    """The mean over the categories that occur of the share of their regions that are named right.

    Attributes:
        exact: in float64.
        rounded: with the share of each category rounded to float16 first, as in published figures.
        regions, categories: how many of them.
        per_category: category -> its share.
    """

    exact: float
    rounded: float
    regions: int
    categories: int
    per_category: dict[int, float]


def best_classes(
    features: Tensor, embeddings: Tensor, count: int, owners: Tensor | None = None
) -> Tensor:
    """The most similar categories of each region, best first.

    Args:
        features: (N, D) of any length; a region without features (zeros) is like none of them.
        embeddings: (W, D) of words, of any length.
        count: at most so many.
        owners: (W,) int64, which of C categories each word is; the best one counts. None: each
            word is one.

    Returns:
        (N, min(count, C)) int64; -1 for a region without features.
    """
    scores = F.normalize(features.float(), dim=1) @ F.normalize(embeddings.float(), dim=1).T
    if owners is not None:
        scores = best_of_words(scores, owners, int(owners.max()) + 1)
    best = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return torch.where(features.any(dim=1, keepdim=True), best, -1)


def macro_accuracy(hits: Sequence[bool], classes: Sequence[int]) -> MacroAccuracy | None:
    """
    Args:
        hits: N, whether a region was named right.
        classes: N, what each is.

    Returns:
        None without regions.
    """
    if not len(classes):
        return None
    present, where = torch.tensor(classes).unique(return_inverse=True)
    right = torch.bincount(where, torch.tensor(hits, dtype=torch.float64))
    shares = right / torch.bincount(where)
    return MacroAccuracy(
        exact=shares.mean().item(),
        rounded=shares.half().double().mean().item(),
        regions=len(classes),
        categories=len(present),
        per_category=dict(zip(present.tolist(), shares.tolist(), strict=True)),
    )
