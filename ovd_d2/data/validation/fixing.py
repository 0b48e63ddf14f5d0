"""Repairs what can be repaired without guessing, and says what was changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ovd_d2.data.annotation_files import PARTS
from ovd_d2.data.categories import LARGEST_ID, is_id
from ovd_d2.data.image_faults import ImageError
from ovd_d2.data.images import read_header
from ovd_d2.data.json_stream import BAR_DELAY
from ovd_d2.data.validation.boxes import TOLERANCE, corners_suspected
from ovd_d2.data.validation.columns import is_number
from ovd_d2.data.validation.segmentations import Kind, is_short, kind_of

Entry = dict[str, Any]


@dataclass
class Repairs:
    """What was done and what could not be.

    Attributes:
        done: what was changed -> how many entries.
        left: what was left as it is, with the reason.
    """

    done: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)


def repair(
    dataset: dict[str, Any],
    *,
    images: Path | None = None,
    corners: bool = False,
    progress: bool = True,
) -> Repairs:
    """Repairs a COCO- or LVIS-format data set in place; what is sound stays as it is.

    * entries that are no objects, and annotations whose box cannot be used (not four numbers, not
      finite, flat, wholly outside) or that are of unknown images or categories, are removed;
      numbers written as strings become numbers, and boxes are clipped to their image;
    * ids that are whole numbers of another type become integers; where an image's or category's id
      is none, all of them are numbered anew; annotations without an id, or with that of another,
      get a new one;
    * `file_name` comes from the last two parts of `coco_url`, sizes from the image files,
      `area` from the box, `iscrowd` null, "0" and "1" become 0 and 1;
    * a polygon of two corners becomes the rectangle between them, as labelme and VIA mean it: a
      mask no better than the box. Other polygons that cannot be used are removed, and masks that
      are neither polygons nor RLE.

    An id that several images or categories share is left: nothing tells whose annotations are
    whose. Then no annotation is removed for being of an unknown image or category, either.

    Args:
        dataset: lists `images`, `annotations`, `categories`.
        images: the folder that `file_name` starts at; images without size are opened there.
        corners: boxes are [x1, y1, x2, y2]: where that is suspected too, all become XYWH.
        progress: show bars for what takes longer than two seconds.
    """
    repairs = Repairs()
    for part in PARTS:
        _keep(dataset, part, lambda entry: isinstance(entry, dict), "no objects", repairs)
    _repair_images(dataset["images"], images, repairs, progress)
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        _repair_ids(dataset, part, key, repairs)
    bar = tqdm(dataset["annotations"], desc="repairing", delay=BAR_DELAY, disable=not progress)
    for annotation in bar:
        _repair_values(annotation, repairs)
    if corners:
        _corners_to_sides(dataset, repairs)
    _repair_boxes(dataset, repairs)
    for annotation in dataset["annotations"]:
        _repair_area(annotation, repairs)
    _number_annotations(dataset["annotations"], repairs)
    return repairs


def _keep(
    dataset: dict[str, Any], part: str, keep: Callable[[Any], bool], why: str, repairs: Repairs
) -> None:
    kept = [entry for entry in dataset[part] if keep(entry)]
    removed = len(dataset[part]) - len(kept)
    if removed:
        repairs.done[f"{part} removed: {why}"] += removed
        dataset[part] = kept


def _repair_images(
    images: list[Entry], folder: Path | None, repairs: Repairs, progress: bool
) -> None:
    for image in tqdm(images, desc="images", delay=BAR_DELAY, disable=not progress):
        url = image.get("coco_url")
        if not image.get("file_name") and isinstance(url, str) and "/" in url:
            image["file_name"] = "/".join(url.split("/")[-2:])
            repairs.done["file_name written from coco_url"] += 1
        for key in ("height", "width"):
            number = _integer(image.get(key))
            if number is not None and number > 0 and number is not image[key]:
                image[key] = number
                repairs.done[f"{key} made an integer"] += 1
        if not all(is_id(image.get(key)) and image[key] > 0 for key in ("height", "width")):
            _read_size(image, folder, repairs)


def _read_size(image: Entry, folder: Path | None, repairs: Repairs) -> None:
    name = image.get("file_name")
    if folder is None or not isinstance(name, str):
        if not repairs.left or not repairs.left[-1].startswith("sizes"):
            repairs.left.append("sizes of images: name their folder (--images) to read them")
        return
    try:
        image["height"], image["width"], _ = read_header(folder / name)
    except ImageError as error:
        repairs.left.append(f"size of {name}: {error}")
    else:
        repairs.done["height and width read from the image"] += 1


def _repair_ids(dataset: dict[str, Any], part: str, reference: str, repairs: Repairs) -> None:
    """Integers in place of other ids, in the entries and in the annotations' references."""
    entries = dataset[part]
    raw = [entry.get("id") for entry in entries]
    if any(one is None or isinstance(one, (list, dict)) for one in raw):
        repairs.left.append(f"{part} without an id: nothing tells which annotations are theirs")
        return
    keys = [_key(one) for one in raw]
    twice = len(keys) - len(set(keys))
    if twice:
        repairs.left.append(
            f"{twice} {part} with the id of another: nothing tells whose annotations are whose"
        )
        return
    new = _new_ids(raw)
    if not all(is_id(one) for one in raw):
        repairs.done[f"ids of {part} made integers, or numbered anew where one is none"] += len(raw)
        for entry, one in zip(entries, new, strict=True):
            entry["id"] = one
    new_id = dict(zip(keys, new, strict=True))
    _repair_references(dataset["annotations"], reference, new_id, repairs)
    known = set(new)
    _keep(
        dataset,
        "annotations",
        lambda one: _key(one.get(reference)) in known,
        f"of unknown {part}",
        repairs,
    )


def _new_ids(raw: list[Any]) -> list[int]:
    """The integers that ids stand for; 1, 2, ... where one stands for none."""
    integers = [one for one in map(_integer, raw) if one is not None]
    return integers if len(integers) == len(raw) else list(range(1, len(raw) + 1))


def _repair_references(
    annotations: list[Entry], reference: str, new_id: dict[Any, int], repairs: Repairs
) -> None:
    for annotation in annotations:
        old = annotation.get(reference)
        new = new_id.get(_key(old))
        if new is not None and (type(old) is not int or old != new):
            annotation[reference] = new
            repairs.done[f"{reference} changed to the new ids"] += 1


def _key(value: Any) -> Any:
    """What ids are the same: 1, 1.0 and "1" where only one of them is there."""
    if isinstance(value, (list, dict)) or value is None:
        return repr(value)
    integer = _integer(value)
    return value if integer is None else integer


def _integer(value: Any) -> int | None:
    """The integer that a value stands for: 7, 7.0, "7", "007"; None if it stands for none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) and value.is_integer() else None
    elif isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    return value if is_id(value) else None


def _number(value: Any) -> Any:
    """A string that is a number as that number; anything else as it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _repair_values(annotation: Entry, repairs: Repairs) -> None:
    box = annotation.get("bbox")
    if isinstance(box, list) and any(isinstance(one, str) for one in box):
        annotation["bbox"] = [_number(one) for one in box]
        repairs.done["boxes of strings made numbers"] += 1
    if "iscrowd" in annotation and type(annotation["iscrowd"]) is not int:
        flag = {None: 0, False: 0, True: 1, "0": 0, "1": 1, "": 0}
        crowd = annotation["iscrowd"]
        if not isinstance(crowd, (list, dict)) and crowd in flag:
            annotation["iscrowd"] = flag[crowd]
            repairs.done["iscrowd made 0 or 1"] += 1
    if "segmentation" in annotation:
        _repair_segmentation(annotation, repairs)


def _repair_segmentation(annotation: Entry, repairs: Repairs) -> None:
    kind = kind_of(annotation["segmentation"])
    if kind in (Kind.SOME_SHORT, Kind.ALL_SHORT):
        polygons = annotation["segmentation"]
        if any(len(one) == 4 for one in polygons):
            repairs.done["polygons of two corners made rectangles (no better than the box)"] += 1
        if any(is_short(one) and len(one) != 4 for one in polygons):
            repairs.done["polygons without three points removed"] += 1
        polygons = [_rectangle(one) if len(one) == 4 else one for one in polygons]
        polygons = [one for one in polygons if not is_short(one)]
        if polygons:
            annotation["segmentation"] = polygons
        else:
            del annotation["segmentation"]
    elif kind in (Kind.NOT_FINITE, Kind.BROKEN_RLE, Kind.MALFORMED):
        del annotation["segmentation"]
        repairs.done["masks removed that cannot be used"] += 1


def _rectangle(corners: list[Any]) -> list[Any]:
    x1, y1, x2, y2 = corners
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _sizes(dataset: dict[str, Any]) -> dict[Any, tuple[int, int]]:
    """Image id -> (width, height), of the images that have both."""
    return {
        image["id"]: (image["width"], image["height"])
        for image in dataset["images"]
        if is_id(image.get("id"))
        and all(is_id(image.get(key)) and image[key] > 0 for key in ("width", "height"))
    }


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(is_number(one) and abs(one) < 1e308 for one in box)  # NaN and infinity are not
    )


def _corners_to_sides(dataset: dict[str, Any], repairs: Repairs) -> None:
    sizes = _sizes(dataset)
    usable = [one for one in dataset["annotations"] if _is_box(one.get("bbox"))]
    boxes = np.array([one["bbox"] for one in usable], np.float64).reshape(-1, 4)
    unknown = (math.nan, math.nan)
    of_images = [
        sizes.get(one.get("image_id"), unknown) if is_id(one.get("image_id")) else unknown
        for one in usable
    ]
    if not corners_suspected(boxes, np.array(of_images, np.float64).reshape(-1, 2)).any():
        repairs.left.append("boxes: they do not look like corners, and were not changed to sides")
        return
    for annotation in usable:
        x1, y1, x2, y2 = annotation["bbox"]
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    repairs.done["boxes changed from corners to [x, y, width, height]"] += len(usable)


def _repair_boxes(dataset: dict[str, Any], repairs: Repairs) -> None:
    sizes = _sizes(dataset)
    kept = []
    for annotation in dataset["annotations"]:
        image_id = annotation.get("image_id")
        fault = _box_fault(annotation, sizes.get(image_id) if is_id(image_id) else None, repairs)
        if fault is None:
            kept.append(annotation)
        else:
            repairs.done[f"annotations removed: box {fault}"] += 1
    dataset["annotations"] = kept


def _box_fault(annotation: Entry, size: tuple[int, int] | None, repairs: Repairs) -> str | None:
    """Clips a box that leaves its image; says why a box cannot be kept."""
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return "missing or not four numbers"
    if not _is_box(box):
        return "not finite"
    if min(box[2:]) <= 0:
        return "without width or height"
    if size is None:
        return None
    x, y = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    if x2 <= x or y2 <= y:
        return "wholly outside of its image"
    beyond = max(x - box[0], y - box[1], box[0] + box[2] - x2, box[1] + box[3] - y2)
    if beyond > TOLERANCE:
        annotation["bbox"] = [x, y, x2 - x, y2 - y]
        repairs.done["boxes clipped to their image"] += 1
    return None


def _repair_area(annotation: Entry, repairs: Repairs) -> None:
    area: Any = annotation.get("area")
    if not (is_number(area) and 0 <= area < math.inf):
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        repairs.done["area written from the box"] += 1


def _number_annotations(annotations: list[Entry], repairs: Repairs) -> None:
    """Keeps the first use of an id; the others are numbered on from the highest."""
    integers = [_integer(one.get("id")) for one in annotations]
    following = max((one for one in integers if one is not None), default=0) + 1
    if following + len(annotations) > LARGEST_ID:
        integers, following = [None] * len(annotations), 1
    used: set[int] = set()
    for annotation, integer in zip(annotations, integers, strict=True):
        if integer is None or integer in used:
            integer, following = following, following + 1
            repairs.done["annotations numbered: no usable id, or that of another"] += 1
        elif annotation["id"] is not integer and type(annotation["id"]) is not int:
            repairs.done["ids of annotations made integers"] += 1
        used.add(integer)
        annotation["id"] = integer
