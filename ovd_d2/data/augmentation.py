"""The geometric augmentations of training and testing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Large-scale jitter where `INPUT.LSJ.ENABLED` (training only), else Detectron2's own list.

    Jitter (ViLD: 0.1-2.0 at 1024): scale by a random factor of the square SIZE, crop or pad to
    SIZE x SIZE, flip. Every resize is as `INPUT.RESIZE` says (:class:`ResizeBy`), and sizes that
    follow from the shortest edge as `INPUT.SIZE_RULE` does.
    """
    augmentations = _augmentations(cfg, is_train)
    if cfg.INPUT.SIZE_RULE == TRUNCATED:
        augmentations = [
            TruncatedShortestEdge(one.short_edge_length, one.max_size, one.is_range)
            if isinstance(one, T.ResizeShortestEdge)
            else one
            for one in augmentations
        ]
    if cfg.INPUT.RESIZE == PILLOW:
        return augmentations
    resizes = (T.ResizeScale, T.ResizeShortestEdge)
    return [
        ResizeBy(one, cfg.INPUT.RESIZE) if isinstance(one, resizes) else one
        for one in augmentations
    ]


def _augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    if not (is_train and cfg.INPUT.LSJ.ENABLED):
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return augmentations
    jitter = cfg.INPUT.LSJ
    scaled: list[T.Augmentation] = [
        T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.SIZE, jitter.SIZE),
        T.FixedSizeCrop((jitter.SIZE, jitter.SIZE), pad=jitter.PAD),
    ]
    if cfg.INPUT.RANDOM_FLIP == "none":
        return scaled
    horizontal = cfg.INPUT.RANDOM_FLIP == "horizontal"
    flip = T.RandomFlip(horizontal=horizontal, vertical=not horizontal)
    return [flip, *scaled] if jitter.FLIP_FIRST else [*scaled, flip]


ROUNDED, TRUNCATED = "rounded", "truncated"
SIZE_RULES = (ROUNDED, TRUNCATED)  # INPUT.SIZE_RULE


class TruncatedShortestEdge(T.ResizeShortestEdge):
    """Detectron2's with the sizes of maskrcnn-benchmark (:func:`truncated_size`)."""

    def __init__(self, short_edge_length: Sequence[int], max_size: int, is_range: bool) -> None:
        style = "range" if is_range else "choice"
        super().__init__(tuple(short_edge_length), max_size, style)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draws as Detectron2's does."""
        height, width = image.shape[:2]
        lengths = self.short_edge_length
        if self.is_range:
            drawn = int(np.random.randint(lengths[0], lengths[1] + 1))
        else:
            drawn = int(np.random.choice(lengths))
        if drawn == 0:
            return T.NoOpTransform()
        size = truncated_size(height, width, Resize(drawn, self.max_size))
        return T.ResizeTransform(height, width, *size, self.interp)


def truncated_size(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """(height, width) by maskrcnn-benchmark's rule: one edge is exact, the other cut to a whole
    number, and it is the shortest edge that the longest one's limit rounds."""
    short, long = sorted((height, width))
    edge = resize.shortest
    if long / short * edge > resize.longest:
        edge = round(resize.longest * short / long)
    other = int(edge * long / short)
    return (edge, other) if height <= width else (other, edge)


class TensorFlowResizeTransform(T.ResizeTransform):
    """Bilinear resizing as TensorFlow 1's `resize_bilinear`: no antialiasing, no half-pixel shift.

    Pixel k of the result lies at k / scale of the image; Pillow's, which Detectron2 uses, has its
    middle at (k + 0.5) / scale and averages what it skips.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(H, W) or (H, W, C) of any type -> float32, not rounded; with `interp`, label maps and
        the like, as Detectron2's."""
        if interp is not None:
            return super().apply_image(img, interp)
        rows = _interpolated(img.astype(np.float32), self.new_h, axis=0)
        return _interpolated(rows, self.new_w, axis=1)


def _interpolated(x: np.ndarray, size: int, axis: int) -> np.ndarray:
    places = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
    first = np.floor(places).astype(int)
    second = np.minimum(first + 1, x.shape[axis] - 1)
    share = (places - first.astype(np.float32)).reshape(
        [-1 if k == axis else 1 for k in range(x.ndim)]
    )
    begin = x.take(first, axis)
    return begin + (x.take(second, axis) - begin) * share


class OpenCVResizeTransform(T.ResizeTransform):
    """Bilinear resizing as OpenCV's (and mmcv's), which averages nothing that it skips."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(H, W) or (H, W, C) -> the same type; with `interp` as Detectron2's."""
        if interp is not None:
            return super().apply_image(img, interp)
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


class BicubicResizeTransform(T.ResizeTransform):
    """Pillow's bicubic resizing, which averages what it skips."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int) -> None:
        super().__init__(h, w, new_h, new_w, interp=Image.Resampling.BICUBIC)


PILLOW = "pillow"
# INPUT.RESIZE -> the transform in the place of Detectron2's bilinear resizing by Pillow
RESIZE_TRANSFORMS: dict[str, type[T.ResizeTransform]] = {
    "tensorflow": TensorFlowResizeTransform,
    "opencv": OpenCVResizeTransform,
    "pillow_bicubic": BicubicResizeTransform,
}
RESIZES = (PILLOW, *RESIZE_TRANSFORMS)


class ResizeBy(T.Augmentation):
    """Another augmentation's size by one of `RESIZE_TRANSFORMS`."""

    def __init__(self, resize: T.Augmentation, method: str) -> None:
        super().__init__()
        self.resize = resize
        self.method = method

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """See :meth:`T.Augmentation.get_transform`."""
        found = self.resize.get_transform(image)
        if not isinstance(found, T.ResizeTransform):
            return found  # nothing to resize
        return RESIZE_TRANSFORMS[self.method](found.h, found.w, found.new_h, found.new_w)


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
        if isinstance(one, ResizeBy):
            return smallest_of([one.resize])
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
