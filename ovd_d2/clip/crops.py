"""Teacher embeddings of region proposals.

ViLD's recipe (Gu et al., arXiv 2104.13921, section 3.3): each proposal is cut out of the original
image at 1x and at 1.5x its box, both crops go through the teacher, and the two embeddings are
averaged and normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ovd_d2.clip.device_crops import resize_crops
from ovd_d2.clip.teacher import CLIPTeacher

DEFAULT_SCALES = (1.0, 1.5)
RESIZE_CHOICES = ("open_clip", "squash")


def crop_recipe(
    scales: Sequence[float] = DEFAULT_SCALES, resize: str = "open_clip", *, amp: bool = False
) -> dict[str, Any]:
    """What a cache manifest says about how crops became embeddings."""
    return {
        "scales": [float(scale) for scale in scales],
        "average": "mean-then-normalise",
        "corners": "floor-ceil-clamp",
        "resize": resize,
        "resampling": "antialias-uint8",
        "precision": "bfloat16-autocast" if amp else "float32",
    }


CROP_RECIPE: dict[str, Any] = crop_recipe()
"""The recipe of `embed_proposals` with default arguments."""


def scaled_boxes(boxes: torch.Tensor, scale: float, height: int, width: int) -> torch.Tensor:
    """Integer crop windows: boxes scaled about their centres, rounded outwards, clamped.

    Args:
        boxes: (K, 4) float XYXY in pixels.
        scale: 1 keeps the box, 1.5 adds context.
        height, width: of the image, pixels.

    Returns:
        (K, 4) int64 XYXY with 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height: a window has at
        least one pixel, even for a box without area or outside the image.
    """
    if scale <= 0:
        raise ValueError(f"crop scale must be positive, got {scale}")
    corners = boxes.detach().cpu().double().reshape(-1, 2, 2)  # double: exact for float32 input
    if not torch.isfinite(corners).all():
        raise ValueError("boxes hold NaN or infinity; filter them before cropping")
    centre = corners.mean(dim=1)  # (K, 2)
    half = (corners[:, 1] - corners[:, 0]).clamp(min=0) / 2 * scale
    limit = torch.tensor([width, height])
    low = (centre - half).floor().long().clamp(min=0)
    low = torch.minimum(low, limit - 1)
    high = torch.minimum((centre + half).ceil().long(), limit)
    high = torch.maximum(high, low + 1)
    return torch.cat([low, high], dim=1)


def crop_windows(
    boxes: torch.Tensor, scales: Sequence[float], height: int, width: int
) -> torch.Tensor:
    """(K, 4) boxes -> (K * S, 4) int64 windows: those of a box at every scale, then the next box's.

    Raises:
        ValueError: no scale, a scale that is not positive, or boxes with NaN.
    """
    if not scales:
        raise ValueError("scales is empty; ViLD's recipe is (1.0, 1.5)")
    windows = [scaled_boxes(boxes, scale, height, width) for scale in scales]
    return torch.stack(windows, dim=1).flatten(0, 1)


def average_scales(embeddings: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """(K * S, D) embeddings in the order of `crop_windows` -> (K, D) unit rows."""
    rows = embeddings.view(-1, len(scales), embeddings.shape[1])
    return F.normalize(rows.mean(dim=1), dim=1)


def crop_batch(
    image: np.ndarray,
    boxes: torch.Tensor,
    scale: float,
    teacher: CLIPTeacher,
    *,
    resize: str = "open_clip",
) -> torch.Tensor:
    """Cuts the boxes out of an image and prepares them for the teacher.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (K, 4) float XYXY in pixels of `image`.
        scale: see `scaled_boxes`.
        teacher: gives size, mean, std, interpolation and device.
        resize: "open_clip" is the teacher's own inference transform, for most models: resize the
            shorter side, then crop the centre, so an elongated box loses its ends. "squash"
            resizes to the input size whatever the aspect ratio, so nothing is lost.

    Returns:
        (K, 3, h, w) float32, normalised, on the teacher's device.
    """
    windows = crop_windows(boxes, [scale], image.shape[0], image.shape[1])
    source = (image_on_device(image, teacher.device), windows)
    return resize_crops([source], teacher.preprocessing, squash=is_squash(resize))


def embed_proposals(
    image: np.ndarray,
    boxes: torch.Tensor,
    teacher: CLIPTeacher,
    scales: Sequence[float] = DEFAULT_SCALES,
    batch_size: int = 256,
    *,
    resize: str = "open_clip",
) -> torch.Tensor:
    """Embeds the proposals of one image by `crop_recipe(scales, resize)`.

    Many images are embedded faster by `ovd_d2.clip.pipeline`, which fills its batches.

    Args:
        image: (H, W, 3) uint8 RGB, at its original size.
        boxes: (K, 4) float XYXY in pixels of `image`; K >= 0.
        teacher: the image encoder.
        scales: one crop a scale.
        batch_size: crops encoded at once; the result does not depend on it.
        resize: see `crop_batch`.

    Returns:
        (K, D) float32 unit rows on the CPU, in the order of `boxes`.
    """
    windows = crop_windows(boxes, scales, image.shape[0], image.shape[1])
    squash, pixels = is_squash(resize), image_on_device(image, teacher.device)
    if not len(windows):
        return torch.zeros(0, teacher.embedding_dim)
    embeddings = [
        teacher.encode_images(resize_crops([(pixels, part)], teacher.preprocessing, squash=squash))
        for part in windows.split(batch_size)
    ]
    return average_scales(torch.cat(embeddings).cpu(), scales)


def image_on_device(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """(H, W, 3) uint8 RGB pixels as a contiguous tensor on the device; checks their form."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"expected an image of shape (H, W, 3) and dtype uint8, got {image.shape} {image.dtype}"
        )
    if not image.flags.writeable:  # from_numpy warns, though nothing is written here
        image = image.copy()
    return torch.from_numpy(np.ascontiguousarray(image)).to(device)


def is_squash(resize: str) -> bool:
    """Checks one of RESIZE_CHOICES; True where it overrides the teacher's own transform."""
    if resize not in RESIZE_CHOICES:
        raise ValueError(f"unknown resize '{resize}'; choices: {', '.join(RESIZE_CHOICES)}")
    return resize == "squash"
