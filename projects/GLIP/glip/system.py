"""GLIP's plug (:mod:`ovd_d2.systems`); importing it registers the parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from torch import nn

from ovd_d2.data.registration import DataSet
from ovd_d2.projects.glip import checks, set_checks, wiring
from ovd_d2.projects.glip.backbone import build_glip_swin_fpn_backbone
from ovd_d2.projects.glip.config import add_glip_config
from ovd_d2.projects.glip.evaluation.flickr_recall import METRICS
from ovd_d2.projects.glip.evaluation.settings import evaluation_settings
from ovd_d2.projects.glip.grounding import PHRASES, grounding_sets
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.pictograms import few_pictograms, pictogram_captions
from ovd_d2.systems import System

if TYPE_CHECKING:  # it needs onnx
    from ovd_d2.export.network import Network

PARTS = (build_glip_swin_fpn_backbone, GLIP)


def is_configured(cfg: CfgNode) -> bool:
    """Whether the meta-architecture is GLIP's."""
    return cfg.MODEL.META_ARCHITECTURE == "GLIP"


def data_sets() -> Iterator[DataSet]:
    """Grounding sets, public ones and Pictograms' captions; a few of Pictograms' images."""
    yield from grounding_sets()
    yield from pictogram_captions()
    yield from few_pictograms()


def network(model: nn.Module) -> Network:
    """What of a model is exported; see :func:`ovd_d2.projects.glip.export.glip_network`."""
    from ovd_d2.projects.glip.export import glip_network  # needed by an export alone

    return glip_network(model)


SYSTEM = System(
    name="GLIP",
    node="MODEL.GLIP",
    is_configured=is_configured,
    free_categories=True,
    add_config=add_glip_config,
    key_problems=checks.key_problems,
    problems=set_checks.problems,
    idle_keys=checks.idle_keys,
    passengers=wiring.passengers,
    test_passengers=wiring.test_passengers,
    validation_passengers=wiring.validation_passengers,
    data_sets=data_sets,
    file_keys=("MODEL.GLIP.TOKENIZER",),
    hooks=wiring.hooks,
    network=network,
    evaluators={PHRASES: wiring.phrase_evaluator},
    evaluation_settings=evaluation_settings,
    metrics={PHRASES: METRICS},
    showcase="ovd_d2.projects.glip.showcase",
    golden="ovd_d2.projects.glip.golden",
)
