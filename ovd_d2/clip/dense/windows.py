"""Attention within windows of an image, with a CLS token that all windows share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], window: int
) -> Tensor:
    """Patches attend to their window and to CLS; CLS attends to the whole image.

    CLIPSelf (arXiv 2310.01403), appendix, after ViTDet's windows. CLS is one query, so its global
    attention costs next to nothing; with one window over the whole image this is plain attention.

    Args:
        query, key, value: (B, heads, 1 + h * w, d), CLS first, patches row by row.
        grid: (h, w).
        window: patches per side; windows at the right and bottom border may hold fewer.

    Returns:
        (B, heads, 1 + h * w, d).
    """
    size = min(window, grid[0]), min(window, grid[1])
    if torch.jit.is_tracing():  # a smaller grid is padded to a window
        size = window, window
    if size == grid:
        return F.scaled_dot_product_attention(query, key, value)
    of_image = F.scaled_dot_product_attention(query[:, :, :1], key, value)
    queries = _windows(query[:, :, 1:], grid, size)  # (B, windows, heads, s, d)
    keys = _with_cls(_windows(key[:, :, 1:], grid, size), key[:, :, :1])
    values = _with_cls(_windows(value[:, :, 1:], grid, size), value[:, :, :1])
    mask = _in_image(grid, size, query.device)
    of_patches = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return torch.cat([of_image, _joined(of_patches, grid, size)], dim=2)


def _windows(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(B, heads, h * w, d) -> (B, windows, heads, patches of a window, d), padded with zeros."""
    batch, heads, _, width = patches.shape
    rows, columns = _counts(grid, size)
    image = patches.reshape(batch, heads, *grid, width)
    missing = rows * size[0] - grid[0], columns * size[1] - grid[1]
    image = F.pad(image, (0, 0, 0, missing[1], 0, missing[0]))
    # not `unflatten`: its lengths would be constants of a trace
    image = image.reshape(batch, heads, rows, size[0], columns, size[1], width)
    image = image.permute(0, 2, 4, 1, 3, 5, 6)  # batch, rows, columns, heads, y, x, width
    return image.reshape(batch, rows * columns, heads, size[0] * size[1], width)


def _counts(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of windows."""
    # no division of negative numbers: ONNX's rounds to zero
    rows, columns = ((side + of - 1) // of for side, of in zip(grid, size, strict=True))
    return rows, columns


def _joined(windows: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The reverse of `_windows`, without the padding."""
    batch, _, heads, _, width = windows.shape
    image = windows.reshape(batch, *_counts(grid, size), heads, *size, width)
    image = image.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return image[:, :, : grid[0], : grid[1]].flatten(2, 3)


def _with_cls(windows: Tensor, cls: Tensor) -> Tensor:
    """(B, windows, heads, s, d) and (B, heads, 1, d) -> (B, windows, heads, 1 + s, d)."""
    shared = cls[:, None].expand(-1, windows.shape[1], -1, -1, -1)
    return torch.cat([shared, windows], dim=3)


def _in_image(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor | None:
    """(windows, 1, 1, 1 + s) bool: False for keys that are padding; None without padding."""
    if not torch.jit.is_tracing() and grid[0] % size[0] == 0 and grid[1] % size[1] == 0:
        return None
    patches = torch.ones(1, 1, grid[0] * grid[1], 1, dtype=torch.bool, device=device)
    inside = _windows(patches.float(), grid, size)[0, :, :, :, 0] > 0  # (windows, 1, s)
    return F.pad(inside, (1, 0), value=True)[:, :, None]
