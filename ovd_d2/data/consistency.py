"""Is a data set what its annotation file says? Boxes, ids, base and novel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode

from ovd_d2.data.categories import CategoryTable

Records = Sequence[dict[str, Any]]

SHOWN = 3  # examples in a message


def annotation_problems(name: str, records: Records) -> list[str]:
    """Boxes without area, and images that stand twice under one id."""
    problems = []
    flat = [
        record["file_name"]
        for record in records
        for annotation in record.get("annotations", ())
        if _shorter_side(annotation) <= 0
    ]
    if flat:
        problems.append(
            f"'{name}': {len(flat)} boxes have no width or height, first in {flat[0]}; "
            "remove them from the annotation file"
        )
    ids = Counter(record["image_id"] for record in records)
    twice = [image_id for image_id, count in ids.items() if count > 1]
    if twice:
        problems.append(
            f"'{name}': {len(twice)} image ids stand more than once, first {twice[:SHOWN]}"
        )
    return problems


def _shorter_side(annotation: dict[str, Any]) -> float:
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode != BoxMode.XYWH_ABS:
        box = BoxMode.convert(list(box), mode, BoxMode.XYWH_ABS)
    return min(box[2:4])


def split_problems(name: str, table: CategoryTable, records: Records) -> list[str]:
    """A training set without base categories, or with none of its base categories annotated."""
    base = [k for k, is_novel in enumerate(table.is_novel) if not is_novel]
    if not base:
        return [f"'{name}': all {len(table)} categories are novel, there is nothing to train on"]
    present = {a["category_id"] for record in records for a in record.get("annotations", ())}
    if not present.intersection(base):
        return [f"'{name}': none of its {len(base)} base categories has an annotation"]
    return []


def split_notices(name: str, table: CategoryTable, records: Records) -> list[str]:
    """What is odd about the split, but can be meant: no novel category, base ones without a box."""
    notices = []
    if not any(table.is_novel):
        notices.append(f"'{name}' has no novel category: AP_novel will be nan")
    present = {a["category_id"] for record in records for a in record.get("annotations", ())}
    absent = [
        category
        for k, category in enumerate(table.names)
        if not table.is_novel[k] and k not in present
    ]
    if absent:
        notices.append(
            f"'{name}': {len(absent)} base categories have no box in training: "
            f"{', '.join(absent[:SHOWN])}{' ...' if len(absent) > SHOWN else ''}"
        )
    return notices
