"""The plug of dense CLIP features without a detector (:mod:`ovd_d2.systems`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode

from ovd_d2.data.passengers import Passenger
from ovd_d2.projects.clipself.region_classification.wiring import (
    region_evaluator,
    region_passengers,
)
from ovd_d2.projects.clipself.segment_sets import PANOPTIC, REGIONS, SEMANTIC, has_evaluator_type
from ovd_d2.projects.clipself.segmentation.config import add_dense_clip_config
from ovd_d2.projects.clipself.segmentation.evaluators import (
    panoptic_evaluator,
    semantic_evaluator,
)
from ovd_d2.projects.clipself.segmentation.masks import GivenMasks, PredictedMasks
from ovd_d2.projects.clipself.segmentation.model import DenseCLIPSegmentor
from ovd_d2.systems import SetupContext, System


def is_configured(cfg: CfgNode) -> bool:
    """Whether the config is one of segmentation by dense features."""
    return DenseCLIPSegmentor.__name__ == cfg.MODEL.META_ARCHITECTURE


def test_passengers(cfg: CfgNode, dataset_name: str) -> Sequence[Passenger]:
    """Segments to be named: for region classification, or masks for panoptic segmentation."""
    if has_evaluator_type(dataset_name, PANOPTIC):
        masks = cfg.MODEL.DENSE_CLIP.MASKS
        return [PredictedMasks(masks) if masks else GivenMasks()]
    return region_passengers(cfg, dataset_name)


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Windows with gaps, and images that the network would not see as they are meant."""
    dense = cfg.MODEL.DENSE_CLIP
    stride = dense.SLIDING_STRIDE or dense.SLIDING_WINDOW
    if min(dense.SLIDING_WINDOW, stride) < 0 or stride > dense.SLIDING_WINDOW:
        yield (
            f"MODEL.DENSE_CLIP.SLIDING_STRIDE is {stride}, expected 1 to SLIDING_WINDOW, which is "
            f"{dense.SLIDING_WINDOW}; 0 is as much as the window"
        )
    if cfg.INPUT.FORMAT != "RGB":
        yield f"INPUT.FORMAT is {cfg.INPUT.FORMAT}, but CLIP takes RGB: set it"


def problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    """A training, or no vocabulary."""
    if context.training:
        yield (
            "MODEL.META_ARCHITECTURE DenseCLIPSegmentor has nothing to train: give --eval-only, or "
            "train CLIPSelf and name what it exports in MODEL.OVD.TEACHER.PRETRAINED"
        )
    if not cfg.MODEL.OVD.VOCABULARY:
        yield "MODEL.OVD.VOCABULARY is empty: make one with tools/build_vocabulary.py"


SYSTEM = System(
    name="DenseCLIP",
    node="MODEL.DENSE_CLIP",
    is_configured=is_configured,
    add_config=add_dense_clip_config,
    key_problems=key_problems,
    problems=problems,
    test_passengers=test_passengers,
    evaluators={
        REGIONS: region_evaluator,
        SEMANTIC: semantic_evaluator,
        PANOPTIC: panoptic_evaluator,
    },
)
