"""ViLD (Gu et al., ICLR 2022, arXiv 2104.13921); importing this registers its heads."""

from ovd_d2.vild.backbone import build_vild_resnet_backbone, build_vild_resnet_fpn_backbone
from ovd_d2.vild.cascade import ViLDCascadeROIHeads
from ovd_d2.vild.mask_head import LateNormMaskHead
from ovd_d2.vild.roi_heads import ViLDROIHeads
from ovd_d2.vild.rpn import LevelMeanRPN, LevelNormRPNHead, NormRPNHead, ViLDRPN
from ovd_d2.vild.variants import VARIANTS, Variant, get_variant

__all__ = [
    "VARIANTS",
    "LateNormMaskHead",
    "LevelMeanRPN",
    "LevelNormRPNHead",
    "NormRPNHead",
    "Variant",
    "ViLDCascadeROIHeads",
    "ViLDROIHeads",
    "ViLDRPN",
    "build_vild_resnet_backbone",
    "build_vild_resnet_fpn_backbone",
    "get_variant",
]
