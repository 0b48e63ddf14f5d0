"""What a self-distillation needs beyond what any training does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.proposals import open_proposals
from ovd_d2.systems import IdleKeys, SetupContext

KEYS = "MODEL.CLIPSELF"
PATCHES, PROPOSALS = "patches", "proposals"


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant."""
    clipself = cfg.MODEL.CLIPSELF
    if clipself.REGIONS not in (PATCHES, PROPOSALS):
        yield f"{KEYS}.REGIONS: '{clipself.REGIONS}' is neither {PATCHES} nor {PROPOSALS}"
    for key in ("REGIONS_PER_IMAGE", "MAX_ROWS", "IMAGE_SIZE"):
        if clipself[key] < 1:
            yield f"{KEYS}.{key}: {clipself[key]}, expected at least 1"
    area = clipself.PROPOSAL_AREA
    if len(area) != 2 or not 0 <= area[0] <= area[1]:
        yield f"{KEYS}.PROPOSAL_AREA: {area} is not (smallest, largest) in square pixels"
    if clipself.CROP_SCALE <= 0:
        yield f"{KEYS}.CROP_SCALE: {clipself.CROP_SCALE} is not positive"
    if clipself.WINDOW_SIZE < 0:
        yield f"{KEYS}.WINDOW_SIZE: {clipself.WINDOW_SIZE} is negative; 0: global attention"
    if not 0 <= clipself.ALPHA <= 1:
        yield f"{KEYS}.ALPHA: {clipself.ALPHA} is not between 0 and 1"
    yield from _input_problems(cfg)
    if cfg.TEST.OVD.VALIDATION_LOSS:
        yield "TEST.OVD.VALIDATION_LOSS must be False: test images have no regions to distil"


def _input_problems(cfg: CfgNode) -> Iterable[str]:
    """Student and crops are of one image: its longest side is scaled, and nothing else is done."""
    size, jitter = cfg.MODEL.CLIPSELF.IMAGE_SIZE, cfg.INPUT.LSJ
    wanted: dict[str, tuple[Any, Any]] = {
        "FORMAT": (cfg.INPUT.FORMAT, "RGB"),
        "RESIZE": (cfg.INPUT.RESIZE, "pillow_bicubic"),
        "RANDOM_FLIP": (cfg.INPUT.RANDOM_FLIP, "none"),
        "LSJ.ENABLED": (jitter.ENABLED, True),
        "LSJ.SIZE": (jitter.SIZE, size),
        "LSJ.MIN_SCALE": (jitter.MIN_SCALE, 1.0),
        "LSJ.MAX_SCALE": (jitter.MAX_SCALE, 1.0),
        "LSJ.PAD": (jitter.PAD, False),
    }
    for key, (found, expected) in wanted.items():
        if found != expected:
            yield (
                f"INPUT.{key} is {found!r}, expected {expected!r}: the student sees the whole "
                f"image, its longest side scaled to {KEYS}.IMAGE_SIZE {size}"
            )


def problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    """A teacher with a ViT; proposals of every training image."""
    yield from _teacher_problems(cfg)
    if not context.training or cfg.MODEL.CLIPSELF.REGIONS != PROPOSALS:
        return
    try:
        yield from open_proposals(cfg.MODEL.CLIPSELF.PROPOSALS).problems(context.training_images)
    except SetupError as error:
        yield from error.problems


def _teacher_problems(cfg: CfgNode) -> Iterable[str]:
    clipself, key = cfg.MODEL.CLIPSELF, "MODEL.OVD.TEACHER"
    try:
        teacher = configured_teacher(cfg, device="cpu")
        DenseViT(teacher.visual, global_blocks=clipself.GLOBAL_ATTENTION_BLOCKS)
    except SetupError as error:
        yield from error.problems
        return
    except ValueError as error:  # of DenseViT
        yield f"{key} {teacher.architecture}, {KEYS}.GLOBAL_ATTENTION_BLOCKS: {error}"
        return
    height, width = teacher.image_size
    if height != width:
        yield f"{key} {teacher.architecture} takes {height}x{width} images, expected squares"


def idle_keys(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Keys that the variant does not read."""
    clipself = cfg.MODEL.CLIPSELF
    if clipself.REGIONS == PATCHES:
        keys = tuple(f"{KEYS}.{key}" for key in ("PROPOSALS", "PROPOSAL_AREA", "CROP_SCALE"))
        yield keys, f"{KEYS}.REGIONS is {PATCHES}"
    if clipself.REGIONS == PROPOSALS:
        yield (f"{KEYS}.MAX_ROWS",), f"{KEYS}.REGIONS is {PROPOSALS}"
    if not clipself.WINDOW_SIZE:
        yield (f"{KEYS}.GLOBAL_ATTENTION_BLOCKS",), f"{KEYS}.WINDOW_SIZE is 0"
