"""The tower of image and text, and what it says of every location."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovd_d2.projects.glip.clamping import clamped
from ovd_d2.projects.glip.dyconv import DyConv, small_conv
from ovd_d2.projects.glip.fusion import Fusion
from ovd_d2.projects.glip.language_layer import LanguageLayer
from ovd_d2.projects.glip.large_kernel import LargeKernelConv

_PRIOR = 0.01  # share of (location, token) pairs that belong together, before any training


@dataclass(frozen=True)
class TowerSizes:
    """The defaults are GLIP-T's.

    Attributes:
        channels: of the pyramid.
        levels: of the pyramid.
        text_width: of a token.
        blocks: how many.
        fused: whether image and text look at each other; not in (A).
        fusion_width, fusion_heads: of that attention.
        text_heads, text_hidden: of the language layers.
        dropout: in training.
        log_scale: where that of dot products begins.
        dynamic: DyConv; False: :class:`LargeKernelConv`.
        across_levels: see :class:`DyConv`.
        gradient_checkpointing: keep no activations of the parts of a block.
    """

    channels: int = 256
    levels: int = 5
    text_width: int = 768
    blocks: int = 6
    fused: bool = True
    fusion_width: int = 2048
    fusion_heads: int = 8
    text_heads: int = 12
    text_hidden: int = 3072
    dropout: float = 0.1
    log_scale: float = 0.0
    dynamic: bool = True
    across_levels: str = "resized"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class HeadOutputs:
    """Of each level, finest first, of its P = h x w locations row by row.

    Attributes:
        logits: (N, P, L) of each token.
        deltas: (N, P, 4), see :mod:`ovd_d2.projects.glip.box_coder`.
        centerness: (N, P) logits.
        sizes: (h, w).
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    centerness: list[Tensor]
    sizes: list[tuple[int, int]]


class TowerBlock(nn.Module):
    """Fusion, a layer of text alone and one of the image alone; without fusion the last only."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.fusion: Fusion | None = None
        self.language: LanguageLayer | None = None
        if sizes.fused:
            self.fusion = Fusion(
                sizes.channels,
                sizes.text_width,
                width=sizes.fusion_width,
                heads=sizes.fusion_heads,
                gain=1 / sizes.blocks,
                dropout=sizes.dropout,
            )
            self.language = LanguageLayer(
                sizes.text_width,
                heads=sizes.text_heads,
                hidden=sizes.text_hidden,
                dropout=sizes.dropout,
            )
        self.dyconv: DyConv | LargeKernelConv = (
            DyConv(sizes.channels, across_levels=sizes.across_levels)
            if sizes.dynamic
            else LargeKernelConv(sizes.channels)
        )
        self.gradient_checkpointing = sizes.gradient_checkpointing

    def forward(
        self, levels: list[Tensor], text: Tensor, mask: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """(N, C, h, w) each, (N, L, T), (N, L) bool -> the first two, of the same shapes."""
        if self.fusion is not None and self.language is not None:
            levels, text = self._run(self.fusion, levels, text, mask)
            text = self._run(self.language, text, mask)
        return self.see(levels), text

    def see(self, levels: list[Tensor]) -> list[Tensor]:
        """The part that no words change, (N, C, h, w) each of the same shapes."""
        return self._run(self.dyconv, levels)

    def _run(self, part: nn.Module, *inputs: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)


class GLIPHead(nn.Module):
    """Compares every location with every token after the tower, and says where its box is.

    Attributes:
        tower: the blocks.
        log_scale: logarithm of what dot products are divided by.
    """

    def __init__(self, sizes: TowerSizes) -> None:
        """
        Raises:
            ValueError: heads that do not divide a width; an unknown `across_levels`.
        """
        super().__init__()
        self.fused = sizes.fused
        self.tower = nn.ModuleList(TowerBlock(sizes) for _ in range(sizes.blocks))
        self.text_projection = nn.Linear(sizes.text_width, sizes.channels)
        self.log_scale = nn.Parameter(torch.full((1,), sizes.log_scale))
        self.text_bias = nn.Parameter(torch.zeros(sizes.text_width))
        self.bias = nn.Parameter(torch.full((1,), math.log(_PRIOR / (1 - _PRIOR))))
        self.bbox_pred = small_conv(sizes.channels, 4)
        self.centerness = small_conv(sizes.channels, 1)
        self.scales = nn.ParameterList(torch.ones(1) for _ in range(sizes.levels))

    def forward(self, levels: Sequence[Tensor], text: Tensor, mask: Tensor) -> HeadOutputs:
        """
        Args:
            levels: (N, C, h, w), finest first.
            text: (N, L, T) of the text encoder.
            mask: (N, L) bool, False where padded; logits of those tokens mean nothing.
        """
        return next(self.answers(self.seen(levels), [(text, mask)]))

    def seen(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What no caption changes, of the pyramid's levels: without fusion all of the tower."""
        maps = list(levels)
        blocks: Iterable[Any] = () if self.fused else self.tower
        for block in blocks:
            maps = block.see(maps)
        return maps

    def answers(
        self, seen: Sequence[Tensor], captions: Sequence[tuple[Tensor, Tensor]]
    ) -> Iterator[HeadOutputs]:
        """Of the same images under several batches of captions, one batch after the other.

        Args:
            seen: of :meth:`seen`.
            captions: pairs of text and mask; see :meth:`forward`. Without a graph 1 image may come
                with K captions, and K rows of outputs are its.
        """
        for text, mask in captions:
            if self.fused:
                maps, text = self._through_tower(seen, text, mask)
            else:
                maps, text = list(seen), text * mask[:, :, None]
            yield self._outputs(maps, F.normalize(text, dim=-1))

    def _through_tower(
        self, levels: Sequence[Tensor], text: Tensor, mask: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        maps = list(levels)
        for block in self.tower:
            maps, text = block(maps, text, mask)
        return maps, text

    def _outputs(self, maps: Sequence[Tensor], text: Tensor) -> HeadOutputs:
        """Of unit embeddings (N, L, T), and as many images or one."""
        count = text.shape[0]  # len() would be a constant of a trace
        deltas = [
            _by_location(self.bbox_pred(one) * scale)
            for one, scale in zip(maps, self.scales, strict=True)
        ]
        centerness = [_by_location(self.centerness(one))[..., 0] for one in maps]
        return HeadOutputs(
            logits=self._logits(maps, text),
            deltas=[one.expand(count, -1, -1) for one in deltas],
            centerness=[one.expand(count, -1) for one in centerness],
            sizes=[(one.shape[2], one.shape[3]) for one in maps],
        )

    def _logits(self, maps: Sequence[Tensor], text: Tensor) -> list[Tensor]:
        queries = self.text_projection(text / 2).transpose(1, 2) / self.log_scale.exp()  # (N, C, L)
        biases = (text @ self.text_bias + self.bias)[:, None]  # (N, 1, L)
        return [clamped(_by_location(one) @ queries + biases) for one in maps]


def _by_location(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h x w, C)."""
    return maps.flatten(2).transpose(1, 2)
