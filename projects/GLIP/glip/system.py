"""GLIP's plug (:mod:`ovd_d2.systems`); importing it registers the parts."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.projects.glip.backbone import build_glip_swin_fpn_backbone
from ovd_d2.projects.glip.config import add_glip_config
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.systems import System

PARTS = (build_glip_swin_fpn_backbone, GLIP)


def is_configured(cfg: CfgNode) -> bool:
    """Whether the meta-architecture is GLIP's."""
    return cfg.MODEL.META_ARCHITECTURE == "GLIP"


SYSTEM = System(
    name="GLIP",
    node="MODEL.GLIP",
    is_configured=is_configured,
    add_config=add_glip_config,
    golden="ovd_d2.projects.glip.golden",
)
