"""Predicted masks stay in their boxes until somebody asks for pixels.

A mask head predicts M x M probabilities per object, to be stretched over its box. Interpolation is
separable, so the pixels of a box are two small matrix products: rows @ mask @ columns. Detectron2
samples every pixel by itself (`paste_masks_in_image`), and its evaluator then scans full-size masks
to encode them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from torch import Tensor


class BoxMasks:
    """The masks of N objects of one image, each as predicted, with the box it belongs in.

    300 full-size masks of 800 x 1333 pixels take 320 MB, these 1 MB. A field of `Instances` may
    hold them.

    Attributes:
        probabilities: (N, M, M) float.
        boxes: (N, 4) float, XYXY, pixels of the image; a box without area has an empty mask.
        image_size: (height, width) of the image.
        threshold: a pixel belongs to the object from this probability on.
    """

    def __init__(
        self,
        probabilities: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        threshold: float = 0.5,
    ) -> None:
        side = probabilities.shape[-1]
        if probabilities.shape != (len(boxes), side, side) or boxes.shape[1:] != (4,):
            raise ValueError(
                f"expected masks (N, M, M) and boxes (N, 4), got {tuple(probabilities.shape)} and "
                f"{tuple(boxes.shape)}"
            )
        self.probabilities = probabilities
        self.boxes = boxes
        self.image_size = image_size
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, item: slice | Tensor | Sequence[int]) -> BoxMasks:
        """Those that a slice, indices or flags select."""
        return self._with(self.probabilities[item], self.boxes[item])

    def __repr__(self) -> str:
        return f"BoxMasks({len(self)} in an image of {self.image_size})"

    def to(self, *args: Any, **kwargs: Any) -> BoxMasks:
        """On another device; arguments of :meth:`torch.Tensor.to`."""
        return self._with(self.probabilities.to(*args, **kwargs), self.boxes.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[BoxMasks]) -> BoxMasks:
        """All in one, of the first one's image size and threshold."""
        return parts[0]._with(
            torch.cat([one.probabilities for one in parts]), torch.cat([one.boxes for one in parts])
        )

    def to_bitmasks(self) -> BitMasks:
        """Full size: `.tensor` is (N, height, width) bool, as Detectron2 pastes them."""
        if self.boxes.device.type != "cpu":  # Detectron2 pastes many at once there
            boxes = Boxes(self.boxes)
            return ROIMasks(self.probabilities).to_bitmasks(boxes, *self.image_size, self.threshold)
        # NumPy's zeros cost nothing where nothing is written, PyTorch's are all written
        pixels = np.zeros((len(self), *self.image_size), dtype=bool)
        for full, (area, inside) in zip(pixels, self._pasted(), strict=True):
            full[area.y0 : area.y1, area.x0 : area.x1] = inside
        return BitMasks(torch.from_numpy(pixels))

    def to_rle(self) -> list[dict[str, Any]]:
        """COCO's compressed run lengths of the full-size masks, which are not made.

        Returns:
            Per mask a dict with `size`, [height, width], and `counts`, a string.
        """
        masks = self.to("cpu")
        # One region under several names is as many equal masks.
        kept, places = distinct_rows(torch.cat([masks.boxes, masks.probabilities.flatten(1)], 1))
        runs = [_run_lengths(*one, self.image_size) for one in masks[kept]._pasted()]
        uncompressed = [{"size": list(self.image_size), "counts": counts} for counts in runs]
        encoded = pycocotools.mask.frPyObjects(uncompressed, *self.image_size) if runs else []
        counts = [one["counts"].decode("ascii") for one in encoded]
        return [{"size": list(self.image_size), "counts": counts[k]} for k in places.tolist()]

    def _with(self, probabilities: Tensor, boxes: Tensor) -> BoxMasks:
        return BoxMasks(probabilities, boxes, self.image_size, self.threshold)

    def _pasted(self) -> Iterator[tuple[_Area, np.ndarray]]:
        """Per mask the part of the image that can hold some of it, and its (h, w) bool pixels.

        These are valid until the next mask.
        """
        boxes = self.boxes.detach().float()
        areas = _areas(boxes, self.image_size)
        largest = max(((y1 - y0) * (x1 - x0) for x0, y0, x1, y1 in areas), default=0)
        values, inside = np.empty(largest, np.float32), np.empty(largest, bool)
        masks = self.probabilities.detach().float().numpy()
        for area, box, mask in zip(areas, boxes.tolist(), masks, strict=True):
            rows = _weights(box[1], box[3], area.y0, area.y1, len(mask))
            columns = _weights(box[0], box[2], area.x0, area.x1, len(mask))
            shape = len(rows), len(columns)
            probabilities = values[: len(rows) * len(columns)].reshape(shape)
            np.matmul(rows @ mask, columns.T, out=probabilities)
            pixels = inside[: probabilities.size].reshape(shape)
            yield area, np.greater_equal(probabilities, self.threshold, out=pixels)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each of the rows that are equal bit by bit once.

    Args:
        rows: (N, K).

    Returns:
        (U,) int64 indices of the first row of each kind, rising, and (N,) int64 places among these
        of all rows: `rows[first][places]` is `rows`. On the device of `rows`.
    """
    first: dict[bytes, int] = {}
    table = rows.detach().cpu().contiguous().numpy()
    origins = [first.setdefault(row.tobytes(), k) for k, row in enumerate(table)]
    return torch.tensor(origins, dtype=torch.int64, device=rows.device).unique(return_inverse=True)


class RegionMasks(ROIMasks):
    """Predicted masks that `detector_postprocess` gives back as :class:`BoxMasks`, not pasted."""

    def __getitem__(self, item: Any) -> RegionMasks:
        return RegionMasks(super().__getitem__(item).tensor)

    def to_bitmasks(
        self, boxes: Boxes, height: int, width: int, threshold: float = 0.5
    ) -> SimpleNamespace:
        """`detector_postprocess` takes `.tensor` of what this returns."""
        own = boxes.tensor.clone()  # as full-size masks, these stay where they are
        return SimpleNamespace(tensor=BoxMasks(self.tensor, own, (height, width), threshold))


def postprocess(found: Instances, height: int, width: int, *, full_masks: bool = True) -> Instances:
    """Detectron2's `detector_postprocess`: detections in the size of the output image.

    Args:
        found: the raw outputs of a detector, changed in place as Detectron2 does.
        height, width: of the output image, pixels.
        full_masks: give `pred_masks` as a (N, height, width) bool tensor, which is Detectron2's
            way; else as :class:`BoxMasks`.
    """
    if found.has("pred_masks"):
        found.pred_masks = RegionMasks(found.pred_masks[:, 0])
    found = detector_postprocess(found, height, width)
    return paste(found) if full_masks else found


def paste(found: Instances) -> Instances:
    """The same detections; masks that are :class:`BoxMasks` become a (N, H, W) bool tensor."""
    if found.has("pred_masks") and isinstance(found.pred_masks, BoxMasks):
        found.pred_masks = found.pred_masks.to_bitmasks().tensor
    return found


class _Area(NamedTuple):
    """Pixels of an image: rows y0 to y1, columns x0 to x1 (exclusive)."""

    x0: int
    y0: int
    x1: int
    y1: int


def _areas(boxes: Tensor, image_size: tuple[int, int]) -> list[_Area]:
    """What Detectron2 pastes (N, 4) boxes into: the box and a pixel around it, within the image."""
    height, width = image_size
    low = boxes[:, :2].floor().sub(1).clamp(min=0)
    high = boxes[:, 2:].ceil().add(1).minimum(boxes.new_tensor([width, height]))
    empty = (high <= low).any(dim=1) | (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    areas = torch.cat([low, high], dim=1).masked_fill(empty[:, None], 0)
    return [_Area(*one) for one in areas.int().tolist()]


def _weights(low: float, high: float, start: int, end: int, side: int) -> np.ndarray:
    """(end - start, side) float32: the share of each cell of a mask in each pixel of one axis.

    The `side` cells are spread evenly from `low` to `high`; between their centres the weights are
    linear, and beyond the outermost they fall to 0 within the width of a cell.
    """
    if start == end:  # a box may have no size, either
        return np.zeros((0, side), np.float32)
    scale = side / (high - low)
    centres = np.arange(end - start, dtype=np.float32) * scale + ((start + 0.5 - low) * scale - 0.5)
    weights = np.subtract.outer(centres, np.arange(side, dtype=np.float32))
    np.abs(weights, out=weights)
    np.subtract(1, weights, out=weights)
    return np.maximum(weights, 0, out=weights)


def _run_lengths(area: _Area, pixels: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths, down the columns of the whole image, beginning with the background.

    Args:
        area: of the image; the mask is empty elsewhere.
        pixels: (h, w) bool, the mask there.
        image_size: (height, width).
    """
    height, width = image_size
    rows, columns = pixels.shape
    changed = np.zeros((rows + 1, columns), bool)  # whether a pixel differs from the one above
    changed[:-1] = pixels
    changed[1:] ^= pixels
    where = np.flatnonzero(changed)
    row = where // max(1, columns)
    places = np.sort((where - row * columns + area.x0) * height + row + area.y0)
    if rows == height:  # a column full to its end and one full from its start are one run
        same = np.flatnonzero(places[1:] == places[:-1])
        places = np.delete(places, [same, same + 1])
    edges = np.concatenate([[0], places, [height * width]])
    counts = edges[1:] - edges[:-1]
    return counts if counts[-1] else counts[:-1]
