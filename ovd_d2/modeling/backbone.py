"""Convolutional CLIP image towers and plain ViTs as detector backbones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

# Those that read MODEL.OVD.TIMM_ARCHITECTURE.
TIMM_BACKBONES = ("build_ovd_timm_fpn_backbone", "build_ovd_timm_p7_fpn_backbone")


class TimmBackbone(Backbone):
    """A timm network that returns the feature maps of its stages.

    open_clip builds its convolutional image towers from timm, so a tower's weights fit
    (`visual.trunk.*` there is `body.*` here).
    """

    def __init__(self, *, architecture: str, out_features: list[str]) -> None:
        """
        Args:
            architecture: timm's name of the network; random weights, checkpoints bring others.
            out_features: among "res1" .. "res5", of stride 2 .. 32.
        """
        import timm  # 0.6 s of an import, for this backbone alone

        super().__init__()
        self.body = timm.create_model(architecture, pretrained=False, features_only=True)
        info: Any = self.body.feature_info
        names = [f"res{stride.bit_length() - 1}" for stride in info.reduction()]
        unknown = sorted(set(out_features) - set(names))
        if unknown:
            raise ValueError(f"{architecture} has no {unknown}, only {names}: RESNETS.OUT_FEATURES")
        self._names = names
        self._out_features = out_features
        self._out_feature_channels = dict(zip(names, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(names, info.reduction(), strict=True))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> name -> (N, C, H / stride, W / stride)."""
        maps = dict(zip(self._names, self.body(images), strict=True))
        return {name: maps[name] for name in self._out_features}


@BACKBONE_REGISTRY.register()
def build_ovd_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The timm network `MODEL.OVD.TIMM_ARCHITECTURE` with Detectron2's FPN.

    Its stages are called res2 .. res5 by stride, as Detectron2's ResNets'.
    """
    return _timm_fpn(cfg, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_ovd_timm_p7_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same for dense detectors: P6 and P7 are convolutions, from P5 on.

    With `FPN.IN_FEATURES` res3 to res5 it has the levels p3 to p7.
    """
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _timm_fpn(cfg, LastLevelP6P7(channels, channels, in_feature="p5"))


def _timm_fpn(cfg: CfgNode, top_block: nn.Module) -> FPN:
    bottom_up = TimmBackbone(
        architecture=cfg.MODEL.OVD.TIMM_ARCHITECTURE,
        out_features=list(cfg.MODEL.RESNETS.OUT_FEATURES),
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_ovd_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """ViTDet (arXiv 2203.16527): Detectron2's plain ViT with its simple feature pyramid.

    Detectron2 builds both from LazyConfigs only; this is their way into yaml, by the keys of
    `MODEL.OVD.VIT`, `FPN.OUT_CHANNELS` and `FPN.NORM`. Maps are called p<k> by stride 2^k, with one
    more level by pooling, as Detectron2's FPN's.
    """
    vit = cfg.MODEL.OVD.VIT
    net = ViT(
        img_size=vit.IMG_SIZE,
        patch_size=vit.PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=vit.EMBED_DIM,
        depth=vit.DEPTH,
        num_heads=vit.NUM_HEADS,
        drop_path_rate=vit.DROP_PATH_RATE,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=vit.USE_REL_POS,
        window_size=vit.WINDOW_SIZE,
        window_block_indexes=_window_blocks(vit.DEPTH, vit.GLOBAL_ATTENTION_BLOCKS),
        pretrain_img_size=vit.PRETRAIN_IMG_SIZE,
        out_feature="last_feat",
    )
    return SimpleFeaturePyramid(
        net=net,
        in_feature="last_feat",
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=vit.SCALE_FACTORS,
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
    )


def _window_blocks(depth: int, global_blocks: Sequence[int]) -> list[int]:
    """The blocks whose attention stays within windows: all but the global ones."""
    unknown = sorted(set(global_blocks) - set(range(depth)))
    if unknown:
        raise ValueError(
            f"MODEL.OVD.VIT.GLOBAL_ATTENTION_BLOCKS names {unknown}, but DEPTH {depth} has "
            f"blocks 0 to {depth - 1} only"
        )
    return sorted(set(range(depth)) - set(global_blocks))
