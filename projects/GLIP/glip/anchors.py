"""One square anchor per location; its last pixel belongs to it (a width is x2 - x1 + 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # of P3 to P7
SIZE = 8  # side over stride


def grid_anchors(
    sizes: Sequence[tuple[int, int]],
    device: torch.device | str = "cpu",
    *,
    strides: Sequence[int] = STRIDES,
) -> list[Tensor]:
    """Of each level (h x w, 4) float32 x1, y1, x2, y2 in pixels, row by row.

    Args:
        sizes: (h, w) of each level.
        device: of the result.
        strides: of each level, in pixels of the image.
    """
    pairs = zip(sizes, strides, strict=True)
    return [_level(height, width, stride, device) for (height, width), stride in pairs]


def _level(height: int, width: int, stride: int, device: torch.device | str) -> Tensor:
    half = (SIZE * stride - 1) / 2
    first = (stride - 1) / 2  # the middle of the first cell's pixels
    y = torch.arange(height, device=device, dtype=torch.float32) * stride + first
    x = torch.arange(width, device=device, dtype=torch.float32) * stride + first
    y, x = torch.meshgrid(y, x, indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([centers - half, centers + half], dim=1)
