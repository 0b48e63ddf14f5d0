"""Layers of region heads, whose batch may be empty."""

from __future__ import annotations

from collections.abc import Iterable

from detectron2.layers import Conv2d
from torch import Tensor, nn


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The layers one after the other, also of an empty batch (0, C, H, W) in training.

    Detectron2's `Conv2d` refuses to train a SyncBatchNorm with nothing, which PyTorch's once could
    not do. It can today: an empty process keeps meeting the others in its all-reduce, and the
    statistics are theirs. Base-only labels make such batches: images without objects leave the
    mask head without regions.
    """
    for layer in layers:
        if len(x) or not isinstance(layer, Conv2d):
            x = layer(x)
            continue
        x = nn.Conv2d.forward(layer, x)  # what Detectron2's does after its refusal
        for follower in (layer.norm, layer.activation):
            x = x if follower is None else follower(x)
    return x
