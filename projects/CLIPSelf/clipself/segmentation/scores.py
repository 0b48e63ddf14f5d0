"""Cosines of every pixel with every category."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.scoring import best_of_words

# (B, 3, H, W) normalised images -> (B, D, h, w) unit vectors, h = ceil(H / patch)
Dense = Callable[[Tensor], Tensor]


def cosine_map(dense: Tensor, embeddings: Tensor, owners: Tensor | None = None) -> Tensor:
    """Of each patch with each category, the best of whose words counts.

    Args:
        dense: (B, D, h, w) unit vectors.
        embeddings: (W, D) unit vectors, of words.
        owners: (W,) int64, which category each word is; None: each is one.

    Returns:
        (B, C, h, w).
    """
    cosines = torch.einsum("bdhw,cd->bchw", dense, embeddings)
    if owners is None:
        return cosines
    return best_of_words(cosines, owners, int(owners.max()) + 1)


def whole_scores(
    images: Tensor,
    dense: Dense,
    embeddings: Tensor,
    owners: Tensor | None = None,
    *,
    patch_size: int,
) -> Tensor:
    """The cosine map of whole images, bilinearly to their pixels.

    Args:
        images: (B, 3, H, W) normalised pixels.
        dense: features of every patch.
        embeddings, owners: of words, as of :func:`cosine_map`.
        patch_size: pixels.

    Returns:
        (B, C, H, W).
    """
    cosines = cosine_map(dense(images), embeddings, owners)
    height, width = images.shape[2:]
    covered = [side * patch_size for side in cosines.shape[2:]]  # whole patches
    pixels = F.interpolate(cosines, size=covered, mode="bilinear", align_corners=False)
    return pixels[:, :, :height, :width]


def sliding_scores(
    images: Tensor,
    dense: Dense,
    embeddings: Tensor,
    owners: Tensor | None = None,
    *,
    patch_size: int,
    window: int,
    stride: int,
) -> Tensor:
    """The mean over square windows; the last ones of a row and column end at the border.

    Args:
        images, dense, embeddings, owners, patch_size: as of :func:`whole_scores`, which this is
            where the window covers the image.
        window: pixels per side.
        stride: pixels from window to window, at most `window`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a stride with gaps.
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride is {stride}, expected 1 to {window}, the window")
    height, width = images.shape[2:]
    categories = len(embeddings) if owners is None else int(owners.max()) + 1
    total = images.new_zeros(len(images), categories, height, width)
    count = images.new_zeros(1, 1, height, width)
    for y in window_starts(height, window, stride):
        for x in window_starts(width, window, stride):
            part = (..., slice(y, y + window), slice(x, x + window))
            total[part] += whole_scores(
                images[part], dense, embeddings, owners, patch_size=patch_size
            )
            count[part] += 1
    return total / count


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover `length`; all have `window` unless that is longer."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
