"""From an annotation file, or from Detectron2's records, to everything that is wrong with it."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from tqdm import tqdm

from ovd_d2.data.annotation_files import PARTS
from ovd_d2.data.categories import category_problems
from ovd_d2.data.findings import Findings
from ovd_d2.data.json_stream import BAR_DELAY, file_problem, read_parts
from ovd_d2.data.problems import Problem
from ovd_d2.data.validation.boxes import check_areas, check_boxes, check_crowds
from ovd_d2.data.validation.entries import (
    check_annotation_ids,
    check_categories,
    check_images,
    check_parts,
)
from ovd_d2.data.validation.masks import check_masks
from ovd_d2.data.validation.split import check_split
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source
from ovd_d2.vocabulary import Categories


@dataclass
class Report:
    """What was found in a data set.

    Attributes:
        source: the annotation file, or the name of a data set without one.
        problems: what stops a run.
        notices: what is odd, but can be meant.
        images: an entry for every image without fault, in the file's order: `file_name` as the
            data set's loader gives it, `image_id`, `height`, `width`.
        annotated_images: those of them that show an object of a base category, crowds apart
            (what `DATALOADER.FILTER_EMPTY_ANNOTATIONS` leaves of a training set).
        categories: None where they have faults.
        counts: what there is, for people: "images", "annotations", ...
    """

    source: str
    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotated_images: list[dict[str, Any]] = field(default_factory=list)
    categories: Categories | None = None
    counts: dict[str, int] = field(default_factory=dict)


def read_table(path: Path, *, progress: bool = True) -> tuple[AnnotationTable, list[Problem]]:
    """Reads a file once, into columns; the problems are parts that are missing or no lists.

    Raises:
        FileNotFoundError: no such file.
        AnnotationFileError: not UTF-8, not JSON, cut short, nested too deep, or not an object.
    """
    table = AnnotationTable()
    content = read_parts(path, {p: partial(table.add, p) for p in PARTS}, progress=progress)
    problems = []
    for part in PARTS:
        if content.get(part, False) is not None:
            there = type(content[part]).__name__ if part in content else "no such key"
            what = f"lacks the list '{part}'"
            fix = "give a COCO- or LVIS-format file"
            problems.append(file_problem(path, what, f"'{part}': [...]", there, fix))
    return table, problems


def table_of_records(records: Iterable[Mapping[str, Any]], names: Sequence[str]) -> AnnotationTable:
    """The same columns from Detectron2's dicts, whose categories are numbered from 0 on."""
    table = AnnotationTable()
    table.add("categories", [{"id": k, "name": name} for k, name in enumerate(names)])
    for record in records:
        image = {key: record[key] for key in ("file_name", "height", "width") if key in record}
        if isinstance(image.get("file_name"), os.PathLike):
            image["file_name"] = os.fspath(image["file_name"])
        if "image_id" in record:
            image["id"] = record["image_id"]
        table.add("images", [image])
        own = {"image_id": record.get("image_id")}
        annotations = [{**own, **_as_in_file(one)} for one in record.get("annotations", ())]
        table.add("annotations", annotations)
    return table


def _as_in_file(annotation: Mapping[str, Any]) -> dict[str, Any]:
    """An annotation of Detectron2's as a COCO file has it: a list XYWH, lists, no bytes."""
    found = {key: annotation[key] for key in ("category_id", "iscrowd") if key in annotation}
    if "bbox" in annotation:
        found["bbox"] = _as_list(annotation["bbox"])
        mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
        if mode != BoxMode.XYWH_ABS and len(found["bbox"]) == 4:
            found["bbox"] = BoxMode.convert(found["bbox"], mode, BoxMode.XYWH_ABS)
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), bytes):
        segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    if isinstance(segmentation, dict) and "size" in segmentation:
        segmentation = {**segmentation, "size": _as_list(segmentation["size"])}
    elif isinstance(segmentation, list):
        segmentation = [_as_list(polygon) for polygon in segmentation]
    found["segmentation"] = segmentation
    return found


def _as_list(values: Any) -> Any:
    if isinstance(values, str):
        return values
    return np.asarray(values).tolist()


def report_on(
    table: AnnotationTable,
    source: Source,
    use: DatasetUse,
    *,
    categories: Callable[[Sequence[Mapping[str, Any]]], Categories],
    image_path: Callable[[AnnotationTable, int], str],
    progress: bool = True,
) -> Report:
    """Makes every check of a file that could be read.

    Args:
        table: its columns.
        source: what loads it.
        use: what for.
        categories: makes them of sound entries; raises ValueError.
        image_path: the path of a row of `table.images`, as the loader gives it.
    """
    found = Findings(source.file, is_file=source.kind != "records")
    report = Report(source.file, found.problems, found.notices)
    steps: list[Callable[[], None]] = [
        lambda: check_parts(table, found),
        lambda: check_images(table, source, use, found),
        lambda: check_categories(table, source, found),
        lambda: check_annotation_ids(table, source, found),
        lambda: check_boxes(table, source, found),
        lambda: check_crowds(table, source, found),
        lambda: check_masks(table, source, use, found),
    ]
    if source.kind != "records":
        steps.append(lambda: check_areas(table, use, found))
    bar = tqdm(steps, desc="checking", unit="step", delay=BAR_DELAY, disable=not progress)
    for step in bar:
        step()
    report.categories = _sound_categories(table, source, categories, found)
    if report.categories is not None and use.objects:
        check_split(table, report.categories, source, use, found)
    report.images, rows = _image_entries(table, image_path)
    annotated = _annotated_rows(table, report.categories)
    report.annotated_images = [
        entry for entry, row in zip(report.images, rows, strict=True) if annotated[row]
    ]
    report.counts = _counts(table)
    return report


def _sound_categories(
    table: AnnotationTable,
    source: Source,
    categories: Callable[[Sequence[Mapping[str, Any]]], Categories],
    found: Findings,
) -> Categories | None:
    if not table.categories or category_problems(source.file, table.categories):
        return None
    try:
        made = categories(table.categories)
        # Others than the file's, as of an official LVIS set, have been reported.
        return made if len(made) == len(table.categories) else None
    except ValueError as error:
        fix = "make the data set's entry and its file agree"
        expected = "the names of the file"
        found.one("categories", "file does not fit", expected=expected, found=str(error), fix=fix)
        return None


def _image_entries(
    table: AnnotationTable, image_path: Callable[[AnnotationTable, int], str]
) -> tuple[list[dict[str, Any]], list[int]]:
    columns = table.images
    sound = np.ones(table.num_images, np.bool_)
    for key in ("height", "width"):
        sound &= columns[key].sound & (columns[key].values > 0)
    entries, rows = [], []
    for row in np.flatnonzero(sound).tolist():
        path = image_path(table, row)
        if path:
            image_id = columns["id"].raw(row)
            height, width = (int(columns[key].values[row]) for key in ("height", "width"))
            sizes = {"height": height, "width": width}
            entries.append({"file_name": path, "image_id": image_id, **sizes})
            rows.append(row)
    return entries, rows


def _annotated_rows(table: AnnotationTable, categories: Categories | None) -> np.ndarray:
    """(images,) whether an image shows an object that is trained on."""
    shown = np.zeros(table.num_images, np.bool_)
    if categories is None:
        return shown
    base = ~np.array([*categories.novel, True], np.bool_)  # the last one serves -1
    rows = table.image_rows[base[table.classes] & ~table.crowd]
    shown[rows[rows >= 0]] = True
    return shown


def _counts(table: AnnotationTable) -> dict[str, int]:
    known = table.image_rows[table.image_rows >= 0]
    used = table.category_rows[table.category_rows >= 0]
    return {
        "images": table.num_images,
        "annotations": table.num_annotations,
        "categories": len(table.categories),
        "crowds": int(table.crowd.sum()),
        "images without annotation": table.num_images - len(np.unique(known)),
        "categories without annotation": len(table.categories) - len(np.unique(used)),
        "annotations without mask": int((table.segmentations.values == 0).sum()),
    }


def byte_order_mark_problem(path: Path) -> Problem | None:
    """For files that Detectron2, pycocotools or lvis read themselves: they refuse the mark."""
    with path.open("rb") as stream:
        if stream.read(3) != codecs.BOM_UTF8:
            return None
    fix = f"python datasets/check_annotations.py {path} --fix fixed.json leaves it out"
    what = "begins with a byte order mark, which Detectron2's and pycocotools' readers refuse"
    return file_problem(path, what, "UTF-8 without it", json.dumps("\ufeff"), fix)
