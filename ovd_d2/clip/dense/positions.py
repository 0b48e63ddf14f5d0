"""Position embeddings of a ViT for grids that it was not trained on."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    positions: Tensor, grid: tuple[int, int], target: tuple[int, int], *, antialias: bool = False
) -> Tensor:
    """Bicubic resizing of learned positions.

    Args:
        positions: (h * w, W), row by row.
        grid: (h, w).
        target: (h', w').
        antialias: timm's own; CLIPSelf and OpenAI's code resize without, and on weights trained so
            the features are off by up to 1e-2 with it.

    Returns:
        (h' * w', W); the same tensor where the grid stays.
    """
    if grid == target:
        return positions
    table = positions.T.reshape(1, -1, *grid)
    resized = F.interpolate(
        table.float(), size=target, mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized[0].flatten(1).T.to(positions.dtype)
