"""CLIPSelf's plug (:mod:`ovd_d2.systems`): the self-distillation of a CLIP ViT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ovd_d2.clip.loading import configured_image_size
from ovd_d2.data.passengers import Passenger
from ovd_d2.modeling.open_vocabulary import unwrapped
from ovd_d2.projects.clipself import checks
from ovd_d2.projects.clipself.config import add_clipself_config
from ovd_d2.projects.clipself.export import ExportRefined
from ovd_d2.projects.clipself.model import CLIPSelf
from ovd_d2.projects.clipself.passengers import RegionsToDistil
from ovd_d2.projects.clipself.proposals import open_proposals
from ovd_d2.projects.clipself.region_classification.wiring import (
    region_evaluator,
    region_passengers,
)
from ovd_d2.projects.clipself.regions import Patches, Proposals, RegionSampler
from ovd_d2.projects.clipself.segment_sets import REGIONS, segment_sets
from ovd_d2.systems import System


def is_configured(cfg: CfgNode) -> bool:
    """Whether the config is a self-distillation."""
    return cfg.MODEL.META_ARCHITECTURE == "CLIPSelf"


def region_sampler(cfg: CfgNode) -> RegionSampler:
    """What `MODEL.CLIPSELF` says.

    Raises:
        SetupError: proposals that cannot be read.
    """
    clipself = cfg.MODEL.CLIPSELF
    if clipself.REGIONS == checks.PATCHES:
        return Patches(limit=clipself.REGIONS_PER_IMAGE, max_rows=clipself.MAX_ROWS)
    return Proposals(
        open_proposals(clipself.PROPOSALS),
        limit=clipself.REGIONS_PER_IMAGE,
        area=tuple(clipself.PROPOSAL_AREA),
        crop_scale=clipself.CROP_SCALE,
    )


def passengers(cfg: CfgNode) -> Sequence[Passenger]:
    """Regions and the teacher's crops of them."""
    sampler, crop_size = region_sampler(cfg), configured_image_size(cfg)
    image_size = cfg.MODEL.CLIPSELF.IMAGE_SIZE
    return [RegionsToDistil(sampler, image_size=image_size, crop_size=crop_size)]


def hooks(cfg: CfgNode, model: nn.Module) -> Sequence[HookBase]:
    """The refined CLIP is exported."""
    student = unwrapped(model)
    assert isinstance(student, CLIPSelf)
    period = cfg.SOLVER.CHECKPOINT_PERIOD
    return [ExportRefined(student, folder=Path(cfg.OUTPUT_DIR), period=period)]


SYSTEM = System(
    name="CLIPSelf",
    node="MODEL.CLIPSELF",
    detects=False,
    is_configured=is_configured,
    add_config=add_clipself_config,
    key_problems=checks.key_problems,
    problems=checks.problems,
    idle_keys=checks.idle_keys,
    passengers=passengers,
    hooks=hooks,
    test_passengers=region_passengers,
    data_sets=segment_sets,
    evaluators={REGIONS: region_evaluator},
    showcase="ovd_d2.projects.clipself.showcase",
    golden="ovd_d2.projects.clipself.golden",
)
