"""Cosines of every pixel with every category."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# (B, 3, H, W) normalised images -> (B, D, h, w) unit vectors, h = ceil(H / patch)
Dense = Callable[[Tensor], Tensor]


def cosine_map(dense: Tensor, embeddings: Tensor) -> Tensor:
    """(B, D, h, w) and (C, D), unit vectors both -> (B, C, h, w)."""
    return torch.einsum("bdhw,cd->bchw", dense, embeddings)


def whole_scores(images: Tensor, dense: Dense, embeddings: Tensor, *, patch_size: int) -> Tensor:
    """The cosine map of whole images, bilinearly to their pixels.

    Args:
        images: (B, 3, H, W) normalised pixels.
        dense: features of every patch.
        embeddings: (C, D) unit vectors.
        patch_size: pixels.

    Returns:
        (B, C, H, W).
    """
    cosines = cosine_map(dense(images), embeddings)
    height, width = images.shape[2:]
    covered = [side * patch_size for side in cosines.shape[2:]]  # whole patches
    pixels = F.interpolate(cosines, size=covered, mode="bilinear", align_corners=False)
    return pixels[:, :, :height, :width]


def sliding_scores(
    images: Tensor,
    dense: Dense,
    embeddings: Tensor,
    *,
    patch_size: int,
    window: int,
    stride: int,
) -> Tensor:
    """The mean over square windows; the last ones of a row and column end at the border.

    Args:
        images, dense, embeddings, patch_size: as of :func:`whole_scores`, which this is where the
            window covers the image.
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
    total = images.new_zeros(len(images), len(embeddings), height, width)
    count = images.new_zeros(1, 1, height, width)
    for y in window_starts(height, window, stride):
        for x in window_starts(width, window, stride):
            part = (..., slice(y, y + window), slice(x, x + window))
            total[part] += whole_scores(images[part], dense, embeddings, patch_size=patch_size)
            count[part] += 1
    return total / count


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover `length`; all have `window` unless that is longer."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
