"""The original pixels of a data set, as the detector's training sees them.

Reading follows `detectron2.data.detection_utils.read_image`: the EXIF orientation is applied, since
training applies it and boxes are in the coordinates of what training shows; grey, palette, CMYK and
YCbCr become RGB; 16-bit colour loses its low bytes; transparency is dropped; of several frames the
first counts. What Detectron2 would turn into a wrong picture without a word (grey of more than 8
bits, clipped to white) is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ovd_d2.cache.manifest import CacheError

_BAR_DELAY = 2.0  # seconds before a progress bar appears
_EXIF_ORIENTATION = 274
_EXIF_QUARTER_TURNS = {5, 6, 7, 8}  # orientations that swap height and width
_DEEP_MODES = ("I", "F")  # Pillow's "I;16", "I;16B", "I", "F": grey of 16 or 32 bits
_EXIF_ERRORS = (struct.error, SyntaxError, ValueError, TypeError, KeyError, OSError)


def load_image(entry: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The original pixels of a data set dict, (H, W, 3) uint8 RGB.

    Raises:
        CacheError: the file is missing, damaged, of more than 8 bits a channel, too large for
            Pillow, or not of the size that the dict says; the file and the image id are named.
    """
    with _problems_explained(entry):
        _check_header(entry)
        image: NDArray[np.uint8] = read_image(entry["file_name"], "RGB")
    return image


def header_problems(entries: Sequence[Mapping[str, Any]], progress: bool) -> list[str]:
    """What is wrong with pictures as far as their headers tell; nothing is decoded."""
    problems = []
    bar = tqdm(entries, "check pictures", unit="image", delay=_BAR_DELAY, disable=not progress)
    for entry in bar:
        try:
            with _problems_explained(entry):
                _check_header(entry)
        except CacheError as error:
            problems.append(str(error))
    return problems


def _check_header(entry: Mapping[str, Any]) -> None:
    with PathManager.open(entry["file_name"], "rb") as stream, Image.open(stream) as image:
        mode, (width, height), turned = image.mode, image.size, _is_turned(image)
    name = f"image {entry['image_id']}: {entry['file_name']}"
    if mode.startswith(_DEEP_MODES):
        raise CacheError(
            f"{name} is grey with more than 8 bits (Pillow's mode {mode}), which Detectron2 would "
            "clip to white; convert it to 8 bits"
        )
    if turned:
        height, width = width, height
    expected = (entry.get("height", height), entry.get("width", width))
    if (height, width) != expected:
        note = ", once its EXIF orientation is applied, as Detectron2 does" if turned else ""
        raise CacheError(
            f"{name} is {height} x {width} (height x width{note}), the data set says "
            f"{expected[0]} x {expected[1]}; its boxes would not fit. Restore the original file"
        )


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS
    except _EXIF_ERRORS:  # damaged EXIF data: Detectron2 shows the picture as it is
        return False


@contextmanager
def _problems_explained(entry: Mapping[str, Any]) -> Iterator[None]:
    file_name, image_id = entry["file_name"], entry["image_id"]
    try:
        yield
    except FileNotFoundError:
        raise CacheError(
            f"image {image_id}: {file_name} is missing (is DETECTRON2_DATASETS set to the folder "
            "that holds the data set?)"
        ) from None
    except Image.DecompressionBombError as error:
        raise CacheError(
            f"image {image_id}: {file_name} is too large ({error}); scale it and its annotations "
            "down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        # Pillow reports damage as any of these, by file format.
        raise CacheError(
            f"image {image_id}: {file_name} cannot be read ({error}); fetch the file again"
        ) from error
