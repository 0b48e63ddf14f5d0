"""A block that may take the place of DyConv: ConvNeXt's, on each level of the pyramid by itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

_SIDE, _EXPANSION, _GROUPS = 7, 4, 16


class LargeKernelConv(nn.Module):
    """ConvNeXt's block (arXiv 2201.03545, figure 4), then a norm of 16 groups.

    What a 7 x 7 convolution of each channel, a norm and two layers of each location make of a map
    is added to it, and the sum normed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = _EXPANSION * channels
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, _SIDE, padding=_SIDE // 2, groups=channels),
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, wide, 1),
            nn.GELU(),
            nn.Conv2d(wide, channels, 1),
        )
        self.norm = nn.GroupNorm(_GROUPS, channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(N, C, h, w) each, finest first -> the same shapes."""
        return [self.norm(one + self.branch(one)) for one in levels]
