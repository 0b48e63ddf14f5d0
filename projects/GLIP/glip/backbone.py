"""Swin with a feature pyramid P3 to P7, both Detectron2's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

_STAGES = (1, 2, 3)  # of 0 to 3: strides 8, 16 and 32
_DROPPED = ("fpn_output3", "fpn_output4")  # not C5's, nor the path from level to level
DROP_SIZE = 3  # side in cells of what DropBlock takes away at once


@BACKBONE_REGISTRY.register()
def build_glip_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Features "p3" to "p7" of `FPN.OUT_CHANNELS`, by the keys of `MODEL.GLIP.SWIN`."""
    glip, swin = cfg.MODEL.GLIP, cfg.MODEL.GLIP.SWIN
    body = SwinTransformer(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        out_indices=_STAGES,
        use_checkpoint=glip.GRADIENT_CHECKPOINTING,
    )
    return swin_fpn(body, cfg.MODEL.FPN.OUT_CHANNELS, drop_probability=glip.FPN_DROP_BLOCK)


def swin_fpn(body: SwinTransformer, channels: int, drop_probability: float) -> FPN:
    """The pyramid on C3 to C5, P6 from P5, P7 from P6 after a ReLU.

    Args:
        body: with outputs of strides 8, 16 and 32.
        channels: of each level.
        drop_probability: DropBlock's, in training, on the maps of which P3 and P4 are made.
    """
    pyramid = FPN(
        bottom_up=body,
        in_features=[f"p{stage}" for stage in _STAGES],  # Detectron2's names of Swin's stages
        out_channels=channels,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
    )
    for name in _DROPPED:
        hook = partial(_drop_before, drop_probability)
        pyramid.get_submodule(name).register_forward_pre_hook(hook)
    return pyramid


def _drop_before(probability: float, conv: nn.Module, inputs: tuple[Any, ...]) -> Any:
    if not conv.training or probability == 0:
        return None
    return (drop_block(inputs[0], probability, DROP_SIZE), *inputs[1:])


def drop_block(maps: Tensor, probability: float, size: int) -> Tensor:
    """DropBlock (arXiv 1810.12890): squares of each image are zero in all channels.

    Args:
        maps: (N, C, h, w).
        probability: that a cell is in a dropped square, about.
        size: side of the squares in cells, odd.

    Returns:
        The same shape; what is left is scaled by all cells over those that are left.
    """
    count, _, height, width = maps.shape
    seeds = torch.rand(count, 1, height, width, device=maps.device) < probability / size**2
    kept = 1 - F.max_pool2d(seeds.to(maps.dtype), size, stride=1, padding=size // 2)
    return maps * kept * (kept.numel() / kept.sum().clamp(min=1))
