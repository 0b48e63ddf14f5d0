"""A CAT-Seg-like head: the cost map of a dense CLIP, aggregated by a small convolutional network.

The cost map holds the cosine of every patch with every name. One network refines each category's
map by itself, so that it takes any vocabulary, also one that it was not trained with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.projects.clipself.segmentation.scores import cosine_map


class CostMapHead(nn.Module):
    """Scores of pixels out of dense features and text embeddings."""

    def __init__(self, dense: Callable[[Tensor], Tensor], channels: int = 64) -> None:
        """
        Args:
            dense: (B, 3, H, W) normalised images -> (B, D, h, w) unit vectors, frozen, e.g.
                `DenseViT(teacher.visual)`, or `model.refined()` of a CLIPSelf model.
            channels: of the network.
        """
        super().__init__()
        self._dense = [dense]  # no sub-module: neither trained nor saved
        self.aggregate = nn.Sequential(
            nn.Conv2d(1, channels, 7, padding=3),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """(B, 3, H, W) and (C, D) unit vectors -> (B, C, H, W) logits."""
        with torch.no_grad():
            cost = cosine_map(self._dense[0](images), embeddings)  # (B, C, h, w)
        maps = self.aggregate(10 * cost.flatten(0, 1)[:, None])  # each category by itself
        logits = maps.unflatten(0, cost.shape[:2])[:, :, 0]
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
