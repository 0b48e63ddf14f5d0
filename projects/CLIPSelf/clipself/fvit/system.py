"""F-ViT's plug (:mod:`ovd_d2.systems`)."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.projects.clipself.fvit.config import add_fvit_config
from ovd_d2.systems import System


def is_configured(cfg: CfgNode) -> bool:
    """Whether the heads are F-ViT's, in whatever meta-architecture."""
    return cfg.MODEL.ROI_HEADS.NAME == "FViTROIHeads"


SYSTEM = System(
    name="F-ViT",
    node="MODEL.FVIT",
    is_configured=is_configured,
    add_config=add_fvit_config,
)
