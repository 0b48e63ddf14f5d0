"""What the teacher sees: regions cut out of the original image and fitted into its square."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def fitted_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) of an image whose longest side becomes `side`; both are rounded (half to
    even), and at least 1."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarged(boxes: NDArray, factor: float, height: int, width: int) -> NDArray[np.float64]:
    """(K, 4) XYXY boxes with sides `factor` times as long about their centres, cut to the image."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    found = np.concatenate([centres - halves, centres + halves], axis=1)
    return found.clip(0, [width, height, width, height])


def pixel_windows(boxes: NDArray, height: int, width: int) -> NDArray[np.int64]:
    """(K, 4) XYXY boxes -> whole pixels, rounded half to even as Pillow does.

    A box that rounds to nothing gets the pixel at its top left corner, inside the image.
    """
    rounded = np.rint(boxes).astype(np.int64)
    start = rounded[:, :2].clip(0, [width - 1, height - 1])
    return np.concatenate([start, np.maximum(rounded[:, 2:], start + 1)], axis=1)


def fitted_crop(image: Image.Image, window: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """Cuts out a window, resizes its longest side (bicubic, antialiased), and pads with black.

    Args:
        image: RGB.
        window: (4,) XYXY, of :func:`pixel_windows`.
        side: in pixels, of the square that the crop is centred in; an odd pixel of the padding is
            at the right or bottom.

    Returns:
        (side, side, 3).
    """
    left, top, right, bottom = window.tolist()
    crop = image.crop((left, top, right, bottom))
    height, width = fitted_size(crop.height, crop.width, side)
    resized = crop.resize((width, height), Image.Resampling.BICUBIC)
    square = np.zeros((side, side, 3), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(resized)
    return square
