"""The segments of an image, from COCO's panoptic format: boxes, crops and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.data.passengers import MappedImage, Passenger
from ovd_d2.projects.clipself.crops import enlarged, fitted_crop, pixel_windows

SEGMENTS = "segments"  # key of a test input
LIMIT = 100  # segments per image
AREA = (8**2, 1024**2)  # of a segment's box, square pixels of the original image
CROP_SCALE = 1.5  # of a thing's box; the crop of stuff is its box


@dataclass(frozen=True)
class Segments:
    """K segments of one image, those that count.

    Attributes:
        id_map: (H, W) int32, the segment of each pixel; 0 where there is none.
        ids: (K,) int32, in `id_map`.
        classes: (K,) int64, places in the vocabulary.
        is_thing: (K,) bool.
        boxes: (K, 4) float32 XYXY in pixels of the original image.
        crop_boxes: (K, 4) float32, what an image crop shows of each.
        crops: (K, 3, s, s) uint8 RGB, or None where they are not wanted.
    """

    id_map: Tensor
    ids: Tensor
    classes: Tensor
    is_thing: Tensor
    boxes: Tensor
    crop_boxes: Tensor
    crops: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original image."""
        return self.id_map.shape[0], self.id_map.shape[1]

    def on_grid(self, scale: float, grid: tuple[int, int], *, antialias: bool) -> Tensor:
        """(K, h, w) bool: see :func:`mask_on_grid`."""
        masks = [
            mask_on_grid(self.id_map == one, scale, grid, antialias=antialias) for one in self.ids
        ]
        return torch.stack(masks) if masks else torch.zeros(0, *grid, dtype=torch.bool)


def counting_segments(
    id_map: NDArray[np.integer],
    entries: Sequence[Mapping[str, Any]],
    *,
    limit: int = LIMIT,
    crop_scale: float = CROP_SCALE,
) -> Segments:
    """The first segments of an image but for those whose box is too small or too large.

    The box of a thing is its annotation's. That of stuff spans the pixels' corners from the first
    to the last one, which leaves out the width of the last (as the published figures do).

    Args:
        id_map: (H, W).
        entries: `segments_info` with `id`, `isthing`, `bbox` (XYWH) and `category_id`, the place in
            the vocabulary.
        limit: only so many are looked at.
        crop_scale: sides of the crop over those of a thing's box.
    """
    height, width = id_map.shape
    entries = entries[:limit]
    things = np.array([bool(one["isthing"]) for one in entries], dtype=bool)
    boxes = np.array(
        [_thing_box(one) if one["isthing"] else _stuff_box(id_map == one["id"]) for one in entries],
        dtype=np.float64,
    ).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.flatnonzero((areas >= AREA[0]) & (areas <= AREA[1])).tolist()
    boxes, things = boxes[kept], things[kept]
    crops = np.where(things[:, None], enlarged(boxes, crop_scale, height, width), boxes)
    return Segments(
        id_map=torch.from_numpy(id_map.astype(np.int32)),
        ids=torch.tensor([entries[k]["id"] for k in kept], dtype=torch.int32),
        classes=torch.tensor([entries[k]["category_id"] for k in kept], dtype=torch.int64),
        is_thing=torch.from_numpy(things),
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        crop_boxes=torch.from_numpy(crops.astype(np.float32)),
    )


def _thing_box(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    x, y, w, h = entry["bbox"]
    return x, y, x + w, y + h


def _stuff_box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Without area where no pixel is left of the segment."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def mask_on_grid(
    mask: Tensor, scale: float, grid: tuple[int, int], *, antialias: bool = False
) -> Tensor:
    """Which patches a mask takes: resized bicubically with the image, then what is above 0.

    The figures of 2023 were made with torchvision below 0.17, which resized tensors without
    antialiasing; later versions antialias where one does not say otherwise, and then a mask takes
    many more patches at its border. So two installations of the public code differ.

    Args:
        mask: (H, W) bool.
        scale: patches per pixel of the original image.
        grid: (h, w) of the dense map, padding included.
        antialias: see above.

    Returns:
        (h, w) bool; small masks may be empty.
    """
    sides = [round(one * scale) for one in mask.shape]
    height, width = (min(max(side, 1), limit) for side, limit in zip(sides, grid, strict=True))
    resized = F.interpolate(
        mask[None, None].float(),
        size=(height, width),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    return F.pad(resized[0, 0], (0, grid[1] - width, 0, grid[0] - height)) > 0


def read_id_map(path: str) -> NDArray[np.int32]:
    """(H, W) ids of a PNG in COCO's panoptic format: red + 256 green + 256^2 blue."""
    with PathManager.open(path, "rb") as file:
        colours = np.asarray(Image.open(file).convert("RGB"), dtype=np.int32)
    found: NDArray[np.int32] = colours @ np.array([1, 256, 256**2], dtype=np.int32)
    return found


class SegmentsOfImage(Passenger):
    """Adds `segments` (:class:`Segments`) to a test input, with the crops of each.

    Its record has `pan_seg_file_name` and `segments_info` as of Detectron2's panoptic data sets.

    Attributes:
        crop_size: side in pixels of the crops; 0: there are none.
        crop_scale: as of :func:`counting_segments`.
    """

    def __init__(self, crop_size: int = 0, crop_scale: float = CROP_SCALE) -> None:
        """See the attributes."""
        self.crop_size = crop_size
        self.crop_scale = crop_scale

    def __call__(self, image: MappedImage) -> None:
        record = image.record
        found = counting_segments(
            read_id_map(record["pan_seg_file_name"]),
            record["segments_info"],
            crop_scale=self.crop_scale,
        )
        if self.crop_size:
            found = with_crops(found, image.original_rgb().numpy(), self.crop_size)
        record[SEGMENTS] = found


def with_crops(segments: Segments, pixels: NDArray[np.uint8], size: int) -> Segments:
    """The same with image crops.

    Args:
        segments: of the image.
        pixels: (H, W, 3) uint8 RGB, the original image.
        size: side of the crops.
    """
    whole = Image.fromarray(pixels)
    windows = pixel_windows(segments.crop_boxes.numpy(), *segments.size)
    crops = np.zeros((len(windows), size, size, 3), dtype=np.uint8)
    for target, window in zip(crops, windows, strict=True):
        target[:] = fitted_crop(whole, window, size)
    fields = {**segments.__dict__, "crops": torch.from_numpy(crops).permute(0, 3, 1, 2)}
    return Segments(**fields)
