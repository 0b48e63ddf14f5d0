"""The modulated deformable convolution of 3 x 3 taps, the fastest way that the device has."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

SIDE = 3
TAPS = SIDE**2
_ROWS = 4096  # locations of which the inputs are in memory at a time


def deformable_conv(
    image: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int = 1
) -> Tensor:
    """With a padding of 1; what is outside of the image is 0.

    Args:
        image: (N, C, h, w).
        offsets: (N, 18, h', w') pixels of `image`, y then x of each tap; h' and w' are the
            output's.
        mask: (N, 9, h', w') factors.
        weight: (D, C, 3, 3).
        bias: (D,).
        stride: from location to location.

    Returns:
        (N, D, h', w').
    """
    if torch.jit.is_tracing():
        return _by_sampling(image, offsets, mask, weight, bias, stride)
    if image.device.type != "cpu":
        return deform_conv2d(image, offsets, weight, bias, stride, padding=1, mask=mask)
    # torchvision's CPU kernel finds the place of a tap anew for every channel
    return _by_rows(image, offsets, mask, weight, bias, stride)


def _by_rows(
    image: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """A tap is a weighted sum of four rows of a (N x h x w, C) table, all channels at once."""
    count, _, height, width = offsets.shape
    table = image.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    kernel = weight.permute(2, 3, 1, 0).flatten(0, 2)  # (9 x C, D)
    places, shares = _corners(image.shape, offsets, mask, stride)
    of_rows = _rows_of
    if torch.is_grad_enabled():  # the backward pass makes the taps anew, which are 9 images
        of_rows = partial(checkpoint, _rows_of, use_reentrant=False, preserve_rng_state=False)
    chunks = zip(places.split(_ROWS), shares.split(_ROWS), strict=True)
    output = torch.cat([of_rows(table, *one, kernel, bias) for one in chunks])
    return output.view(count, height, width, -1).permute(0, 3, 1, 2)


def _rows_of(table: Tensor, places: Tensor, shares: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """(K, D) outputs of K locations."""
    flat, weights = places.flatten(0, 1), shares.flatten(0, 1)
    taps = F.embedding_bag(flat, table, mode="sum", per_sample_weights=weights)
    return torch.addmm(bias, taps.view(-1, len(kernel)), kernel)


def _by_sampling(
    image: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """By operators that every runtime of ONNX has; slower."""
    x, y = _places(offsets, stride)[::-1]  # (N, h', w', 9)
    sides = torch.stack([torch.as_tensor(image.shape[3]), torch.as_tensor(image.shape[2])])
    grid = (2 * torch.stack([x, y], dim=-1) + 1) / sides - 1
    taps = F.grid_sample(image, grid.flatten(2, 3), align_corners=False)  # (N, C, h', w' x 9)
    count, channels = image.shape[:2]
    taps = taps.reshape(count, channels, *offsets.shape[2:], TAPS)
    taps = taps * mask.permute(0, 2, 3, 1)[:, None]
    kernel = weight.permute(1, 2, 3, 0).flatten(0, 2)  # (C x 9, D)
    found = taps.permute(0, 2, 3, 1, 4).flatten(3) @ kernel + bias
    return found.permute(0, 3, 1, 2)


def _places(offsets: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """y and x of the taps in pixels of the image, (N, h', w', 9) both."""
    _, _, height, width = offsets.shape
    moved = offsets.unflatten(1, (TAPS, 2)).permute(2, 0, 3, 4, 1)  # (2, N, h', w', 9)
    tap = torch.arange(TAPS, device=offsets.device)
    rows = torch.arange(height, device=offsets.device)[:, None, None] * stride - 1
    columns = torch.arange(width, device=offsets.device)[:, None] * stride - 1
    return moved[0] + rows + tap // SIDE, moved[1] + columns + tap % SIDE


def _corners(
    shape: torch.Size, offsets: Tensor, mask: Tensor, stride: int
) -> tuple[Tensor, Tensor]:
    """Rows of the table and their shares, (N x h' x w', 9, 4) both."""
    count, _, height, width = offsets.shape
    in_y, in_x = _places(offsets, stride)
    y, y_shares = _neighbors(in_y, shape[2])
    x, x_shares = _neighbors(in_x, shape[3])
    image = torch.arange(count, device=offsets.device, dtype=torch.int32) * (shape[2] * shape[3])
    places = y[..., :, None] * shape[3] + x[..., None, :] + image.view(-1, 1, 1, 1, 1, 1)
    shares = y_shares[..., :, None] * x_shares[..., None, :]
    shares = shares * mask.permute(0, 2, 3, 1)[..., None, None]
    return places.flatten(4).flatten(0, 2), shares.flatten(4).flatten(0, 2)


def _neighbors(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells beside each position and their shares, (..., 2); 0 outside of `size` cells."""
    first = positions.floor()
    share = positions - first
    cells = torch.stack([first, first + 1], dim=-1)
    inside = (cells >= 0) & (cells < size)
    shares = torch.stack([1 - share, share], dim=-1) * inside
    return cells.clamp(0, size - 1).to(torch.int32), shares
