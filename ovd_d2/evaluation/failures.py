"""The failure browser: sheets of the worst mistakes about novel categories, and an index."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image

from ovd_d2.crop_sheet import Crop, CropBox, crop_sheet
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.mistakes import (
    Mistake,
    match_novel,
    worst_false_positives,
    worst_misses,
)
from ovd_d2.evaluation.overlap import BoxRecord
from ovd_d2.evaluation.protocols import Detection
from ovd_d2.files import atomic_write
from ovd_d2.visualization import NOVEL_MARK
from ovd_d2.vocabulary import Categories

logger = logging.getLogger(__name__)

STYLE = """body{font-family:sans-serif;margin:2em;color:#212529;max-width:1640px}
img{max-width:100%;border:1px solid #dee2e6}
table{border-collapse:collapse;margin:1em 0 3em}
td,th{padding:.2em .9em;text-align:left;border-bottom:1px solid #dee2e6}"""
COLUMNS = ("", "category", "score", "IoU", "reason", "image")


@dataclass(frozen=True)
class Sheet:
    """One kind of mistake.

    Attributes:
        name: of the PNG, without its ending.
        title: heading.
        total: how many there are in all.
        mistakes: those that are shown, worst first.
        about_detection: the mistake is a detection; else it is an object.
    """

    name: str
    title: str
    total: int
    mistakes: Sequence[Mistake]
    about_detection: bool


def write_failures(
    folder: Path,
    ground_truth: GroundTruth,
    detections: Sequence[Detection],
    categories: Categories,
    description: Mapping[str, str],
    files: Mapping[int, str],
    count: int,
) -> Path:
    """Writes false_positives.png, missed_objects.png and index.html into `folder`.

    A kind without mistakes has no sheet (an older one is removed). An image that is not there
    leaves a grey cell, and an error that names the file in the log.

    Args:
        folder: is made if missing.
        ground_truth, detections, categories: as evaluated; boxes are matched at IoU 0.5.
        description: title -> text: data set, protocol, engine.
        files: image id -> image.
        count: crops a sheet, at most.

    Returns:
        The path of index.html.
    """
    matching = match_novel(ground_truth, detections, categories.novel_ids)
    sheets = [
        Sheet(
            "false_positives",
            "False positives of novel categories, the surest first",
            len(matching.false_positives),
            worst_false_positives(matching, ground_truth, count),
            about_detection=True,
        ),
        Sheet(
            "missed_objects",
            "Missed objects of novel categories, those surely called something else first",
            len(matching.missed),
            worst_misses(matching, detections, count),
            about_detection=False,
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in sheets:
        path = folder / f"{sheet.name}.png"
        if sheet.mistakes:
            crops = _crops(sheet, categories, files)
            crop_sheet(crops, len(sheet.mistakes), path, sheet.title)
        else:
            path.unlink(missing_ok=True)
    index = folder / "index.html"
    with atomic_write(index) as temporary:
        temporary.write_text(_page(sheets, categories, description, files), encoding="utf-8")
    logger.info("The worst mistakes about novel categories: %s", index)
    return index


def _crops(sheet: Sheet, categories: Categories, files: Mapping[int, str]) -> Iterator[Crop]:
    for mistake in sheet.mistakes:
        record = _subject(mistake, sheet)
        boxes = [
            CropBox(one["bbox"], one["category_id"] in categories.novel_ids, dashed)
            for one, dashed in ((mistake.detection, False), (mistake.truth, True))
            if one is not None
        ]
        yield Crop(
            _read(files.get(mistake.image_id), mistake.image_id),
            boxes,
            _name_and_score(record, categories),
            novel=True,
            lines=(_other(mistake, sheet, categories), _where(mistake, files)),
        )


def _read(file: str | None, image_id: int) -> np.ndarray | None:
    """The image as (H, W, 3) RGB; None, and an error in the log, where there is none."""
    if file is None:
        logger.error("The model's input for image %s named no file: no crop of it.", image_id)
        return None
    try:
        return read_image(file, "RGB")
    except OSError as error:
        logger.error("File '%s' of image %s cannot be read (%s): no crop.", file, image_id, error)
        return None


def _subject(mistake: Mistake, sheet: Sheet) -> BoxRecord:
    record = mistake.detection if sheet.about_detection else mistake.truth
    assert record is not None  # the one that the mistake is about is always there
    return record


def _name_and_score(record: BoxRecord, categories: Categories) -> str:
    name = categories.name_of[record["category_id"]]
    return f"{name} {record['score']:.0%}" if "score" in record else name


def _other(mistake: Mistake, sheet: Sheet, categories: Categories) -> str:
    """What was there, or detected, instead."""
    other = mistake.truth if sheet.about_detection else mistake.detection
    if other is None:
        return mistake.reason
    mark = NOVEL_MARK if other["category_id"] in categories.novel_ids else ""
    word = "really" if sheet.about_detection else "detected"
    return f"{word}: {mark}{_name_and_score(other, categories)}"


def _where(mistake: Mistake, files: Mapping[int, str]) -> str:
    overlap = f"IoU {mistake.iou:.2f}, " if mistake.detection and mistake.truth else ""
    return overlap + Path(files.get(mistake.image_id, f"image {mistake.image_id}")).name


def _page(
    sheets: Sequence[Sheet],
    categories: Categories,
    description: Mapping[str, str],
    files: Mapping[int, str],
) -> str:
    lines = "<br>".join(f"{_safe(key)}: {_safe(text)}" for key, text in description.items())
    note = "" if categories.novel_ids else "<p>The data set has no novel categories.</p>"
    parts = [_section(sheet, categories, files) for sheet in sheets]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Failures</title>\n'
        f"<style>{STYLE}</style></head><body>\n<h1>The worst mistakes about novel categories</h1>\n"
        f"<p>{lines}</p>\n{note}\n<p>Matched by box at IoU 0.5.</p>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _section(sheet: Sheet, categories: Categories, files: Mapping[int, str]) -> str:
    heading = f"<h2>{_safe(sheet.title)}</h2>\n<p>{len(sheet.mistakes)} of {sheet.total:,}</p>"
    if not sheet.mistakes:
        return heading
    rows = [
        _row(k, mistake, sheet, categories, files) for k, mistake in enumerate(sheet.mistakes, 1)
    ]
    column = "really" if sheet.about_detection else "detected"
    titles = (*COLUMNS[:3], column, *COLUMNS[3:])
    header = "".join(f"<th>{_safe(one)}</th>" for one in titles)
    image = f'<img src="{sheet.name}.png" alt="{_safe(sheet.title)}">'
    return f"{heading}\n{image}\n<table><tr>{header}</tr>\n" + "\n".join(rows) + "\n</table>"


def _row(
    number: int,
    mistake: Mistake,
    sheet: Sheet,
    categories: Categories,
    files: Mapping[int, str],
) -> str:
    record = _subject(mistake, sheet)
    other = mistake.truth if sheet.about_detection else mistake.detection
    cells = (
        str(number),
        categories.name_of[record["category_id"]],
        f"{record['score']:.3f}" if "score" in record else "",
        _name_and_score(other, categories) if other is not None else "",
        f"{mistake.iou:.2f}" if other is not None else "",
        mistake.reason,
        str(files.get(mistake.image_id, f"image {mistake.image_id}")),
    )
    return "<tr>" + "".join(f"<td>{_safe(one)}</td>" for one in cells) + "</tr>"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
