"""Teacher embeddings of region proposals.

ViLD's recipe (Gu et al., arXiv 2104.13921, section 3.3): each proposal is cut out of the original
image at 1x and at 1.5x its box, both crops go through the teacher, and the two embeddings are
averaged and normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ovd_d2.clip.device_crops import resize_crops
from ovd_d2.clip.recipe import Recipe, Source, checked_batch_size, precision, uses_amp
from ovd_d2.clip.teacher import CLIPTeacher

RESIZE_CHOICES = ("open_clip", "squash")
BATCH_SIZE = 256  # crops


@dataclass(frozen=True)
class CropRecipe:
    """A :class:`ovd_d2.clip.recipe.Recipe`: a proposal's embedding is that of crops of the image.

    Attributes:
        scales: one crop per scale; their embeddings are averaged.
        resize: "open_clip" is the teacher's own inference transform, for most models: resize the
            shorter side, then crop the centre, so an elongated box loses its ends. "squash"
            resizes to the input size whatever the aspect ratio, so nothing is lost.
        amp: the teacher computes in bfloat16 where PyTorch's autocast says so.

    Raises:
        ValueError: no scale, one that is not positive, or no such `resize`.
    """

    scales: tuple[float, ...] = (1.0, 1.5)
    resize: str = "open_clip"
    amp: bool = False
    whole_images = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales are {self.scales}, expected positive ones, as (1.0, 1.5)")
        if self.resize not in RESIZE_CHOICES:
            choices = ", ".join(RESIZE_CHOICES)
            raise ValueError(f"unknown resize '{self.resize}'; choices: {choices}")

    @classmethod
    def on(
        cls, device: torch.device, *, resize: str = "open_clip", amp: bool | None = None
    ) -> CropRecipe:
        """The recipe of a cache built on a device: unless `amp` says otherwise, bfloat16 on CUDA.

        Raises:
            ValueError: `amp` elsewhere than on CUDA; no such `resize`.
        """
        return cls(resize=resize, amp=uses_amp(device, amp))

    def describe(self) -> dict[str, Any]:
        """What a cache manifest says about how crops became embeddings."""
        return {
            "scales": [float(scale) for scale in self.scales],
            "average": "mean-then-normalise",
            "corners": "floor-ceil-clamp",
            "resize": self.resize,
            "resampling": "antialias-uint8",
            "precision": precision(self.amp),
        }

    def problems(self, teacher: CLIPTeacher) -> list[str]:
        """None: any teacher encodes crops."""
        return []

    def per_pass(self, batch_size: int | None) -> int:
        """Crops; by default 256."""
        return checked_batch_size(BATCH_SIZE if batch_size is None else batch_size)

    def windows(self, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(K, 4) boxes -> (K * S, 4) int64: those of a box at every scale, then the next box's.

        Raises:
            ValueError: boxes with NaN.
        """
        found = [scaled_boxes(boxes, scale, height, width) for scale in self.scales]
        return torch.stack(found, dim=1).flatten(0, 1)

    def encode(
        self, sources: Sequence[Source], teacher: CLIPTeacher, *, fill_to: int = 0
    ) -> torch.Tensor:
        """Crops the windows of images and embeds them as one batch.

        Args:
            sources: images and their windows, n in all.
            teacher: the image encoder; it gives size, mean, std and interpolation.
            fill_to: black images follow until the batch has this many.

        Returns:
            (n, D) float32 unit rows on the teacher's device.
        """
        count = sum(len(windows) for _, windows in sources)
        crops = resize_crops(
            sources, teacher.preprocessing, squash=self.resize == "squash", fill_to=fill_to
        )
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=self.amp):
            return teacher.encode_images(crops)[:count]

    def combine(self, rows: torch.Tensor) -> torch.Tensor:
        """(K * S, D) rows in the order of `windows` -> (K, D) unit rows, their means."""
        of_boxes = rows.view(-1, len(self.scales), rows.shape[1])
        return F.normalize(of_boxes.mean(dim=1), dim=1)


VILD_RECIPE = CropRecipe()


def embed_proposals(
    image: np.ndarray,
    boxes: torch.Tensor,
    teacher: CLIPTeacher,
    recipe: Recipe = VILD_RECIPE,
    batch_size: int = BATCH_SIZE,
) -> torch.Tensor:
    """Embeds the proposals of one image.

    Many images are embedded faster by `ovd_d2.clip.pipeline`, which fills its batches.

    Args:
        image: (H, W, 3) uint8 RGB, at its original size.
        boxes: (K, 4) float XYXY in pixels of `image`; K >= 0.
        teacher: the image encoder.
        recipe: how.
        batch_size: crops encoded at once; the result does not depend on it. A recipe of whole
            images does not read it.

    Returns:
        (K, D) float32 unit rows on the CPU, in the order of `boxes`.
    """
    windows = recipe.windows(boxes, image.shape[0], image.shape[1])
    pixels = image_on_device(image, teacher.device)
    if not len(windows):
        return torch.zeros(0, teacher.embedding_dim)
    parts = (windows,) if recipe.whole_images else windows.split(batch_size)
    rows = [recipe.encode([(pixels, part)], teacher) for part in parts]
    return recipe.combine(torch.cat(rows).cpu())


def scaled_boxes(boxes: torch.Tensor, scale: float, height: int, width: int) -> torch.Tensor:
    """Integer crop windows: boxes scaled about their centres, rounded outwards, clamped.

    Args:
        boxes: (K, 4) float XYXY in pixels.
        scale: positive; 1 keeps the box, 1.5 adds context.
        height, width: of the image, pixels.

    Returns:
        (K, 4) int64 XYXY with 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height: a window has at
        least one pixel, even for a box without area or outside the image.
    """
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


def image_on_device(image: np.ndarray, device: torch.device) -> torch.Tensor:
    """(H, W, 3) uint8 RGB pixels as a contiguous tensor on the device; checks their form."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"expected an image of shape (H, W, 3) and dtype uint8, got {image.shape} {image.dtype}"
        )
    if not image.flags.writeable:  # from_numpy warns, though nothing is written here
        image = image.copy()
    return torch.from_numpy(np.ascontiguousarray(image)).to(device)
