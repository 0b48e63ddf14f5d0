"""CLIPSelf's plug (:mod:`ovd_d2.systems`): the self-distillation of a CLIP ViT."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.projects.clipself.config import add_clipself_config
from ovd_d2.systems import System


def is_configured(cfg: CfgNode) -> bool:
    """Whether the config is a self-distillation."""
    return cfg.MODEL.META_ARCHITECTURE == "CLIPSelf"


SYSTEM = System(
    name="CLIPSelf",
    node="MODEL.CLIPSELF",
    is_configured=is_configured,
    add_config=add_clipself_config,
    golden="ovd_d2.projects.clipself.golden",
)
