"""Region pooling out of a feature pyramid with strides of any kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_align

FINEST_SIDE = 56.0  # pixels: regions up to twice this side are pooled from the first level
EPSILON = 1e-6


class LevelPooler(nn.Module):
    """RoIAlign from the level that the size of a region asks for.

    Detectron2's `ROIPooler` with "ROIAlignV2", for any strides: a ViT with patches of 14 pixels has
    a pyramid of strides 3.5, 7, 14, 28, which that one refuses. Levels go by the region's side in
    pixels alone, as in mmdetection.
    """

    def __init__(self, output_size: int, strides: Sequence[float], sampling_ratio: int = 0) -> None:
        """
        Args:
            output_size: bins of a side.
            strides: of each level, rising.
            sampling_ratio: samples per bin and side; 0: as many as there are cells.
        """
        super().__init__()
        self.output_size = (output_size, output_size)
        self.strides = tuple(strides)
        self.sampling_ratio = sampling_ratio

    def forward(self, x: Sequence[Tensor], box_lists: Sequence[Boxes]) -> Tensor:
        """Levels (B, C, H, W) and B lists of boxes -> (N, C, output_size, output_size)."""
        boxes = torch.cat([one.tensor for one in box_lists])
        images = [torch.full_like(one.tensor[:, :1], k) for k, one in enumerate(box_lists)]
        regions = torch.cat([torch.cat(images), boxes], dim=1)  # (N, 5)
        levels = self.levels(boxes)
        places = [(levels == k).nonzero(as_tuple=True)[0] for k in range(len(self.strides))]
        pooled = [
            roi_align(
                level,
                regions[here].to(level),
                self.output_size,
                1 / stride,
                self.sampling_ratio,
                aligned=True,
            )
            for level, stride, here in zip(x, self.strides, places, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(places).argsort()]

    def levels(self, boxes: Tensor) -> Tensor:
        """(N, 4) XYXY -> (N,) int64 numbers of levels."""
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        levels = torch.log2(sides / FINEST_SIDE + EPSILON).floor()
        return levels.clamp(min=0, max=len(self.strides) - 1).long()


def level_pooler(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], head: str) -> LevelPooler:
    """The pooler of `MODEL.ROI_{head}_HEAD`, over `MODEL.ROI_HEADS.IN_FEATURES`."""
    options = cfg.MODEL[f"ROI_{head}_HEAD"]
    strides = [float(input_shape[name].stride or 1) for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    return LevelPooler(options.POOLER_RESOLUTION, strides, options.POOLER_SAMPLING_RATIO)


def has_fractional_strides(shapes: Mapping[str, ShapeSpec]) -> bool:
    """Whether Detectron2's pooler refuses some of them: no powers of two."""
    return any(not math.log2(one.stride or 1).is_integer() for one in shapes.values())


def with_whole_strides(shapes: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The same shapes, with the nearest powers of two for strides: for code that wants such."""
    return {
        name: replace(one, stride=2 ** round(math.log2(one.stride or 1)))
        for name, one in shapes.items()
    }
