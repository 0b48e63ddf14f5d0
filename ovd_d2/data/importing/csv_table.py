"""CSV: a row per box, with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ovd_d2.data.importing.found import (
    Account,
    Choices,
    Corners,
    FoundImage,
    FoundObject,
    FoundSet,
    split_of_words,
)
from ovd_d2.data.importing.source import NotFound, Source
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text

NAME, TITLE = "csv", "CSV (a row per box)"
_COLUMNS = {
    "file": ("file", "filename", "file_name", "image", "image_path", "path"),
    "name": ("name", "class", "label", "class_name", "category"),
    "split": ("split", "set", "subset"),
}
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_SIDES = ("x", "y", "w", "h")
_EXPECTED = "file, name, xmin, ymin, xmax, ymax (or x1, y1, x2, y2; or x, y, w, h) in its first row"


def recognises(source: Source) -> bool:
    return bool(source.files(".csv"))


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """Boxes are in pixels counted from 0; a row with a file alone is of an image with nothing.

    Raises:
        SetupError: a file without the columns, and every row whose numbers are none.
    """
    found = FoundSet()
    for file in source.files(".csv"):
        rows = _rows(file)
        problems = [
            f"{file}, row {number}: {problem}"
            for number, row in rows
            if (problem := _row_problem(row))
        ]
        if problems:
            raise SetupError(problems)
        _add(rows, file, source, found, account)
    return found


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(row number as a spreadsheet counts, columns by our names)."""
    try:
        text = read_text(file)
    except ValueError as error:
        raise SetupError([str(error)]) from error
    first = text.split("\n", 1)[0]
    for delimiter in (",", ";", "\t"):
        header = [word.strip().lower() for word in next(csv.reader([first], delimiter=delimiter))]
        if (columns := _columns(header)) is not None:
            break
    else:
        raise SetupError([f"{file}: expected {_EXPECTED}; found {first.strip()[:100]!r}"])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    next(reader)
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        row = {key: cells[k].strip() for key, k in columns.items() if k < len(cells)}
        rows.append((reader.line_num, row | {"cells": f"{len(cells)} of {len(header)}"}))
    return rows


def _columns(header: list[str]) -> dict[str, int] | None:
    """Our name of a column -> its place; None where one is not there."""
    found = {}
    for key, words in _COLUMNS.items():
        places = [header.index(word) for word in words if word in header]
        if places:
            found[key] = places[0]
    for names, ours in ((_CORNERS[0], _CORNERS[0]), (_CORNERS[1], _CORNERS[0]), (_SIDES, _SIDES)):
        if all(name in header for name in names):
            found |= {our: header.index(name) for our, name in zip(ours, names, strict=True)}
            break
    else:
        return None
    size = {"width", "height"} & set(header)
    found |= {key: header.index(key) for key in size}
    return found if {"file", "name"} <= set(found) else None


def _numbers(row: Mapping[str, str]) -> list[str]:
    keys = _CORNERS[0] if "xmin" in row else _SIDES
    return [row.get(key, "") for key in keys]


def _row_problem(row: Mapping[str, str]) -> str | None:
    found, expected = row["cells"].split(" of ")
    if found != expected:
        return (
            f"{found} cells, the header has {expected}: write numbers with a point, not a comma, "
            "and quote texts with commas"
        )
    texts = _numbers(row)
    if not any(texts):
        return None  # an image with nothing
    for text in texts:
        try:
            float(text)
        except ValueError:
            hint = ": write 12.5, not 12,5" if "," in text else ""
            return f"expected a number, found {text!r}{hint}"
    return None


def _add(
    rows: list[tuple[int, dict[str, str]]],
    file: Path,
    source: Source,
    found: FoundSet,
    account: Account,
) -> None:
    images: dict[Path, list[FoundObject]] = {}
    about: dict[Path, tuple[int, Mapping[str, str]]] = {}
    for number, row in rows:
        where = f"{source.short(file)}, row {number}"
        try:
            image = source.find(row["file"], file.parent)
        except NotFound as error:
            account.left_out("box", str(error), f"{where} ({row['file']})")
            continue
        about.setdefault(image, (number, row))
        objects = images.setdefault(image, [])
        if any(_numbers(row)):
            objects.append(FoundObject(row["name"], _box(row), where))
    for image, ones in images.items():
        first, about_it = about[image]
        size = (about_it.get("width", ""), about_it.get("height", ""))
        known = (int(size[0]), int(size[1])) if all(map(str.isdecimal, size)) else None
        split = split_of_words([about_it.get("split", ""), file.stem]) or source.split_of(image)
        where = f"{source.short(file)}, row {first}"
        found.add(split, FoundImage(image, tuple(ones), where, known))


def _box(row: Mapping[str, str]) -> Corners:
    a, b, c, d = (float(text) for text in _numbers(row))
    return (a, b, c, d) if "xmin" in row else (a, b, a + c, b + d)
