"""From what a reader found to COCO's format: images looked at, boxes checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_utils

from ovd_d2.data.image_faults import KINDS, Fault, Header, size_fault
from ovd_d2.data.importing.found import EXCHANGED, Account, Corners, FoundImage, FoundObject

_ROUNDING = 1.0  # px that a box may reach over the edge
_LEAST_VALUES = 6  # of a polygon: three corners

Entry = dict[str, Any]


def coco_of(
    images: Sequence[FoundImage],
    names: Sequence[str],
    headers: Mapping[str, Header | Fault],
    root: Path,
    account: Account,
) -> Entry:
    """A COCO data set; ids of images, annotations and categories count from 1.

    Args:
        images: of a split.
        names: of all categories of all splits, in order.
        headers: file of an image -> what is in it.
        root: the images' folder, which file names start at.
        account: is told what is left out or changed.
    """
    categories = {name: k for k, name in enumerate(names, 1)}
    dataset: Entry = {"images": [], "annotations": []}
    done: set[Path] = set()
    for image in sorted(images, key=lambda one: one.file):
        header = headers[str(image.file)]
        if why := _image_fault(image, header, done):
            account.left_out("image", why, image.where)
            continue
        assert isinstance(header, Header)
        done.add(image.file)
        image_id = len(dataset["images"]) + 1
        dataset["images"].append(
            {
                "id": image_id,
                "file_name": image.file.relative_to(root).as_posix(),
                "height": header.height,
                "width": header.width,
            }
        )
        for one in checked_objects(image, header, account):
            number = len(dataset["annotations"]) + 1
            entry = {"id": number, "image_id": image_id, "category_id": categories[one.name]}
            dataset["annotations"].append(entry | _geometry(one, header))
    entries = [{"id": k, "name": name} for name, k in categories.items()]
    return {"info": {"description": "imported by ovd_d2"}, **dataset, "categories": entries}


def _image_fault(image: FoundImage, header: Header | Fault, done: set[Path]) -> str | None:
    if image.file in done:
        return "its image has been annotated by another entry"
    if isinstance(header, Fault):
        return f"its image {KINDS[header.kind].one}; {KINDS[header.kind].fix}"
    if image.size is None:
        return None
    width, height = image.size
    fault = size_fault({"height": height, "width": width}, header)
    return None if fault is None else f"its image {KINDS[fault.kind].one}; {KINDS[fault.kind].fix}"


def checked_objects(image: FoundImage, header: Header, account: Account) -> list[FoundObject]:
    """The objects that have a name and a box with area in the image, in pixels, each once."""
    scale = (header.width, header.height) if image.relative else (1, 1)
    kept: list[FoundObject] = []
    seen: set[tuple[Any, ...]] = set()
    for one in image.objects:
        found = _scaled(one, scale)
        key = (found.name, found.box, found.polygons, str(found.rle))
        why = _object_fault(found, header)
        if why or key in seen:
            account.left_out("box", why or "the same object is there before", one.where)
            continue
        seen.add(key)
        kept.append(_mended(found, header, account))
    return kept


def _scaled(one: FoundObject, scale: tuple[int, int]) -> FoundObject:
    if scale == (1, 1):
        return one
    w, h = scale
    x1, y1, x2, y2 = one.box
    polygons = tuple(
        tuple(value * scale[k % 2] for k, value in enumerate(ring)) for ring in one.polygons
    )
    return replace(one, box=(x1 * w, y1 * h, x2 * w, y2 * h), polygons=polygons)


def _object_fault(one: FoundObject, header: Header) -> str | None:
    """Why an object cannot be kept."""
    if not one.name:
        return "it has no name"
    if not all(map(math.isfinite, one.box)):
        return "its box is not finite"
    x1, y1, x2, y2 = _inside(one.box, header)
    if one.box[0] == one.box[2] or one.box[1] == one.box[3]:
        return "its box has no width or height"
    return "its box is outside of the image" if x1 >= x2 or y1 >= y2 else None


def _inside(box: Corners, header: Header) -> Corners:
    """What of a box, its corners in any order, is in the image."""
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    return max(x1, 0.0), max(y1, 0.0), min(x2, header.width), min(y2, header.height)


def _mended(one: FoundObject, header: Header, account: Account) -> FoundObject:
    """With its corners in order, within the image, and masks that can be used."""
    (x1, x2), (y1, y2) = sorted(one.box[::2]), sorted(one.box[1::2])
    box: Corners = (x1, y1, x2, y2)
    if box != one.box:
        account.changed("box", EXCHANGED, one.where)
    inside = _inside(box, header)
    if max(abs(a - b) for a, b in zip(inside, box, strict=True)) > _ROUNDING:
        account.changed("box", "it reached out of the image and is cut at the edge", one.where)
        box = inside
    polygons = tuple(ring for ring in one.polygons if _is_polygon(ring))
    if len(polygons) < len(one.polygons):
        account.changed("mask", "a polygon without three finite corners is left out", one.where)
    rle = one.rle if one.rle is None or _is_rle(one.rle, header) else None
    if rle is not one.rle:
        account.changed("mask", "an RLE of another size, or broken, is left out", one.where)
    return replace(one, box=box, polygons=polygons, rle=rle)


def _is_rle(rle: Mapping[str, Any], header: Header) -> bool:
    if list(rle.get("size") or ()) != [header.height, header.width]:
        return False
    counts = rle.get("counts")
    if isinstance(counts, list):
        return all(isinstance(n, int) and n >= 0 for n in counts) and sum(counts) == (
            header.height * header.width
        )
    return isinstance(counts, str)


def _is_polygon(ring: Sequence[float]) -> bool:
    return len(ring) >= _LEAST_VALUES and len(ring) % 2 == 0 and all(map(math.isfinite, ring))


def _geometry(one: FoundObject, header: Header) -> Entry:
    x1, y1, x2, y2 = one.box
    found: Entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(one.crowd)}
    found["area"] = (x2 - x1) * (y2 - y1)
    if one.rle is not None:
        found["segmentation"] = dict(one.rle)
    elif one.polygons:
        rings = [list(ring) for ring in one.polygons]
        rles = mask_utils.frPyObjects(rings, header.height, header.width)
        found |= {"segmentation": rings, "area": float(mask_utils.area(mask_utils.merge(rles)))}
    return found


def chosen_share(
    images: Sequence[FoundImage], share: float, shuffle: Callable[[list[Path]], None]
) -> tuple[list[FoundImage], list[FoundImage]]:
    """Images to train on and, of that share, to evaluate on: at least one of each from two on."""
    files = sorted({one.file for one in images})
    count = min(max(round(share * len(files)), 1), len(files) - 1) if share and files else 0
    shuffle(files)
    held = set(files[:count])
    return (
        [one for one in images if one.file not in held],
        [one for one in images if one.file in held],
    )
