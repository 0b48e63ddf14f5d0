"""Checks of ids, names, sizes and references: what every entry must have, and of which type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from ovd_d2.data.categories import ID, LARGEST_ID, category_problems
from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.columns import MISSING, Column
from ovd_d2.data.validation.table import (
    FEDERATED,
    AnnotationTable,
    DatasetUse,
    Source,
    raw_of,
    shown,
)

_EXPORT = "export the file again with them, or add them"


def check_parts(table: AnnotationTable, found: Findings) -> None:
    """Entries that are no objects, and lists without entries."""
    entries = {
        "images": table.num_images,
        "annotations": table.num_annotations,
        "categories": len(table.categories),
    }
    for part, (count, first) in table.not_objects.items():
        what, total = f"entries of {part} are not objects", entries[part] + count
        say: dict[str, Any] = {"first": first, "expected": "{...}", "found": first}
        found.add(f"{part}[]", what, range(count), total, **say)
    for part in ("images", "categories"):
        if entries[part] == 0:
            fix = "export the file again"
            found.one(part, f"file has no {part}", expected="at least one", found="none", fix=fix)


def check_images(table: AnnotationTable, source: Source, use: DatasetUse, found: Findings) -> None:
    """Ids, file names and sizes of the images."""
    ids, total = table.images["id"], table.num_images
    if source.kind != "records" or use.training or not use.objects:
        fix = "number the images" if source.kind == "records" else ""
        _check_ids(ids, "images", table.image, fix, found)
    twice = {rows[0]: rows for rows in _rows_by_repeated_value(ids)}
    found.add(
        "images[].id",
        "image ids are used for several images",
        list(twice),
        total,
        first=lambda row: _several(table, twice[row]),
        expected="an id for each image",
        found=lambda row: f"image id {shown(ids.raw(row))} more than once",
        fix="number the images again together with the image_id of their annotations "
        "(two exports joined?); nothing in the file tells whose annotations are whose",
    )
    _check_file_names(table, source, found)
    for key in ("height", "width"):
        column = table.images[key]
        _check_missing(column, "images", key, table.image, found, fix=_sizes_fix(found))
        wrong = ~column.sound | (column.values <= 0)
        wrong[column.rows_where(MISSING, None)] = False
        found.add(
            f"images[].{key}",
            f"images have a {key} that is no positive integer",
            wrong,
            total,
            first=table.image,
            expected="pixels, a positive integer",
            found=raw_of(column),
            fix=_sizes_fix(found),
        )
    if source.kind == "lvis" and use.objects and not use.training:
        _check_federated(table, found)


def check_categories(table: AnnotationTable, source: Source, found: Findings) -> None:
    """Ids and names of the categories, and what LVIS asks of them."""
    found.problems += category_problems(found.file, table.categories)
    if source.url_names:
        _check_lvis_categories(table, source, found)


def check_annotation_ids(table: AnnotationTable, source: Source, found: Findings) -> None:
    """Ids of the annotations, and the images and categories that they name."""
    if source.kind != "records":
        ids = table.annotations["id"]
        _check_ids(ids, "annotations", table.annotation, "", found)
        seconds = sorted(row for rows in _rows_by_repeated_value(ids) for row in rows[1:])
        table.add_to(found, "id")(
            "annotations have the id of another",
            seconds,
            expected="an id for each of the annotations",
            found=lambda row: f"id {shown(ids.raw(row))} again",
        )
    own = {"images": table.images["id"], "categories": table.category_ids}
    for key, rows, part in (
        ("image_id", table.image_rows, "images"),
        ("category_id", table.category_rows, "categories"),
    ):
        column = table.annotations[key]
        _check_missing(column, "annotations", key, table.annotation, found)
        unknown = rows < 0
        unknown[column.rows_where(MISSING, None)] = False
        ambiguous = own[part].rows_where(MISSING, None) or _rows_by_repeated_value(own[part])
        table.add_to(found, key)(
            f"annotations are of unknown {part}",
            unknown,
            expected=f"the id of one of {own[part].rows:,} {part}",
            found=raw_of(column),
            fix=f"repair the ids of the {part} first" if ambiguous else "",
        )


def _check_ids(
    column: Column, part: str, name: Callable[[int], str], fix: str, found: Findings
) -> None:
    _check_missing(column, part, "id", name, found, fix=fix)
    kinds: dict[str, list[int]] = defaultdict(list)
    for row, value in column.odd.items():
        if value is not MISSING and value is not None:
            kinds[_kind(value)].append(row)
    for kind, rows in kinds.items():
        found.add(
            f"{part}[].id",
            f"{part} have {kind} as 'id'",
            rows,
            column.rows,
            first=name,
            expected=ID,
            found=raw_of(column),
            fix=fix,
        )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)) and value > LARGEST_ID:
        return "a number above 2**63 - 1"
    if isinstance(value, int):
        return "a negative number"
    if isinstance(value, float):
        return "a number with a decimal point"
    return "a string" if isinstance(value, str) else "a list or an object"


def _check_missing(
    column: Column,
    part: str,
    key: str,
    name: Callable[[int], str],
    found: Findings,
    *,
    fix: str = "",
) -> None:
    for value, what in (
        (MISSING, f"{part} have no '{key}'"),
        (None, f"{part} have a null '{key}'"),
    ):
        found.add(
            f"{part}[].{key}",
            what,
            column.rows_where(value),
            column.rows,
            first=name,
            expected="pixels, a positive integer" if key in ("height", "width") else ID,
            found=shown(value),
            fix=fix,
        )


def _rows_by_repeated_value(column: Column) -> list[list[int]]:
    """The rows of each value that occurs more than once, in the file's order."""
    values, counts = np.unique(column.values[column.sound], return_counts=True)
    repeated = np.isin(column.values, values[counts > 1]) & column.sound
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in np.flatnonzero(repeated).tolist():
        groups[int(column.values[row])].append(row)
    for row, value in column.odd.items():
        if isinstance(value, (str, int, float)):
            groups[value].append(row)
    return sorted(rows for rows in groups.values() if len(rows) > 1)


def _several(table: AnnotationTable, rows: list[int]) -> str:
    names = [table.image_name(row) or f"image number {row + 1}" for row in rows]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    own = shown(table.images["id"].raw(rows[0]))
    return f"image id {own} is used for {' and '.join(names[:2])}{more}"


def _check_file_names(table: AnnotationTable, source: Source, found: Findings) -> None:
    key = "coco_url" if source.url_names else "file_name"
    column = table.images[key]
    names, urls = column.values.tolist(), table.images["coco_url"].values
    add = partial(
        found.add,
        f"images[].{key}",
        total=table.num_images,
        first=table.image,
        expected=_EXPECTED_NAME[key],
        fix=_EXPORT,
    )
    without = column.rows_where(MISSING)
    url_only = [row for row in without if isinstance(urls[row], str)]
    add(
        f"images have no '{key}'",
        url_only,
        found="coco_url alone",
        fix="the last two parts of coco_url are the file (--fix writes them as file_name: "
        f"{found.repair}); LVIS's own files are registered by Detectron2 as lvis_v1_train and "
        "lvis_v1_val",
    )
    nothing = sorted(set(without) - set(url_only))
    add(f"images have no '{key}'", nothing, found=shown(MISSING))
    parts = 2 if source.url_names else 1
    wrong = {row for row, name in enumerate(names) if not _is_name(name, parts)}
    what = f"images have a '{key}' that names no file"
    add(what, sorted(wrong - set(without)), found=lambda row: shown(names[row]))
    _note_repeated_files(table, names, found, key)


_EXPECTED_NAME = {
    "file_name": "a file below image_root",
    "coco_url": "an address that ends in folder/file",
}


def _is_name(name: Any, parts: int) -> bool:
    return isinstance(name, str) and bool(name.strip()) and len(name.split("/")) >= parts


def _note_repeated_files(
    table: AnnotationTable, names: list[Any], found: Findings, key: str
) -> None:
    """Only noted: nothing stops at it, and listing a file again is a way of sampling it more."""
    seen: dict[str, int] = {}
    again = {
        row: seen[name]
        for row, name in enumerate(names)
        if isinstance(name, str) and seen.setdefault(name, row) != row
    }
    found.add(
        f"images[].{key}",
        "images have the file of another image",
        list(again),
        len(names),
        first=table.image,
        expected="a file for each image",
        found=lambda row: f"the file of {table.image(again[row])}",
        fix="where the annotations of one file are spread over its ids, the objects of one id "
        "are background for the other: join them",
        notice=True,
    )


def _check_federated(table: AnnotationTable, found: Findings) -> None:
    for key in FEDERATED:
        found.add(
            f"images[].{key}",
            f"images have no list '{key}'",
            ~table.images[key].values,
            table.num_images,
            first=table.image,
            expected="a list of category ids, which LVIS's protocols need",
            found="none",
            fix="for an exhaustively annotated data set give its metadata the evaluator_type "
            '"coco"',
        )


def _check_lvis_categories(table: AnnotationTable, source: Source, found: Findings) -> None:
    ids = [entry.get("id") for entry in table.categories]
    total = len(ids)
    say: dict[str, Any] = {"total": total, "first": table.category}
    if set(map(repr, ids)) != {str(k + 1) for k in range(total)}:
        odd = [k for k, one in enumerate(ids) if one not in range(1, total + 1)]
        found.add(
            "categories[].id",
            "category ids are not those of LVIS",
            odd or [0],
            **say,
            expected=f"1 to {total}, each once: Detectron2 takes id - 1 as the class",
            found=lambda row: shown(ids[row]),
            fix="number the categories from 1 on, or register the file in the COCO format",
        )
    letters = [entry.get("frequency") for entry in table.categories]
    wrong = [k for k, letter in enumerate(letters) if letter not in ("r", "c", "f")]
    found.add(
        "categories[].frequency",
        "categories have no frequency r, c or f",
        wrong,
        **say,
        expected="r, c or f",
        found=lambda row: shown(letters[row]),
        fix="without it no category is novel, and AP has no parts by frequency",
        notice=len(wrong) == total,
    )
    if source.names:
        _check_official_names(table, source, found)


def _check_official_names(table: AnnotationTable, source: Source, found: Findings) -> None:
    other = [
        k
        for k, entry in enumerate(table.categories)
        if source.names.get(entry.get("id", -1)) != entry.get("name")
    ]
    found.add(
        "categories[].name",
        "categories are not Detectron2's of this data set",
        other,
        len(table.categories),
        first=table.category,
        expected=f"the {len(source.names):,} names of LVIS v1",
        found=lambda row: shown(table.categories[row].get("name")),
        fix="the names come from Detectron2, not from the file: register the file under a name "
        "of its own",
    )


def _sizes_fix(found: Findings) -> str:
    if not found.is_file:
        return found.repair
    return (
        f"python datasets/check_annotations.py {found.file} --images FOLDER --fix fixed.json "
        "reads them from the images"
    )
