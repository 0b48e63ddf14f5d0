"""The kinds of faults that an image file can have, and how they are said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ovd_d2.data.augmentation import Resize, resized


class Header(NamedTuple):
    """What the header of a sound image says.

    Attributes:
        height, width: px, once the EXIF orientation is applied.
        turned: the orientation is a quarter turn: the file holds width x height.
    """

    height: int
    width: int
    turned: bool


class Fault(NamedTuple):
    """What is wrong with one image: a key of `KINDS`, and what was found."""

    kind: str
    found: str


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        one: said of one image, behind its name.
        many: said of all such images of a data set, behind their number.
        expected: what it should be.
        fix: what to do with the file.
        set_fix: what to do where it belongs to a data set; empty: the same.
        key: where an annotation file names it.
    """

    one: str
    many: str
    expected: str
    fix: str
    set_fix: str = ""
    key: str = "images[].file_name"


_FETCH = "fetch the file again"
_FETCH_OR_REMOVE = f"{_FETCH}, or remove the image from the annotation file"
_SIZES = "images[].height, width"

KINDS = {
    "missing": Kind(
        "is missing",
        "images are missing",
        "an image file",
        "check its name and folder",
        "check the data set's image folder (image_root of your own data set, DETECTRON2_DATASETS "
        "for the built-in ones, datasets/README.md)",
    ),
    "no_file": Kind(
        "is not a file",
        "images are not files",
        "an image file",
        "name an image file",
    ),
    "forbidden": Kind(
        "may not be read",
        "images may not be read",
        "permission to read",
        "give yourself the right to read: chmod u+r, and u+x for the folders",
    ),
    "unreadable": Kind(
        "cannot be opened",
        "images cannot be opened",
        "a file that can be opened",
        "check the disk or network folder",
    ),
    "empty": Kind("is empty", "image files are empty", "an image", _FETCH, _FETCH_OR_REMOVE),
    "no_image": Kind(
        "cannot be read: it is no image that Pillow knows",
        "files are no images that Pillow knows",
        "an image",
        _FETCH,
        _FETCH_OR_REMOVE,
    ),
    "damaged": Kind(
        "cannot be read",
        "images cannot be read: damaged or cut short",
        "a whole image",
        _FETCH,
        _FETCH_OR_REMOVE,
    ),
    "deep": Kind(
        "is grey with more than 8 bits, which Detectron2 would clip to white",
        "images are grey with more than 8 bits, which Detectron2 would clip to white",
        "8 bits per channel",
        "convert it to 8 bits, scaled from the range that is in use",
    ),
    "huge": Kind(
        "is too large",
        "images are too large",
        "at most twice PIL.Image.MAX_IMAGE_PIXELS",
        "scale image and annotations down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it",
    ),
    "size": Kind(
        "is of another size than its annotation file says, its boxes would not fit",
        "images are of another size than the annotation file says, their boxes would not fit",
        "the annotated size",
        "restore the original images, or annotate these",
        key=_SIZES,
    ),
    "turned": Kind(
        "is turned by its EXIF orientation, which Detectron2 applies, and annotated unturned",
        "images are turned by their EXIF orientation, which Detectron2 applies, and annotated "
        "unturned",
        "the size of the turned image",
        "if the boxes fit the image as viewers show it, exchange height and width in the "
        "annotation file; if they fit the pixels as stored, remove the orientation "
        "(exiftool -Orientation= FILE)",
        key=_SIZES,
    ),
    "thin": Kind(
        "would have no pixel left in one direction once it is resized for the model",
        "images would have no pixel left in one direction once they are resized for the model",
        "at least 1 x 1 pixel after resizing",
        "crop or pad it, or raise the sizes (INPUT.MIN_SIZE_*, MAX_SIZE_*)",
        key=_SIZES,
    ),
}  # in the order of the messages


class ImageError(ValueError):
    """An image that cannot be used; the message names the file.

    Attributes:
        fault: kind and what was found.
    """

    def __init__(self, name: str, fault: Fault) -> None:
        kind = KINDS[fault.kind]
        super().__init__(f"{name} {kind.one} ({fault.found}); {kind.fix}")
        self.fault = fault


def size_fault(
    entry: Mapping[str, Any], header: Header, resize: Resize | None = None
) -> Fault | None:
    """Whether an image is of the size that its entry says and is not resized to nothing."""
    found = (header.height, header.width)
    expected = (entry.get("height", header.height), entry.get("width", header.width))
    if expected != found:
        swapped = expected == found[::-1]
        text = f"{_size(found)} (height x width"
        if header.turned:
            text += ", once its EXIF orientation is applied"
        elif swapped:
            text += ": the two are exchanged"
        text += f"), annotated as {_size(expected)}"
        return Fault("turned" if swapped and header.turned else "size", text)
    return thin_fault(header.height, header.width, resize)


def thin_fault(height: int, width: int, resize: Resize | None) -> Fault | None:
    """Whether an image of this size would have no pixel left in one direction."""
    if resize is None or min(after := resized(height, width, resize)) > 0:
        return None
    return Fault(
        "thin",
        f"{_size((height, width))} (height x width) becomes {_size(after)} with shortest edge "
        f"{resize.shortest}, longest edge at most {resize.longest}",
    )


def printable(path: str | os.PathLike[str]) -> str:
    """A path for a message: line breaks and bytes that are no UTF-8 are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
