"""ViLD (Gu et al., ICLR 2022, arXiv 2104.13921); importing this registers its heads."""

from ovd_d2.vild.backbone import (
    LateNormFPN,
    SamePaddedStem,
    build_vild_resnet_backbone,
    build_vild_resnet_fpn_backbone,
)
from ovd_d2.vild.boxes import AnchorTransform, InclusiveBox2BoxTransform
from ovd_d2.vild.cascade import ViLDCascadeROIHeads
from ovd_d2.vild.mask_head import LateNormMaskHead
from ovd_d2.vild.pooler import BinCentrePooler
from ovd_d2.vild.predictor import ViLDOutputLayers
from ovd_d2.vild.roi_heads import ViLDROIHeads
from ovd_d2.vild.rpn import (
    LevelMeanRPN,
    LevelNormRPNHead,
    OneAnchorMatcher,
    ViLDRPN,
)
from ovd_d2.vild.variants import VARIANTS, Variant, get_variant

__all__ = [
    "AnchorTransform",
    "BinCentrePooler",
    "InclusiveBox2BoxTransform",
    "LateNormFPN",
    "LateNormMaskHead",
    "LevelMeanRPN",
    "LevelNormRPNHead",
    "OneAnchorMatcher",
    "SamePaddedStem",
    "VARIANTS",
    "Variant",
    "ViLDCascadeROIHeads",
    "ViLDOutputLayers",
    "ViLDROIHeads",
    "ViLDRPN",
    "build_vild_resnet_backbone",
    "build_vild_resnet_fpn_backbone",
    "get_variant",
]
