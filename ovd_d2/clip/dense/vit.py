"""Dense features of an open_clip ViT (CLIPSelf, Wu et al., arXiv 2310.01403, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovd_d2.clip.dense.positions import resize_positions
from ovd_d2.clip.dense.towers import Block, Layer, tower_of
from ovd_d2.clip.dense.windows import window_attention


class DenseOutput(NamedTuple):
    """What one pass gives.

    Attributes:
        dense: (B, D, h, w) unit vectors; None where it was not asked for.
        image: (B, D) unit vectors, the CLS embedding; None where it was not asked for.
        taps: block -> (B, W, h, w), its output for the patches before any further norm.
    """

    dense: Tensor | None
    image: Tensor | None
    taps: Mapping[int, Tensor]


class DenseViT(nn.Module):
    """The ViT of an open_clip model, whose every patch has an embedding.

    In the last block patches keep their own values: its attention is left out, since it mixes all
    patches for the benefit of CLS alone. Images may have any size: the position embeddings are
    resized, and what is missing to whole patches is padded with zeros at the right and bottom.

    Parameters and state dict are those of open_clip's `visual`, below `visual.`.

    Attributes:
        visual: open_clip's module.
        patch_size: pixels per cell of the map.
        width: W of the tokens.
        embedding_dim: D.
        depth: number of blocks.
        tower: the steps of `visual`.
    """

    def __init__(
        self,
        visual: nn.Module,
        *,
        window: int = 0,
        global_blocks: Iterable[int] = (),
        antialias: bool = False,
    ) -> None:
        """
        Args:
            visual: `model.visual` of an open_clip model; it is used, not copied.
            window: patches per side of the windows that attention stays within; 0: it is global.
            global_blocks: blocks (from 0) whose attention is global all the same.
            antialias: see :func:`ovd_d2.clip.dense.positions.resize_positions`.

        Raises:
            ValueError: not a ViT of a known family; a global block that there is not.
        """
        super().__init__()
        self.visual = visual
        self.tower = tower_of(visual)
        self.patch_size = self.tower.patch_size
        self.width = self.tower.width
        self.embedding_dim = self.tower.embedding_dim
        self.depth = len(self.tower.blocks)
        self.window = window
        self.global_blocks = _checked(global_blocks, self.depth)
        self.antialias = antialias

    def train_blocks(self) -> None:
        """Makes the blocks train and everything else not, in place.

        Of the last block's attention only values take part in a dense map: its query and key do not
        train where they are parameters of their own.
        """
        trained = self.tower.trained()
        for name, parameter in self.visual.named_parameters():
            parameter.requires_grad_(name in trained)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, D, h, w) unit vectors; h = ceil(H / patch)."""
        return self.dense_features(images)

    def dense_features(self, images: Tensor) -> Tensor:
        """As `forward`."""
        dense = self.run(images).dense
        assert dense is not None
        return dense

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) unit vectors, the CLS embedding with all attention in place."""
        image = self.run(images, dense=False, image=True).image
        assert image is not None
        return image

    @torch.no_grad()
    def masked_image_features(self, images: Tensor, masks: Tensor) -> Tensor:
        """Embeddings of masks by attention: each has a copy of CLS that sees CLS and its own
        patches only, in all blocks, and that nothing else sees.

        Args:
            images: (1, 3, H, W) normalised pixels.
            masks: (K, h, w) bool, on the grid of patches.

        Returns:
            (K, D) unit vectors.
        """
        tokens, grid, rotation = self._embedded(images)
        count, patches = len(masks), grid[0] * grid[1]
        copies = tokens[:, :1].expand(-1, count, -1)
        sees = torch.zeros(patches + 1 + count, patches + 1, dtype=torch.bool, device=images.device)
        sees[: patches + 1] = True
        sees[patches + 1 :, 0] = True
        sees[patches + 1 :, 1:] = masks.flatten(1)
        tokens = torch.cat([tokens, copies], dim=1)
        for index in range(self.depth):
            tokens = _masked_block(self.tower.parts(index, rotation), tokens, sees)
        return F.normalize(self.tower.project(tokens[:, patches + 1 :])[0].float(), dim=1)

    def run(
        self,
        images: Tensor,
        *,
        dense: bool = True,
        image: bool = False,
        taps: Sequence[int] = (),
    ) -> DenseOutput:
        """One pass, in which no block runs twice.

        Args:
            images: (B, 3, H, W) normalised pixels.
            dense: whether the map is wanted.
            image: whether the CLS embedding is wanted.
            taps: blocks whose output is wanted; the last one's is that without attention, which
                needs `dense`.
        """
        tokens, grid, rotation = self._embedded(images)
        found: dict[int, Tensor] = {}
        for index in range(self.depth):
            layer = self._layer(index, grid, rotation, dense, image)
            tokens = self._checkpointed(layer, tokens)
            if index in taps:
                found[index] = _map(tokens[:, 1:], grid)
        embedded = self.tower.project(tokens if dense else tokens[:, :1])
        embedded = F.normalize(embedded.float(), dim=-1)
        return DenseOutput(
            dense=_map(embedded[:, 1:], grid) if dense else None,
            image=embedded[:, 0] if image else None,
            taps=found,
        )

    def _embedded(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        grid = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        tokens = self.tower.embed(
            images,
            lambda table: resize_positions(
                table, self.tower.native_grid, grid, antialias=self.antialias
            ),
        )
        return tokens, grid, self.tower.rotation(grid)

    def _layer(
        self, index: int, grid: tuple[int, int], rotation: Tensor | None, dense: bool, image: bool
    ) -> Layer:
        if index == self.depth - 1 and dense:
            parts = self.tower.parts(index, rotation)
            return lambda tokens: _last_block(parts, tokens, image)
        if not self.window or index in self.global_blocks:
            return self.tower.whole(index, rotation)
        parts = self.tower.parts(index, rotation)
        return lambda tokens: _windowed_block(parts, tokens, grid, self.window)

    def _checkpointed(self, layer: Layer, tokens: Tensor) -> Tensor:
        if self.tower.checkpoints_gradients and torch.is_grad_enabled():
            return checkpoint(layer, tokens, use_reentrant=False)
        return layer(tokens)


def _checked(global_blocks: Iterable[int], depth: int) -> frozenset[int]:
    wanted = frozenset(global_blocks)
    if unknown := sorted(wanted - set(range(depth))):
        raise ValueError(
            f"global attention in blocks {unknown}: there are blocks 0 to {depth - 1} only"
        )
    return wanted


def _last_block(block: Block, tokens: Tensor, with_cls: bool) -> Tensor:
    """Each patch keeps its own value; CLS attends where its output is wanted."""
    normed = block.norm1(tokens)
    if with_cls:
        query, key, value = block.qkv(normed)
        cls = F.scaled_dot_product_attention(query[:, :, :1], key, value)
        attended = _joined_heads(torch.cat([cls, value[:, :, 1:]], dim=2))
    else:
        attended = block.value(normed)
    return _add_mlp(block, tokens + block.scale1(block.out(attended)))


def _windowed_block(block: Block, tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    attended = window_attention(*block.qkv(block.norm1(tokens)), grid, window)
    return _add_mlp(block, tokens + block.scale1(block.out(_joined_heads(attended))))


def _masked_block(block: Block, tokens: Tensor, sees: Tensor) -> Tensor:
    """Attention of all N tokens to the first M alone, as far as `sees` (N, M) says."""
    query, key, value = block.qkv(block.norm1(tokens))
    seen = sees.shape[1]
    attended = F.scaled_dot_product_attention(
        query, key[:, :, :seen], value[:, :, :seen], attn_mask=sees
    )
    return _add_mlp(block, tokens + block.scale1(block.out(_joined_heads(attended))))


def _add_mlp(block: Block, tokens: Tensor) -> Tensor:
    return tokens + block.scale2(block.mlp(block.norm2(tokens)))


def _joined_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def _map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w)."""
    # not `unflatten`: its lengths would be constants of a trace
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)
