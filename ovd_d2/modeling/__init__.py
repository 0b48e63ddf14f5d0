"""Meta-architecture, heads and classifier; importing this registers them with Detectron2."""

from ovd_d2.modeling.backbone import (
    TimmBackbone,
    build_ovd_timm_fpn_backbone,
    build_ovd_timm_p7_fpn_backbone,
    build_ovd_vit_fpn_backbone,
)
from ovd_d2.modeling.box_head import (
    EmbeddingProjection,
    OpenVocabularyOutputLayers,
    RegionEmbeddingHead,
    ViLDBoxHead,
)
from ovd_d2.modeling.classifier import CLIPClassifier
from ovd_d2.modeling.mask_head import ClassAgnosticPointRendMaskHead, ViLDMaskHead
from ovd_d2.modeling.masks import BoxMasks
from ovd_d2.modeling.meta_arch import BatchInvariantRCNN, OpenVocabularyRCNN
from ovd_d2.modeling.pooler import LevelPooler
from ovd_d2.modeling.roi_heads import OpenVocabularyROIHeads
from ovd_d2.modeling.rpn_head import NormRPNHead
from ovd_d2.modeling.tta import OpenVocabularyRCNNWithTTA

__all__ = [
    "BatchInvariantRCNN",
    "BoxMasks",
    "CLIPClassifier",
    "ClassAgnosticPointRendMaskHead",
    "EmbeddingProjection",
    "LevelPooler",
    "NormRPNHead",
    "OpenVocabularyOutputLayers",
    "OpenVocabularyRCNN",
    "OpenVocabularyRCNNWithTTA",
    "OpenVocabularyROIHeads",
    "RegionEmbeddingHead",
    "TimmBackbone",
    "ViLDBoxHead",
    "ViLDMaskHead",
    "build_ovd_timm_fpn_backbone",
    "build_ovd_timm_p7_fpn_backbone",
    "build_ovd_vit_fpn_backbone",
]
