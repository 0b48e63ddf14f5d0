"""Embeddings of all proposals of an image out of one pass of a ViT.

A map of CLIPSelf's (Wu et al., arXiv 2310.01403) in place of ViLD's crops: what a proposal costs is
a RoIAlign. A ViT that was not refined for it is a poor judge of regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ovd_d2.clip.dense.regions import roi_features
from ovd_d2.clip.dense.vit import DenseViT
from ovd_d2.clip.device_crops import resize_crops
from ovd_d2.clip.preprocess import Preprocessing
from ovd_d2.clip.recipe import Source, checked_batch_size, precision, uses_amp
from ovd_d2.clip.teacher import CLIPTeacher


@dataclass(frozen=True)
class DenseRecipe:
    """A :class:`ovd_d2.clip.recipe.Recipe`: a proposal's embedding is pooled from a dense map.

    The image is resized by the teacher's own interpolation, its longer side to `size`, padded with
    black at the right and bottom, and goes through :class:`ovd_d2.clip.dense.DenseViT` once.

    Attributes:
        size: pixels of the longer side.
        square: pad to size x size, as CLIPSelf was trained; else only to whole patches, which is
            less work. Squares alone can share a pass: their shapes are all the same.
        window: patches per side of the windows that attention stays within; 0: it is global.
        global_blocks: blocks (from 0) whose attention is global all the same.
        amp: the teacher computes in bfloat16 where PyTorch's autocast says so.

    Raises:
        ValueError: a size below 1, a negative window, blocks that are global without any window.
    """

    size: int = 1024
    square: bool = False
    window: int = 0
    global_blocks: tuple[int, ...] = ()
    amp: bool = False
    whole_images = True

    def __post_init__(self) -> None:
        # a LazyConfig gives a list
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel, as 1024")
        if self.window < 0:
            raise ValueError(f"window is {self.window}, expected patches per side, 0 for none")
        if self.global_blocks and not self.window:
            raise ValueError(
                f"global_blocks are {self.global_blocks}, but without a window all blocks are "
                "global: give a window, or leave them out"
            )

    @classmethod
    def on(cls, device: torch.device, *, amp: bool | None = None, **options: Any) -> DenseRecipe:
        """The recipe of a cache built on a device: unless `amp` says otherwise, bfloat16 on CUDA.

        Args:
            options: the other attributes.

        Raises:
            ValueError: `amp` elsewhere than on CUDA; an option that cannot be meant.
        """
        return cls(amp=uses_amp(device, amp), **options)

    def describe(self) -> dict[str, Any]:
        """What a cache manifest says about how an image became embeddings."""
        return {
            "teacher": "dense",
            "size": self.size,
            "padding": "square" if self.square else "whole-patches",
            "window": self.window,
            "global_blocks": list(self.global_blocks),
            "pooling": "unit-map-roi-align-1x1",
            "corners": "clamp-one-pixel",
            "resampling": "antialias-uint8",
            "precision": precision(self.amp),
        }

    def problems(self, teacher: CLIPTeacher) -> list[str]:
        """Whether the teacher is a ViT that has dense features, and the global blocks."""
        try:
            self._network(teacher)
        except ValueError as error:
            return [f"{teacher.architecture} cannot embed proposals densely: {error}"]
        return []

    def per_pass(self, batch_size: int | None) -> int:
        """Images; by default 1, and more of squares alone."""
        if batch_size is None:
            return 1
        if batch_size > 1 and not self.square:
            raise ValueError(
                f"batch_size is {batch_size} images, expected 1: images of different shapes share "
                "no pass; make them square, or leave it out"
            )
        return checked_batch_size(batch_size)

    def windows(self, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(K, 4) boxes -> (K, 4) float64: inside the image and at least one pixel large.

        As the crops' 1x windows, but for the rounding to whole pixels.

        Raises:
            ValueError: boxes with NaN or infinity.
        """
        corners = boxes.detach().cpu().double().reshape(-1, 2, 2)
        if not torch.isfinite(corners).all():
            raise ValueError("boxes hold NaN or infinity; filter them before embedding")
        limit = torch.tensor([width, height], dtype=torch.float64)
        low = torch.minimum(corners[:, 0].clamp(min=0), limit - 1)
        high = torch.maximum(torch.minimum(corners[:, 1], limit), low + 1)
        return torch.cat([low, high], dim=1)

    @torch.no_grad()
    def encode(
        self, sources: Sequence[Source], teacher: CLIPTeacher, *, fill_to: int = 0
    ) -> torch.Tensor:
        """Images as one batch through the ViT, and their windows pooled.

        Args:
            sources: images, of which all have one shape once they are padded, and their windows,
                n in all.
            teacher: a ViT with dense features.
            fill_to: black images follow until the batch has this many.

        Returns:
            (n, D) float32 unit rows on the teacher's device.
        """
        network = self._network(teacher)
        fitted = [self._fitted(pixels, teacher, network.patch_size) for pixels, _ in sources]
        images = torch.cat([one for one, _ in fitted])
        if fill_to > len(images):
            shape = fill_to - len(images), *images.shape[1:]
            images = torch.cat([images, _black(teacher.preprocessing, shape, images.device)])
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=self.amp):
            maps = network.dense_features(images)[: len(sources)]
        rows = roi_features(maps, [windows for _, windows in sources], [size for _, size in fitted])
        return F.normalize(rows, dim=1)

    def combine(self, rows: torch.Tensor) -> torch.Tensor:
        """(K, D) unit rows as they are: a box has one window."""
        return rows

    def _network(self, teacher: CLIPTeacher) -> DenseViT:
        return DenseViT(teacher.visual, window=self.window, global_blocks=self.global_blocks)

    def _fitted(
        self, pixels: torch.Tensor, teacher: CLIPTeacher, patch: int
    ) -> tuple[torch.Tensor, tuple[float, float]]:
        """(H, W, 3) uint8 -> (1, 3, h, w), whole patches, and (height, width) in the image's pixels
        of what that shows, padding included."""
        height, width = pixels.shape[:2]
        scale = self.size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        preprocessing = replace(
            teacher.preprocessing, image_size=(tall, wide), resize_mode="squash"
        )
        resized = resize_crops([(pixels, torch.tensor([[0, 0, width, height]]))], preprocessing)
        h, w = (self.size, self.size) if self.square else (tall, wide)
        h, w = h + -h % patch, w + -w % patch
        image = _black(preprocessing, (1, 3, h, w), pixels.device)
        image[:, :, :tall, :wide] = resized
        return image, (h * height / tall, w * width / wide)


def _black(
    preprocessing: Preprocessing, shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """(B, 3, h, w) of black pixels, normalised."""
    mean, std = (torch.tensor(v, device=device) for v in (preprocessing.mean, preprocessing.std))
    return (-mean / std)[:, None, None].expand(shape).contiguous()
