"""Detectron2's records, which a function makes: what must be so before they are columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

from ovd_d2.data.findings import Findings
from ovd_d2.data.problems import Problem

_PATH = "file_name, image_id, height, width, annotations"


def record_problems(source: str, records: Any) -> list[Problem]:
    """Records and annotations that are no dicts, and boxes that Detectron2's mapper cannot turn
    into corners.

    Args:
        source: the data set, for messages.
        records: what the registered function returned.
    """
    found = Findings(source, is_file=False)
    if not isinstance(records, Sequence) or isinstance(records, str):
        kind = type(records).__name__
        found.one("records", "no list", expected="a list of dicts", found=kind, fix=found.repair)
        return found.problems
    odd = [row for row, one in enumerate(records) if not _is_record(one)]
    found.add(
        *("records[]", "records are not dicts of Detectron2's form", odd, len(records)),
        first=lambda row: f"number {row + 1}",
        expected=f"{{{_PATH}: a list of dicts}}",
        found=lambda row: str(records[row])[:60],
        fix="",
    )
    if not odd:
        _check_modes(records, found)
    return found.problems


def _is_record(record: Any) -> bool:
    if not isinstance(record, Mapping):
        return False
    annotations = record.get("annotations", ())
    return isinstance(annotations, Sequence) and all(isinstance(a, Mapping) for a in annotations)


def _check_modes(records: Sequence[Mapping[str, Any]], found: Findings) -> None:
    """One box of each kind is converted: there may be a million."""
    faults: dict[Any, str | None] = {}
    rows: list[int] = []
    said: dict[int, tuple[Any, str]] = {}
    total = 0
    for image_id, annotation in _boxes(records):
        box, mode = annotation["bbox"], annotation.get("bbox_mode")
        kind = (type(box), len(box), repr(mode))
        if kind not in faults:
            faults[kind] = _fault(annotation)
        if fault := faults[kind]:
            rows.append(total)
            said.setdefault(total, (image_id, fault))
        total += 1
    found.add(
        *("annotations[].bbox_mode", "boxes cannot be converted to corners", rows, total),
        first=lambda row: f"annotation number {row + 1} of image {said[row][0]}",
        expected="a list of numbers and the BoxMode that they are in",
        found=lambda row: said[row][1],
        fix="",
    )


def _boxes(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Image id and annotation of everything that has a box; what it must be is checked later."""
    for record in records:
        for annotation in record.get("annotations", ()):
            if hasattr(annotation.get("bbox"), "__len__"):
                yield record.get("image_id"), annotation


def _fault(annotation: Mapping[str, Any]) -> str | None:
    """Why `transform_instance_annotations` would stop at this annotation."""
    if "bbox_mode" not in annotation:
        return "no bbox_mode"
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if len(box) < 4:
        return None  # reported as a box of other than four numbers
    try:
        BoxMode.convert([1.0] * len(box) if isinstance(box, list) else box, mode, BoxMode.XYXY_ABS)
    except Exception as error:  # noqa: BLE001 (AssertionError, IndexError, NotImplementedError, ...)
        words = str(error).splitlines() or [type(error).__name__]
        return f"a {type(box).__name__} of {len(box)} in {mode!r} ({words[0]})"
    return None
