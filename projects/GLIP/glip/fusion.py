"""Deep fusion: image and text look at each other (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovd_d2.projects.glip.clamping import clamped


class Fusion(nn.Module):
    """Attention in both directions over one matrix of scores, between locations and tokens.

    Each side adds what it finds to its own normed input, scaled by a learned gain per channel.
    """

    def __init__(
        self,
        image_width: int,
        text_width: int,
        *,
        width: int,
        heads: int,
        gain: float,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
            image_width, text_width: channels of a location and of a token.
            width: of queries, keys and values, all heads together.
            heads: how many, a divisor of `width`.
            gain: where the gains begin, one over the number of blocks.
            dropout: of the probabilities, in training.

        Raises:
            ValueError: `width` is not a multiple of `heads`.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"MODEL.GLIP.FUSION_DIM {width} is no multiple of {heads} heads")
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.image_norm, self.text_norm = nn.LayerNorm(image_width), nn.LayerNorm(text_width)
        self.image_query = nn.Linear(image_width, width)
        self.text_key = nn.Linear(text_width, width)
        self.image_values = nn.Linear(image_width, width)
        self.text_values = nn.Linear(text_width, width)
        self.image_output = nn.Linear(width, image_width)
        self.text_output = nn.Linear(width, text_width)
        self.image_gain = nn.Parameter(torch.full((image_width,), gain))
        self.text_gain = nn.Parameter(torch.full((text_width,), gain))
        self.dropout = nn.Dropout(dropout)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, levels: Sequence[Tensor], text: Tensor, mask: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """
        Args:
            levels: (N, C, h, w) each.
            text: (N, L, T).
            mask: (N, L) bool, False where padded. Padded tokens change, too, but nothing sees them.

        Returns:
            The same shapes.
        """
        flat = torch.cat([one.flatten(2) for one in levels], dim=2).transpose(1, 2)  # (N, P, C)
        flat, text = self.fuse(flat, text, mask)
        parts = flat.transpose(1, 2).split([one.shape[2] * one.shape[3] for one in levels], dim=2)
        pairs = zip(parts, levels, strict=True)
        return [part.reshape(one.shape) for part, one in pairs], text

    def fuse(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, C) of all locations, (N, L, T) and (N, L): the same shapes."""
        image, text = self.image_norm(image), self.text_norm(text)
        query = self._heads(self.image_query(image) * self.scale)
        scores = clamped(query @ self._heads(self.text_key(text)).transpose(2, 3))  # (N, H, P, L)
        found = self._read(self._over_tokens(scores, mask), self.text_values(text))
        seen = self._read(self._over_locations(scores), self.image_values(image))
        image = image + self.image_gain * self.image_output(found)
        return image, text + self.text_gain * self.text_output(seen)

    def _over_tokens(self, scores: Tensor, mask: Tensor) -> Tensor:
        least = torch.finfo(scores.dtype).min
        return scores.masked_fill(~mask[:, None, None], least).softmax(dim=-1)

    def _over_locations(self, scores: Tensor) -> Tensor:
        """(N, H, L, P)."""
        scores = scores.transpose(2, 3)
        return clamped(scores - scores.amax(dim=-1, keepdim=True)).softmax(dim=-1)

    def _read(self, weights: Tensor, values: Tensor) -> Tensor:
        read = self.dropout(weights) @ self._heads(values)
        return read.transpose(1, 2).flatten(2)

    def _heads(self, values: Tensor) -> Tensor:
        """(N, K, H x D) -> (N, H, K, D)."""
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)
