"""The block of the dynamic head (arXiv 2106.08322) that all levels of the pyramid go through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.projects.glip.deformable import SIDE, TAPS, deformable_conv

# How offsets and masks of a level are made to fit the next coarser map.
RESIZED, FLAT = "resized", "flat"
ACROSS_LEVELS = (RESIZED, FLAT)
_GROUPS, _REDUCTION = 16, 4


class DeformableConv(nn.Module):
    """A modulated deformable 3 x 3 convolution with bias, then a norm of 16 groups."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        limit = (channels * TAPS) ** -0.5
        weight = torch.empty(channels, channels, SIDE, SIDE).uniform_(-limit, limit)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(_GROUPS, channels)

    def forward(self, image: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            image: (N, C, h, w).
            offsets: (N, 18, h', w') pixels of `image`, y then x of each tap; h' and w' are the
                output's.
            mask: (N, 9, h', w') from 0 to 1.

        Returns:
            (N, C, h', w'), in the precision of the weights: torchvision has no bfloat16 kernel.
        """
        with torch.autocast(image.device.type, enabled=False):
            image, offsets, mask = (one.to(self.weight.dtype) for one in (image, offsets, mask))
            found = deformable_conv(image, offsets, mask, self.weight, self.bias, self.stride)
            return self.norm(found)


class DynamicReLU(nn.Module):
    """The larger of two lines, whose slopes and intercepts depend on the map's mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, channels // _REDUCTION)
        self.expand = nn.Linear(channels // _REDUCTION, 4 * channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        inner = F.relu(self.reduce(maps.mean(dim=(2, 3))))
        lines = F.hardsigmoid(self.expand(inner)) - 0.5
        slope1, height1, slope2, height2 = lines[:, :, None, None].chunk(4, dim=1)
        return torch.maximum(maps * (2 * slope1 + 1) + height1, maps * 2 * slope2 + height2)


class DyConv(nn.Module):
    """Each level from itself and its two neighbours, over the same offsets (DyHead)."""

    def __init__(self, channels: int, *, across_levels: str = RESIZED) -> None:
        """
        Args:
            channels: of every level.
            across_levels: a level's offsets and masks have its size, but its coarser neighbour is
                convolved in its own, smaller size. "resized": they are resized to it. "flat": the
                numbers are read one after the other as if they had that size, as the public code's
                CUDA kernel does, which official weights are trained with.

        Raises:
            ValueError: neither of them.
        """
        super().__init__()
        if across_levels not in ACROSS_LEVELS:
            raise ValueError(f"'{across_levels}' is none of {', '.join(ACROSS_LEVELS)}")
        self.across_levels = across_levels
        self.coarser, self.same = DeformableConv(channels), DeformableConv(channels)
        self.finer = DeformableConv(channels, stride=2)
        self.offsets_and_mask = nn.Conv2d(channels, 3 * TAPS, SIDE, padding=1)
        self.attention = small_conv(channels, 1)
        self.dynamic_relu = DynamicReLU(channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(N, C, h, w) each, finest first -> the same shapes."""
        return [self._level(levels, place) for place in range(len(levels))]

    def _level(self, levels: Sequence[Tensor], place: int) -> Tensor:
        own = levels[place]
        found = self.offsets_and_mask(own)
        offsets, mask = found[:, : 2 * TAPS], found[:, 2 * TAPS :].sigmoid()
        branches = [self.same(own, offsets, mask)]
        if place > 0:
            branches.append(self.finer(levels[place - 1], offsets, mask))
        if place < len(levels) - 1:
            coarser = levels[place + 1]
            size = (coarser.shape[2], coarser.shape[3])
            fitting = (self._fitted(offsets, size), self._fitted(mask, size))
            branches.append(_resized(self.coarser(coarser, *fitting), own.shape[2:]))
        weighted = torch.stack([self._weight(one) * one for one in branches])
        return self.dynamic_relu(weighted.mean(dim=0))

    def _fitted(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        if self.across_levels == RESIZED:
            return _resized(maps, size)
        count, channels = maps.shape[:2]
        flat = maps.flatten(1)[:, : channels * size[0] * size[1]]
        return flat.reshape(count, channels, *size)

    def _weight(self, branch: Tensor) -> Tensor:
        """(N, 1, 1, 1)."""
        return F.hardsigmoid(F.relu(self.attention(branch.mean(dim=(2, 3), keepdim=True))))


def small_conv(channels: int, outputs: int) -> nn.Conv2d:
    """1 x 1, with small random weights and no bias yet."""
    conv = nn.Conv2d(channels, outputs, kernel_size=1)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
