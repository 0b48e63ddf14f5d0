"""From 8-bit images to what student and teacher take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded_square(images: Sequence[Tensor], side: int) -> Tensor:
    """Images of any size up to the square, padded with black at the right and bottom.

    Args:
        images: (3, h, w) uint8.
        side: in pixels.

    Returns:
        (B, 3, side, side) uint8.
    """
    batch = images[0].new_zeros(len(images), 3, side, side)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return batch


def normalised(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, h, w) uint8 -> float32, by a mean and deviation per channel for pixels in [0, 1]."""
    scaled = batch.to(torch.float32) / 255
    shape = (1, 3, 1, 1)
    return (scaled - scaled.new_tensor(mean).view(shape)) / scaled.new_tensor(std).view(shape)
