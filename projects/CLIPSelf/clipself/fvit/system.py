"""F-ViT's plug (:mod:`ovd_d2.systems`); importing it registers the parts."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.projects.clipself.fvit import checks
from ovd_d2.projects.clipself.fvit.backbone import build_fvit_backbone
from ovd_d2.projects.clipself.fvit.config import add_fvit_config
from ovd_d2.projects.clipself.fvit.roi_heads import FViTROIHeads
from ovd_d2.projects.clipself.fvit.rpn import FViTRPN
from ovd_d2.systems import System

PARTS = (build_fvit_backbone, FViTRPN, FViTROIHeads)


def is_configured(cfg: CfgNode) -> bool:
    """Whether the heads are F-ViT's, in whatever meta-architecture."""
    return cfg.MODEL.ROI_HEADS.NAME == checks.ROI_HEADS


SYSTEM = System(
    name="F-ViT",
    node="MODEL.FVIT",
    is_configured=is_configured,
    add_config=add_fvit_config,
    key_problems=checks.key_problems,
    problems=checks.problems,
    idle_keys=checks.idle_keys,
    keys_of_parts=checks.keys_of_parts,
)
