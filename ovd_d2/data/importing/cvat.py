"""CVAT's own XML, "CVAT for images 1.1". Its COCO export is read as COCO."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element

from ovd_d2.data.importing.found import (
    MALFORMED,
    Account,
    Choices,
    Corners,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
    around,
    said_by,
    split_of_words,
)
from ovd_d2.data.importing.masks import from_runs, rle_of
from ovd_d2.data.importing.source import NotFound, Source, read_xml
from ovd_d2.errors import SetupError

NAME, TITLE = "cvat", 'CVAT ("CVAT for images 1.1")'
_ROOT = "annotations"
_NO_SHAPES = ("tag", "attribute")


def recognises(source: Source) -> bool:
    return source.has_xml(_ROOT)


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """Splits are CVAT's subsets.

    Raises:
        SetupError: a file cannot be read, or is of a video.
    """
    found = FoundSet()
    for file in source.files(".xml"):
        try:
            root = read_xml(file)
        except ValueError as error:
            raise SetupError([f"{file}: {error}"]) from error
        if root.tag != _ROOT:
            account.left_out("file", "XML, but not CVAT's", source.short(file))
            continue
        if root.find("track") is not None:
            raise SetupError(
                [f"{file}: tracks of a video; export it as 'CVAT for images 1.1', with images"]
            )
        _add_images(root, file, source, found, account)
    return found


def _add_images(
    root: Element, file: Path, source: Source, found: FoundSet, account: Account
) -> None:
    for one in root.iter("label"):
        name = one.findtext("name", "").strip()
        if name and one.find("parent") is None and name not in found.names:
            found.names.append(name)
    for one in root.iter("image"):
        name = one.get("name", "")
        where = f"{source.short(file)}, image {name}"
        try:
            image = source.find(name, file.parent)
        except NotFound as error:
            account.left_out("image", str(error), where)
            continue
        size = _size(one)
        objects = []
        for number, shape in enumerate((s for s in one if s.tag not in _NO_SHAPES), 1):
            place = f"{where}, shape {number}"
            try:
                objects.append(_object(shape, size, place, account))
            except MALFORMED as error:
                account.left_out("box", said_by(error), place)
        split = split_of_words([one.get("subset", "")]) or source.split_of(image)
        found.add(split, FoundImage(image, tuple(objects), where, size))


def _size(image: Element) -> tuple[int, int] | None:
    texts = [image.get(key, "") for key in ("width", "height")]
    return (int(texts[0]), int(texts[1])) if all(map(str.isdecimal, texts)) else None


def _object(
    shape: Element, size: tuple[int, int] | None, where: str, account: Account
) -> FoundObject:
    name = shape.get("label", "").strip()
    if shape.tag == "box":
        return FoundObject(name, _box(shape, where, account), where)
    if shape.tag == "polygon":
        text = shape.get("points", "").replace(";", ",")
        points = tuple(_number(word) for word in text.split(","))
        return FoundObject(name, around(points), where, (points,))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape.get(key, "")) for key in ("cx", "cy", "rx", "ry"))
        box = (cx - rx, cy - ry, cx + rx, cy + ry)
        return FoundObject(name, turned(box, _number(shape.get("rotation", "0"))), where)
    if shape.tag == "mask" and size is not None:
        left, top, width, height = (
            int(_number(shape.get(key, ""))) for key in ("left", "top", "width", "height")
        )
        runs = [int(_number(word)) for word in shape.get("rle", "").split(",")]
        rle = rle_of(from_runs(runs, width, height), left, top, size)
        return FoundObject(name, (left, top, left + width, top + height), where, rle=rle)
    raise Unusable(f"a {shape.tag} has no box")


def _box(shape: Element, where: str, account: Account) -> Corners:
    x1, y1, x2, y2 = (_number(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
    rotation = _number(shape.get("rotation", "0"))
    if rotation % 360:
        account.changed("box", TURNED, where)
    return turned((x1, y1, x2, y2), rotation)


TURNED = "it was turned: the upright box around it is taken"


def turned(box: Corners, degrees: float, pivot: tuple[float, float] | None = None) -> Corners:
    """The upright box around a turned one, by default around its centre, clockwise."""
    x1, y1, x2, y2 = box
    px, py = pivot or ((x1 + x2) / 2, (y1 + y2) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - px, y - py) for x in (x1, x2) for y in (y1, y2)]
    points = [v for x, y in corners for v in (px + x * cos - y * sin, py + x * sin + y * cos)]
    return around(points)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Unusable("a coordinate is no number") from None
