"""What a GLIP needs beyond what any detector does."""

from __future__ import annotations

from collections.abc import Iterable

from detectron2.config import CfgNode

from ovd_d2.projects.glip import wiring
from ovd_d2.projects.glip.dyconv import ACROSS_LEVELS
from ovd_d2.projects.glip.prompts.spans import AGGREGATIONS
from ovd_d2.projects.glip.tuning import MODES
from ovd_d2.systems import IdleKeys

KEYS = "MODEL.GLIP"
SWIN = "build_glip_swin_fpn_backbone"
CHOICES = {
    "OFFSETS_ACROSS_LEVELS": ACROSS_LEVELS,
    "AGGREGATION": AGGREGATIONS,
    "TUNING": MODES,
}
LEAST = {
    "BLOCKS": 1,
    "CAPTIONS_PER_PASS": 1,
    "NAMES_PER_CAPTION": 0,
    "FOCAL_LOSS_GAMMA": 0,
    "BOX_WEIGHT": 0,
}


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant."""
    glip = cfg.MODEL.GLIP
    for key, values in CHOICES.items():
        if glip[key] not in values:
            yield f"{KEYS}.{key}: '{glip[key]}' is none of {', '.join(values)}"
    for key, least in LEAST.items():
        if glip[key] < least:
            yield f"{KEYS}.{key}: {glip[key]}, expected at least {least}"
    for key in ("DROPOUT", "FPN_DROP_BLOCK", "SCORE_THRESH", "NMS_THRESH", "FOCAL_LOSS_ALPHA"):
        if not 0 <= glip[key] <= 1:
            yield f"{KEYS}.{key}: {glip[key]} is not between 0 and 1"
    if not glip.IN_FEATURES:
        yield f"{KEYS}.IN_FEATURES is empty: name levels of the backbone, finest first"
    yield from _width_problems(cfg)
    yield from wiring.key_problems(cfg)


def _width_problems(cfg: CfgNode) -> Iterable[str]:
    glip = cfg.MODEL.GLIP
    if glip.FUSION and glip.FUSION_DIM % glip.FUSION_HEADS:
        yield f"{KEYS}.FUSION_DIM {glip.FUSION_DIM} is no multiple of {glip.FUSION_HEADS} heads"
    if glip.BERT.WIDTH % glip.BERT.HEADS:
        yield f"{KEYS}.BERT.WIDTH {glip.BERT.WIDTH} is no multiple of {glip.BERT.HEADS} heads"
    if cfg.MODEL.FPN.OUT_CHANNELS % 32:
        # two values per group are the least that a norm over one location can take
        yield f"MODEL.FPN.OUT_CHANNELS {cfg.MODEL.FPN.OUT_CHANNELS} is no multiple of 32"


def idle_keys(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Keys that the config sets and that nothing reads."""
    if (name := cfg.MODEL.BACKBONE.NAME) != SWIN:
        yield (
            (f"{KEYS}.FPN_DROP_BLOCK", *(f"{KEYS}.SWIN.{key}" for key in cfg.MODEL.GLIP.SWIN)),
            f"MODEL.BACKBONE.NAME is {name}",
        )
    if not cfg.MODEL.GLIP.FUSION:
        yield (f"{KEYS}.FUSION_DIM", f"{KEYS}.FUSION_HEADS"), f"{KEYS}.FUSION is False"
    if not cfg.MODEL.GLIP.DYNAMIC_CONV:
        yield (f"{KEYS}.OFFSETS_ACROSS_LEVELS",), f"{KEYS}.DYNAMIC_CONV is False"
    yield from wiring.idle_keys(cfg)
