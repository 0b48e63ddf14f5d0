"""CLIPSelf's plug (:mod:`ovd_d2.systems`): the self-distillation of a CLIP ViT."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.projects.clipself.config import add_clipself_config
from ovd_d2.projects.clipself.region_classification.wiring import (
    region_evaluator,
    region_passengers,
)
from ovd_d2.projects.clipself.segment_sets import REGIONS, segment_sets
from ovd_d2.systems import System


def is_configured(cfg: CfgNode) -> bool:
    """Whether the config is a self-distillation."""
    return cfg.MODEL.META_ARCHITECTURE == "CLIPSelf"


SYSTEM = System(
    name="CLIPSelf",
    node="MODEL.CLIPSELF",
    is_configured=is_configured,
    add_config=add_clipself_config,
    test_passengers=region_passengers,
    data_sets=segment_sets,
    evaluators={REGIONS: region_evaluator},
    golden="ovd_d2.projects.clipself.golden",
)
