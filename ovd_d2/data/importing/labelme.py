"""labelme: a JSON file of shapes per image."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovd_d2.data.importing.found import (
    MALFORMED,
    Account,
    Choices,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
    around,
    said_by,
)
from ovd_d2.data.importing.masks import rle_of
from ovd_d2.data.importing.source import NotFound, Source

NAME, TITLE = "labelme", "labelme (a JSON file per image)"


def recognises(source: Source) -> bool:
    return source.has_json(_has_shapes)


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """Shapes with one label and one group_id are one object, as labelme's own export has it."""
    found = FoundSet()
    for file in source.files(".json"):
        where = source.short(file)
        try:
            content = source.json(file)
            if not _has_shapes(content):
                account.left_out("file", "JSON, but not labelme's", where)
                continue
            image = _find(content, file, source)
        except NotFound as error:
            account.left_out("image", str(error), where)
        except ValueError as error:
            account.left_out("file", "it cannot be read", f"{where}: {error}")
        else:
            size = _size(content)
            objects = tuple(_objects(content, size, where, account))
            found.add(source.split_of(file), FoundImage(image, objects, where, size))
    return found


def _has_shapes(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _find(content: dict[str, Any], file: Path, source: Source) -> Path:
    try:
        return source.find(str(content.get("imagePath") or file.stem), file.parent)
    except NotFound:
        return source.find_stem(file.stem, file.parent)


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    return (width, height) if isinstance(width, int) and isinstance(height, int) else None


def _objects(
    content: dict[str, Any], size: tuple[int, int] | None, where: str, account: Account
) -> Iterator[FoundObject]:
    groups: dict[Any, FoundObject] = {}
    for number, shape in enumerate(content["shapes"], 1):
        place = f"{where}, shape {number}"
        try:
            one = _object(shape, size, place)
        except MALFORMED as error:
            account.left_out("box", said_by(error), place)
            continue
        group = shape.get("group_id")
        key = number if group is None or one.rle else (one.name, str(group))
        groups[key] = _joined(groups[key], one) if key in groups else one
    yield from groups.values()


def _joined(one: FoundObject, other: FoundObject) -> FoundObject:
    both = bool(one.polygons and other.polygons)
    polygons = one.polygons + other.polygons if both else ()
    return replace(one, box=around(one.box + other.box), polygons=polygons)


def _object(shape: dict[str, Any], size: tuple[int, int] | None, where: str) -> FoundObject:
    kind = shape.get("shape_type") or "polygon"
    name = str(shape["label"] if shape["label"] is not None else "").strip()
    points = tuple(float(value) for point in shape["points"] for value in point)
    if kind == "rectangle":
        return FoundObject(name, around(points), where)
    if kind == "polygon":
        return FoundObject(name, around(points), where, (points,))
    if kind == "mask":
        return _of_mask(shape["mask"], around(points), name, size, where)
    if kind == "circle":
        x, y, x2, y2 = points
        radius = float(np.hypot(x2 - x, y2 - y))
        return FoundObject(name, (x - radius, y - radius, x + radius, y + radius), where)
    raise Unusable(f"a {kind} has no box")


def _of_mask(
    text: str, box: tuple[float, ...], name: str, size: tuple[int, int] | None, where: str
) -> FoundObject:
    """A mask's corners are its first and last pixel, both its own."""
    x1, y1, x2, y2 = box
    outer = (x1, y1, x2 + 1, y2 + 1)
    if size is None:
        return FoundObject(name, outer, where)
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("L")) > 0
    return FoundObject(name, outer, where, rle=rle_of(pixels, round(x1), round(y1), size))
