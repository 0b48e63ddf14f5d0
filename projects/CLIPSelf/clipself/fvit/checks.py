"""What a run of F-ViT needs beyond what any open-vocabulary detector does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import open_clip
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ovd_d2.clip.shipped import shipped_weights
from ovd_d2.systems import IdleKeys, SetupContext

BACKBONE, RPN, ROI_HEADS = "build_fvit_backbone", "FViTRPN", "FViTROIHeads"
KEY = "MODEL.FVIT"
_BACKBONE_KEYS = ("VIT_WEIGHTS", "TAPS", "WINDOW_SIZE", "GLOBAL_ATTENTION_BLOCKS", "SQUARE_PAD")


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant."""
    fvit = cfg.MODEL.FVIT
    for name in ("LOGIT_SCALE", "IMAGE_LOGIT_SCALE"):
        if fvit[name] <= 0:
            yield f"{KEY}.{name}: {fvit[name]}, expected a factor above 0 (the paper: 50 to 75)"
    for name in ("TEST_LOGIT_SCALE", "BACKGROUND_WEIGHT"):
        if fvit[name] < 0:
            yield f"{KEY}.{name}: {fvit[name]}, expected 0 or more"
    if not 0 <= fvit.RPN_LEAST_IOU <= 1:
        yield f"{KEY}.RPN_LEAST_IOU: {fvit.RPN_LEAST_IOU}, expected an IoU, 0 to 1"
    if cfg.MODEL.BACKBONE.NAME == BACKBONE:
        yield from _backbone_problems(cfg)
    elif fvit.ENSEMBLE:
        yield (
            f"{KEY}.ENSEMBLE is True, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has no "
            f"dense map: name {BACKBONE}, or set {KEY}.ENSEMBLE False"
        )


def _backbone_problems(cfg: CfgNode) -> Iterable[str]:
    fvit = cfg.MODEL.FVIT
    if len(fvit.TAPS) != 4:
        yield f"{KEY}.TAPS: {tuple(fvit.TAPS)}, expected four blocks, of C2 to C5"
    needed = {"INPUT.MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST}
    if cfg.INPUT.LSJ.ENABLED:
        needed["INPUT.LSJ.SIZE"] = cfg.INPUT.LSJ.SIZE
    for key, size in needed.items():
        if 0 < fvit.SQUARE_PAD < size:
            yield (
                f"{KEY}.SQUARE_PAD is {fvit.SQUARE_PAD}, but images have up to {size} pixels "
                f"({key}): pad to at least that, or 0 for as little as possible"
            )
    yield from _width_problems(cfg)


def _width_problems(cfg: CfgNode) -> Iterable[str]:
    """Whether the ViT is as wide as the words, as far as open_clip knows the architecture."""
    name = cfg.MODEL.OVD.TEACHER.ARCHITECTURE
    shipped_weights(name)  # open_clip knows it now
    known = open_clip.get_model_config(name)
    if known is None:
        yield (
            f"MODEL.OVD.TEACHER.ARCHITECTURE: open_clip knows no '{name}'; F-ViT's are EVA02-B-16, "
            "EVA02-L-14-336, ViT-B-16-quickgelu"
        )
    elif known["embed_dim"] != cfg.MODEL.OVD.EMBEDDING_DIM:
        yield (
            f"MODEL.OVD.EMBEDDING_DIM is {cfg.MODEL.OVD.EMBEDDING_DIM}, but the embeddings of "
            f"MODEL.OVD.TEACHER.ARCHITECTURE {name} are {known['embed_dim']} wide"
        )


def problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    """The ViT's weights: a file, where one is named."""
    if cfg.MODEL.BACKBONE.NAME != BACKBONE or cfg.MODEL.WEIGHTS:
        return
    key, weights = f"{KEY}.VIT_WEIGHTS", cfg.MODEL.FVIT.VIT_WEIGHTS
    if not weights:
        key, weights = "MODEL.OVD.TEACHER.PRETRAINED", cfg.MODEL.OVD.TEACHER.PRETRAINED
    path = Path(PathManager.get_local_path(weights))
    if path.suffix and not path.is_file():  # a tag of open_clip has no ending
        yield f"{key}: no file at {path}; name a checkpoint of the architecture"


def keys_of_parts(cfg: CfgNode) -> list[str]:
    """What backbone and RPN read under heads of another system."""
    keys = list(_BACKBONE_KEYS) if cfg.MODEL.BACKBONE.NAME == BACKBONE else []
    keys += ["RPN_LEAST_IOU"] if cfg.MODEL.PROPOSAL_GENERATOR.NAME == RPN else []
    return [f"{KEY}.{key}" for key in keys]


def idle_keys(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Keys that the config sets and that nothing reads."""
    yield (
        ("MODEL.OVD.TEMPERATURE", "MODEL.OVD.TEST_TEMPERATURE"),
        f"{ROI_HEADS} read {KEY}.LOGIT_SCALE and TEST_LOGIT_SCALE",
    )
    if not cfg.MODEL.FVIT.ENSEMBLE:
        yield (
            (f"{KEY}.IMAGE_LOGIT_SCALE", "MODEL.OVD.BASE_WEIGHT", "MODEL.OVD.NOVEL_WEIGHT"),
            f"{KEY}.ENSEMBLE is False: no scores are mixed",
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != RPN:
        yield (
            (f"{KEY}.RPN_LEAST_IOU",),
            f"MODEL.PROPOSAL_GENERATOR.NAME is {cfg.MODEL.PROPOSAL_GENERATOR.NAME}, not {RPN}",
        )
    if cfg.MODEL.BACKBONE.NAME != BACKBONE:
        keys = tuple(f"{KEY}.{key}" for key in _BACKBONE_KEYS)
        yield keys, f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, not {BACKBONE}"
    elif cfg.MODEL.WEIGHTS:
        yield (f"{KEY}.VIT_WEIGHTS",), "MODEL.WEIGHTS brings the ViT"
