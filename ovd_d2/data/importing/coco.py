"""COCO JSON: Roboflow's folders, CVAT's export and any other file of that format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovd_d2.data.importing.found import (
    MALFORMED,
    Account,
    Choices,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
    said_by,
    split_of_words,
)
from ovd_d2.data.importing.source import NotFound, Source
from ovd_d2.errors import SetupError

NAME, TITLE = "coco", "COCO JSON (Roboflow's folders, CVAT's COCO export)"
_PARTS = ("images", "annotations", "categories")


def recognises(source: Source) -> bool:
    return source.has_json(_is_coco)


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """A split per file, by the name of the file or of its folders.

    Raises:
        SetupError: a file cannot be read, or lacks a part of COCO's format.
    """
    found = FoundSet()
    for file in source.files(".json"):
        if not (source.is_json(file, _is_coco) or file == source.given):
            account.left_out("file", "JSON, but not COCO's format", source.short(file))
            continue
        content = _content(source, file)
        words = file.stem.replace("2017", "").replace("-", "_").split("_")
        split = split_of_words(words) or source.split_of(file)
        names = _names(content["categories"], file, account)
        found.names += [one for one in names.values() if one not in found.names]
        for image in _images(content, file, source, names, account):
            found.add(split, image)
    return found


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in _PARTS)


def _content(source: Source, file: Path) -> dict[str, Any]:
    try:
        content = source.json(file)
    except ValueError as error:
        raise SetupError([str(error)]) from error
    parts = content if isinstance(content, dict) else {}
    missing = [part for part in _PARTS if not isinstance(parts.get(part), list)]
    if missing:
        raise SetupError([f"{file}: not COCO format: no list {', '.join(missing)}"])
    return parts


def _names(categories: list[Any], file: Path, account: Account) -> dict[Any, str]:
    """Id -> name, without the entry that only stands above the others in Roboflow's files."""
    entries = [one for one in categories if _has_id(one)]
    names = {one["id"]: str(one.get("name") or "").strip() for one in entries}
    above = {str(one.get("supercategory")) for one in entries} - {"none"}
    for one in entries:
        if one.get("supercategory") == "none" and above == {names[one["id"]]}:
            account.left_out("category", "it only stands above the others", f"'{one['name']}'")
            return {key: name for key, name in names.items() if key != one["id"]}
    return names


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int | str)


def _images(
    content: dict[str, Any], file: Path, source: Source, names: dict[Any, str], account: Account
) -> list[FoundImage]:
    of_image: dict[Any, list[FoundObject]] = defaultdict(list)
    ids = {one["id"] for one in content["images"] if _has_id(one)}
    for number, one in enumerate(content["annotations"], 1):
        where = f"{source.short(file)}, annotation number {number}"
        try:
            image_id, found = _object(one, ids, names, where)
        except MALFORMED as error:
            account.left_out("box", said_by(error), where)
        else:
            of_image[image_id].append(found)
    images = []
    for number, one in enumerate(content["images"], 1):
        where = f"{source.short(file)}, image number {number}"
        try:
            images.append(_image(one, tuple(of_image.get(one["id"], ())), file, source, where))
        except NotFound as error:
            account.left_out("image", str(error), f"{where} ({one['file_name']})")
        except MALFORMED as error:
            account.left_out("image", said_by(error), where)
    return images


def _image(
    one: dict[str, Any], objects: tuple[FoundObject, ...], file: Path, source: Source, where: str
) -> FoundImage:
    size = (one.get("width"), one.get("height"))
    known = all(isinstance(value, int) and value > 0 for value in size)
    image = source.find(one["file_name"], file.parent)
    return FoundImage(image, objects, where, size if known else None)  # type: ignore[arg-type]


def _object(
    one: dict[str, Any], ids: set[Any], names: dict[Any, str], where: str
) -> tuple[Any, FoundObject]:
    if one["image_id"] not in ids:
        raise Unusable("of an image that the file does not list")
    if one["category_id"] not in names:
        raise Unusable("of a category that the file does not list")
    if not one.get("bbox"):
        raise Unusable("it has no bbox")
    x, y, width, height = (float(value) for value in one["bbox"])
    segmentation = one.get("segmentation")
    rle = segmentation if isinstance(segmentation, Mapping) and segmentation else None
    polygons = tuple(tuple(map(float, ring)) for ring in segmentation or ()) if not rle else ()
    return one["image_id"], FoundObject(
        names[one["category_id"]],
        (x, y, x + width, y + height),
        where,
        polygons,
        rle,
        crowd=one.get("iscrowd") in (1, True, "1"),
    )
