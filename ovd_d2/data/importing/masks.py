"""Masks of a part of an image, as COCO's RLE of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
from numpy.typing import NDArray
from PIL import Image

from ovd_d2.data.importing.found import Unusable

_LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)


def rle_of(crop: NDArray[np.bool_], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's RLE of a mask's crop.

    Args:
        crop: (h, w).
        left, top: px, where it begins.
        size: (width, height) of the image.

    Raises:
        Unusable: the crop is not inside of the image.
    """
    width, height = size
    _check_area(width, height)
    h, w = crop.shape
    if left < 0 or top < 0 or left + w > width or top + h > height:
        raise Unusable("a mask reaches outside of the image")
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[top : top + h, left : left + w] = crop
    rle = mask_utils.encode(whole)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def from_runs(runs: Sequence[int], width: int, height: int) -> NDArray[np.bool_]:
    """(height, width) of row by row lengths of zeros and ones in turn, zeros first.

    Raises:
        Unusable: they are of another number of pixels.
    """
    _check_area(width, height)
    if min(runs, default=0) < 0 or sum(runs) != width * height:
        raise Unusable("a mask whose runs do not fill its box")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)


def _check_area(width: int, height: int) -> None:
    """What Pillow would not read either must not fill the memory."""
    if width * height > _LARGEST:
        raise Unusable(f"a mask of more than {_LARGEST:,} pixels")
