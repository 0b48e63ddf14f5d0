"""An image in whatever form a user has it, as pixels."""

from __future__ import annotations

import io
import os
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ovd_d2.data.image_faults import ImageError
from ovd_d2.data.images import checked_image, pixels_of

AnyImage: TypeAlias = (
    str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8] | torch.Tensor
)
CHANNELS = ("RGB", "BGR")
_ADDRESSES = ("http://", "https://", "ftp://")


def as_bgr(image: AnyImage, channels: str | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 in the order blue, green, red.

    Args:
        image: a file, the content of one, a PIL image (its EXIF orientation is applied to all
            three), an array (H, W, 3), (H, W, 4) or, grey, (H, W), or a tensor (3, H, W), uint8.
            Transparency is dropped.
        channels: "RGB" or "BGR", of an array or a tensor with colours.

    Raises:
        ImageError: a file or its content cannot be used.
        ValueError: anything else that is no image; colours whose order is not said.
    """
    if isinstance(image, (str, os.PathLike)):
        if str(image).startswith(_ADDRESSES):
            raise ValueError(f"{image} is an address: download it, and give the file or its bytes")
        return checked_image(image)
    if isinstance(image, (bytes, bytearray)):
        return pixels_of(io.BytesIO(image), "the image")
    if isinstance(image, Image.Image):
        return pixels_of(image, "the image")
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a tensor must be (3, height, width) uint8, got {tuple(image.shape)} {image.dtype}"
            )
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"expected a file, bytes, a PIL image, an array or a tensor, got {type(image).__name__}"
        )
    return _array_as_bgr(image, channels)


def as_rgb(image: AnyImage) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a file, the content of one or a PIL image, as :func:`as_bgr`."""
    return np.ascontiguousarray(as_bgr(image)[:, :, ::-1])


def _array_as_bgr(image: NDArray[np.uint8], channels: str | None) -> NDArray[np.uint8]:
    is_grey = image.ndim == 2
    if (
        image.dtype != np.uint8
        or image.size == 0
        or not (is_grey or (image.ndim == 3 and image.shape[2] in (3, 4)))
    ):
        raise ValueError(
            "an array must be (height, width, 3) uint8, from 0 to 255, got "
            f"{image.shape} {image.dtype}"
        )
    if is_grey:
        return np.repeat(image[:, :, None], 3, axis=2)
    if channels not in CHANNELS:
        raise ValueError(
            f"channels is {channels!r}: say 'BGR' (cv2.imread) or 'RGB' (PIL, torchvision) with an "
            "array or tensor"
        )
    image = image[:, :, :3]
    return np.ascontiguousarray(image if channels == "BGR" else image[:, :, ::-1])


__all__ = ["CHANNELS", "AnyImage", "ImageError", "as_bgr", "as_rgb"]
