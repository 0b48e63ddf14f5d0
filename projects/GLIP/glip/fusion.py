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
            levels: (N, C, h, w) each; without a graph 1 image may come with N texts.
            text: (N, L, T).
            mask: (N, L) bool, False where padded. Padded tokens change, too, but nothing sees them.

        Returns:
            (N, C, h, w) each and (N, L, T).
        """
        flat = torch.cat([one.flatten(2) for one in levels], dim=2).transpose(1, 2)  # (N, P, C)
        flat, text = self.fuse(flat, text, mask)
        parts = flat.transpose(1, 2).split([one.shape[2] * one.shape[3] for one in levels], dim=2)
        pairs = zip(parts, levels, strict=True)
        # unflatten() would have the sizes of one image in a trace
        return [part.reshape(*part.shape[:2], *one.shape[2:]) for part, one in pairs], text

    def fuse(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P, C) of all locations, (N, L, T) and (N, L): the same shapes."""
        image, text = self.image_norm(image), self.text_norm(text)
        for_image, for_text = self.attend(image, text, mask)
        return image + self.image_gain * for_image, text + self.text_gain * for_text

    def attend(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each side adds to itself.

        No projection is of locations, of which there are the most. What would project them is
        applied to the few tokens: queries into the keys, the output into the text's values, the
        image's values after they are read. Three products are left that all heads do at once; an
        image may stand for N = 1 while there are several texts.

        Args:
            image: (N, P, C), normed.
            text: (N, L, T), normed.
            mask: (N, L) bool.
        """
        keys = self._heads(self.text_key(text)) * self.scale  # (N, H, L, D)
        query, bias = self._heads_of(self.image_query)
        biases = (keys @ bias[:, :, None]).flatten(1)[:, None]  # (N, 1, H x L)
        image = image.expand(text.shape[0], -1, -1)  # len() would be a constant of a trace
        scores = torch.baddbmm(biases, image, (keys @ query).flatten(1, 2).transpose(1, 2))
        scores = clamped(scores)  # (N, P, H x L)
        over_tokens = _masked(scores.unflatten(2, (self.heads, -1)), mask[:, None, None])
        over_tokens = self.dropout(over_tokens.softmax(dim=-1)).flatten(2)
        output = self.image_output.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        read = (self._heads(self.text_values(text)) @ output).flatten(1, 2)  # (N, H x L, C)
        found = torch.baddbmm(self.image_output.bias, over_tokens, read)
        # clamped again, scores below the largest would still have no probability at all
        over_places = self.dropout(scores.softmax(dim=1)).transpose(1, 2)
        seen = (over_places @ image).unflatten(1, (self.heads, -1))
        values, bias = self._heads_of(self.image_values)
        share = over_places.sum(dim=2).unflatten(1, (self.heads, -1))  # 1, but for dropout
        seen = seen @ values.transpose(1, 2) + share[..., None] * bias[:, None]
        return found, self.text_output(seen.transpose(1, 2).flatten(2))

    def _heads_of(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """(H, D, C) weights and (H, D) biases of what makes the heads."""
        return layer.weight.unflatten(0, (self.heads, -1)), layer.bias.unflatten(
            0, (self.heads, -1)
        )

    def _heads(self, values: Tensor) -> Tensor:
        """(N, K, H x D) -> (N, H, K, D)."""
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
