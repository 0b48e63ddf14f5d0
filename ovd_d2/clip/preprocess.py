"""From a crop of any size to the input of an image encoder: open_clip's inference transform, fast.

`Preprocessing.prepare` gives the pixels of `open_clip.transform.image_transform_v2` (up to the
rounding of 8-bit intermediates) with one Pillow resize per image and one normalisation per batch.
The many crops of one image go through `ovd_d2.clip.device_crops`, which is faster still and takes
from here where open_clip's transform would put them (`Preprocessing.placement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """What open_clip's `PreprocessCfg` says, with plain types.

    Attributes:
        image_size: (height, width) in pixels.
        mean, std: per RGB channel, for pixels in [0, 1].
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (resize the shorter side, crop the centre), "longest" (resize the
            longer side, pad) or "squash" (ignore the aspect ratio).
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    @classmethod
    def from_open_clip(cls, cfg: dict[str, Any]) -> Preprocessing:
        """From the dict that `open_clip.get_model_preprocess_cfg(model)` returns."""
        full = PreprocessCfg(**cfg)
        size = full.size
        return cls(
            image_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            mean=tuple(float(value) for value in full.mean),
            std=tuple(float(value) for value in full.std),
            # open_clip's "random" concerns training only; at inference it means bicubic
            interpolation="bilinear" if full.interpolation == "bilinear" else "bicubic",
            resize_mode=full.resize_mode,
        )

    def prepare(self, crops: Sequence[Image.Image]) -> torch.Tensor:
        """K RGB images of any size -> (K, 3, h, w) float32."""
        if not crops:
            return torch.zeros(0, 3, *self.image_size)
        square = self.image_size[0] == self.image_size[1]
        if self.resize_mode == "squash" or (self.resize_mode == "shortest" and square):
            return self._normalise(np.stack([self._fit(crop) for crop in crops]))
        transform = image_transform_v2(self._open_clip_cfg(), is_train=False)
        return torch.stack([transform(crop) for crop in crops])

    def placement(
        self, sizes: torch.Tensor, *, squash: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where open_clip's transform puts images: what they are resized to and what is cut out.

        Args:
            sizes: (K, 2) int64 (height, width) of the images, at least 1.
            squash: overrides `resize_mode`.

        Returns:
            (K, 2) int64 resized (height, width), and (K, 2) int64 (y, x) of the encoder's input in
            the resized image; negative where the input is larger and the image is padded.
        """
        target = torch.tensor(self.image_size)  # (2,)
        mode = "squash" if squash else self.resize_mode
        if mode == "squash":
            resized = target.expand_as(sizes)
        elif mode == "shortest" and target[0] == target[1]:
            short = sizes.min(dim=1, keepdim=True).values
            resized = target[0] * sizes // short  # torchvision truncates the longer side
        else:
            ratios = sizes / target
            ratio = ratios.amax(1, True) if mode == "longest" else ratios.amin(1, True)
            resized = (sizes / ratio).round().long().clamp(min=1)
        spare = resized - target
        # torchvision rounds the corner of the centre crop half to even; the padding rounds down
        offset = torch.where(spare < 0, -(-spare // 2), (spare / 2.0).round().long())
        return resized, offset

    def _open_clip_cfg(self) -> PreprocessCfg:
        return PreprocessCfg(
            size=self.image_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            resize_mode=self.resize_mode,
        )

    def _fit(self, crop: Image.Image) -> np.ndarray:
        """One resize straight to (h, w, 3) uint8.

        For "shortest" Pillow's `box` names the part of the crop that survives torchvision's resize
        and centre crop: the same pixels, and the ends of long crops are never computed.
        """
        height, width = self.image_size
        box: tuple[float, float, float, float] = (0, 0, crop.width, crop.height)
        if self.resize_mode == "shortest":
            box = _centre_box(crop.width, crop.height, height)
        return np.asarray(crop.resize((width, height), _RESAMPLING[self.interpolation], box=box))

    def _normalise(self, pixels: np.ndarray) -> torch.Tensor:
        """(K, h, w, 3) uint8 -> (K, 3, h, w) float32."""
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.std).view(1, 3, 1, 1)
        return batch.sub_(mean).div_(std)


def _centre_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """The source region of "resize the shorter side to `size`, crop the centre size x size"."""
    if width <= height:
        top, bottom = _centre_span(height, width, size)
        return 0, top, width, bottom
    left, right = _centre_span(width, height, size)
    return left, 0, right, height


def _centre_span(long: int, short: int, size: int) -> tuple[float, float]:
    resized = int(size * long / short)  # torchvision truncates the longer side
    offset = int(round((resized - size) / 2.0))  # and rounds the crop's corner
    scale = long / resized
    return offset * scale, min((offset + size) * scale, long)
