"""The layer of BERT between fusion and fusion, whose values fit into half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.projects.glip.clamping import clamped

_EPS = 1e-12  # of BERT's norms


class LanguageLayer(nn.Module):
    """A post-norm transformer layer; its weights begin as PyTorch's, not as BERT's."""

    def __init__(self, width: int, *, heads: int, hidden: int, dropout: float = 0.1) -> None:
        """
        Args:
            width: of a token.
            heads: a divisor of it.
            hidden: width between the two linear layers.
            dropout: of probabilities and of both outputs, in training.
        """
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=_EPS)
        self.expand, self.reduce = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """(N, L, W) and (N, L) bool, False where padded -> (N, L, W)."""
        attended = self.attention_output(self._attend(text, mask))
        text = self.attention_norm(self.dropout(attended) + text)
        inner = clamped(F.gelu(clamped(self.expand(text))))
        outer = self.dropout(clamped(self.reduce(inner)))
        return clamped(self.norm(outer + text))

    def _attend(self, text: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(text).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = clamped(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5)
        least = torch.finfo(scores.dtype).min
        weights = scores.masked_fill(~mask[:, None, None], least).softmax(dim=-1)
        return (self.dropout(weights) @ value).transpose(1, 2).flatten(2)
