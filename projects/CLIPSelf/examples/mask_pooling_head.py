"""An ODISE-like head: any mask generator, and a dense CLIP that says what the masks show.

Masks may overlap and need not cover the image; a trained embedding of each mask and the dense
features under it both name it, and their probabilities are mixed geometrically.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.clip.dense import mask_features

# (B, 3, H, W) images -> per image (K, H, W) mask logits and (K, D) embeddings of the masks
MaskGenerator = Callable[[Tensor], list[tuple[Tensor, Tensor]]]


class MaskPoolingHead(nn.Module):
    """Categories of generated masks."""

    def __init__(
        self,
        dense: Callable[[Tensor], Tensor],
        generator: MaskGenerator,
        share: float = 0.7,
        temperature: float = 0.01,
    ) -> None:
        """
        Args:
            dense: (B, 3, H, W) -> (B, D, h, w) unit vectors, frozen.
            generator: a trained module, e.g. Mask2Former's decoder.
            share: of the dense features in the mixture.
            temperature: divides cosines.
        """
        super().__init__()
        self._dense = [dense]  # no sub-module: neither trained nor saved
        self.generator = generator
        self.share, self.temperature = share, temperature

    def forward(self, images: Tensor, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """-> per image (K, H, W) bool masks and (K, C) log-probabilities of the C names."""
        with torch.no_grad():
            maps = self._dense[0](images)
        found = []
        for dense, (logits, own) in zip(maps, self.generator(images), strict=True):
            soft = F.adaptive_avg_pool2d(logits.sigmoid(), dense.shape[1:])  # masks on the grid
            pooled = F.normalize(mask_features(dense, soft), dim=1)
            by_mask, by_pixels = (
                (F.normalize(one, dim=1) @ embeddings.T / self.temperature).log_softmax(dim=1)
                for one in (own, pooled)
            )
            found.append((logits > 0, by_mask.lerp(by_pixels, self.share)))
        return found
