"""PASCAL VOC: an XML file per image."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

from ovd_d2.data.importing.found import (
    EXCHANGED,
    Account,
    Choices,
    Corners,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
)
from ovd_d2.data.importing.source import NotFound, Source, read_xml

NAME, TITLE = "voc", "PASCAL VOC (an XML file per image)"
_ROOT = "annotation"
_LISTS = {"train": "train", "val": "val", "test": "test"}


def recognises(source: Source) -> bool:
    return source.has_xml(_ROOT)


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """Splits are lists of `ImageSets/Main`, or else folders called train, valid, test."""
    lists = _lists(source)
    found = FoundSet()
    zeros: Counter[bool] = Counter()
    for file in source.files(".xml"):
        where = source.short(file)
        try:
            root = read_xml(file)
            if root.tag != _ROOT:
                account.left_out("file", "XML, but no VOC annotation", where)
                continue
            image = _image(root, file, source, choices, account)
        except NotFound as error:
            account.left_out("image", str(error), where)
        except ValueError as error:
            account.left_out("file", "it cannot be read", f"{where}: {error}")
        else:
            zeros.update(_is_zero(one) for one in root.iter("bndbox"))
            if lists and file.stem not in lists:
                account.left_out("image", "in no list of ImageSets/Main", where)
            else:
                found.add(lists.get(file.stem) or source.split_of(file), image)
    if zeros[True] and not choices.from_zero:
        account.notes.append(
            f"{zeros[True]} of {zeros.total()} boxes begin at pixel 0, VOC's first pixel is 1: if "
            "the boxes were drawn by a tool that counts from 0, give --from-zero"
        )
    return found


def _lists(source: Source) -> dict[str, str]:
    """Name without suffix -> split, as ImageSets/Main has them."""
    found = {}
    for file in source.files(".txt"):
        if file.stem in _LISTS and file.parts[-3:-1] == ("ImageSets", "Main"):
            lines = file.read_text(encoding="utf-8-sig").splitlines()
            found.update({line.strip(): _LISTS[file.stem] for line in lines if line.strip()})
    return found


def _image(
    root: Element, file: Path, source: Source, choices: Choices, account: Account
) -> FoundImage:
    where = source.short(file)
    try:
        image = source.find_stem(file.stem, file.parent)
    except NotFound:
        image = source.find(_text(root, "filename") or file.stem, file.parent)
    objects = []
    for number, one in enumerate(root.findall("object"), 1):
        place = f"{where}, object {number}"
        if _text(one, "difficult") == "1" and not choices.difficult:
            account.left_out("box", "marked difficult (--drop-difficult)", place)
            continue
        try:
            objects.append(_object(one, place, choices, account))
        except Unusable as error:
            account.left_out("box", str(error), place)
    return FoundImage(image, tuple(objects), where, _size(root))


def _object(one: Element, where: str, choices: Choices, account: Account) -> FoundObject:
    shift = 0.0 if choices.from_zero else 1.0
    box = one.find("bndbox")
    if box is None:
        raise Unusable("it has no bndbox")
    try:
        x1, y1, x2, y2 = (float(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax"))
        polygons = [_polygon(ring, shift) for ring in one.findall("polygon")]
    except ValueError as error:
        raise Unusable("a coordinate is no number") from error
    if x1 > x2 or y1 > y2:
        account.changed("box", EXCHANGED, where)
    # The last pixel of a box belongs to it: its far edge is its number, counted from 1.
    (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
    corners: Corners = (x1 - shift, y1 - shift, x2, y2)
    return FoundObject(_text(one, "name"), corners, where, tuple(one for one in polygons if one))


def _polygon(ring: Element, shift: float) -> tuple[float, ...]:
    """x1, y1, x2, y2, ... or a `pt` of x and y for each corner."""
    points = ring.findall("pt") or ring.findall("point")
    if points:
        return tuple(float(_text(one, key)) - shift for one in points for key in ("x", "y"))
    values = {one.tag: one.text or "" for one in ring}
    count = sum(tag.startswith("x") for tag in values)
    corners = range(1, count + 1)
    return tuple(float(values.get(f"{axis}{k}", "")) - shift for k in corners for axis in "xy")


def _size(root: Element) -> tuple[int, int] | None:
    texts = [root.findtext(f"size/{key}", "").strip() for key in ("width", "height")]
    if not all(text.isdecimal() and int(text) > 0 for text in texts):
        return None
    return (int(texts[0]), int(texts[1]))


def _is_zero(box: Element) -> bool:
    return any(_text(box, key) in ("0", "0.0") for key in ("xmin", "ymin"))


def _text(one: Element, key: str) -> str:
    return one.findtext(key, "").strip()
