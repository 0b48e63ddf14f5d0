"""ViLD (Gu et al., ICLR 2022, arXiv 2104.13921); importing this registers its heads."""

from ovd_d2.vild.cascade import ViLDCascadeROIHeads
from ovd_d2.vild.roi_heads import ViLDROIHeads
from ovd_d2.vild.rpn import LevelMeanRPN, NormRPNHead
from ovd_d2.vild.variants import VARIANTS, Variant, get_variant

__all__ = [
    "VARIANTS",
    "LevelMeanRPN",
    "NormRPNHead",
    "Variant",
    "ViLDCascadeROIHeads",
    "ViLDROIHeads",
    "get_variant",
]
