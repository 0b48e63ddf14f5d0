"""The geometric augmentations of training and testing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Large-scale jitter where `INPUT.LSJ.ENABLED` (training only), else Detectron2's own list.

    Jitter (ViLD: 0.1-2.0 at 1024): scale by a random factor of the square SIZE, crop or pad to
    SIZE x SIZE, flip.
    """
    if not (is_train and cfg.INPUT.LSJ.ENABLED):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return augmentations
    size = cfg.INPUT.LSJ.SIZE
    jitter: list[T.Augmentation] = [
        T.ResizeScale(cfg.INPUT.LSJ.MIN_SCALE, cfg.INPUT.LSJ.MAX_SCALE, size, size),
        T.FixedSizeCrop((size, size)),
    ]
    if cfg.INPUT.RANDOM_FLIP != "none":
        horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
        jitter.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    return jitter


class Resize(NamedTuple):
    """Scaling to a shortest edge, but to no longer a longest edge than the other number, px."""

    shortest: int
    longest: int


def smallest_resize(cfg: CfgNode, is_train: bool) -> Resize | None:
    """The strongest reduction that :func:`build_augmentations` may draw; None where it has none."""
    if is_train and cfg.INPUT.LSJ.ENABLED:
        side = int(cfg.INPUT.LSJ.SIZE * cfg.INPUT.LSJ.MIN_SCALE)
        return Resize(side, side)
    sizes = cfg.INPUT.MIN_SIZE_TRAIN if is_train else [cfg.INPUT.MIN_SIZE_TEST]
    longest = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
    shortest = min(sizes)
    return Resize(shortest, longest) if shortest > 0 else None  # 0: Detectron2 leaves the size


def smallest_of(augmentations: Sequence[T.Augmentation]) -> Resize | None:
    """As :func:`smallest_resize`, of augmentations that are made; None where none of them scales
    in a way that is known here."""
    for one in augmentations:
        if isinstance(one, T.ResizeShortestEdge):
            shortest = min(one.short_edge_length)
            return Resize(shortest, int(min(one.max_size, _UNLIMITED))) if shortest > 0 else None
        if isinstance(one, T.ResizeScale):
            side = int(min(one.target_height, one.target_width) * one.min_scale)
            return Resize(side, side)
    return None


_UNLIMITED = 2**31  # px; ResizeShortestEdge's default is the largest integer


def resized(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """(height, width) that Detectron2 gives an image; may be 0 where it is long and thin."""
    size: tuple[int, int] = T.ResizeShortestEdge.get_output_shape(height, width, *resize)
    return size
