"""Checks of boxes, crowds and areas."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.columns import MISSING
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source, raw_of, shown

TOLERANCE = 1.0  # pixels outside of the image that nobody need hear of: rounding
CLEARLY_OUTSIDE = 2.0  # pixels
SUSPICIOUS_SHARE = 0.05  # of boxes that leave the image, from which on it is no accident
NEARLY_ALL = 0.99  # a flat box does not make the others sound

_BOX = "[x, y, width, height] in pixels"


def check_boxes(table: AnnotationTable, source: Source, found: Findings) -> None:
    """Boxes that are no boxes, flat or outside ones, and other conventions than COCO's."""
    boxes = table.boxes.values
    add = partial(table.add_to(found, "bbox"), expected=_BOX, found=raw_of(table.boxes))
    missing = table.boxes.rows_where(MISSING)
    add("annotations have no 'bbox'", missing)
    add("boxes are not four numbers", sorted(set(table.boxes.odd) - set(missing)))
    finite = np.isfinite(boxes).all(axis=1)
    add("boxes are not finite (NaN or infinite)", table.boxes.sound & ~finite)
    flat = finite & (boxes[:, 2:] <= 0).any(axis=1)
    add("boxes have no width or height", flat, notice=source.official)
    if not _suspect_convention(table, found):
        _check_outside(table, finite & ~flat, found, notice=source.official)


def corners_suspected(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(A,) which boxes leave their image as XYWH, where [x1, y1, x2, y2] is what was meant.

    All False unless a share of them does and nearly all, read as corners, are boxes inside of
    their images: boxes in the right convention, most of which are nearer to the left or upper
    border than they are large, are no such set.

    Args:
        boxes: (A, 4) as in the file.
        sizes: (A, 2) width and height of their images, NaN where unknown.
    """
    usable = np.flatnonzero(np.isfinite(boxes).all(axis=1) & np.isfinite(sizes).all(axis=1))
    starts, ends, limits = boxes[usable, :2], boxes[usable, 2:], sizes[usable] + CLEARLY_OUTSIDE
    leaves = np.logical_or.reduce(starts + ends > limits, axis=1)
    fits = (starts < ends) & (ends <= limits) & (starts >= -CLEARLY_OUTSIDE)
    fits = np.logical_and.reduce(fits, axis=1)
    suspected = np.zeros(len(boxes), np.bool_)
    many = leaves.any() and leaves.mean() >= SUSPICIOUS_SHARE
    if many and fits.mean() >= NEARLY_ALL and fits[leaves].all():
        suspected[usable[leaves]] = True
    return suspected


def _suspect_convention(table: AnnotationTable, found: Findings) -> bool:
    """Corners in place of sides, or fractions of the image in place of pixels."""
    boxes, sizes = table.boxes.values, table.image_sizes
    add = partial(table.add_to(found, "bbox"), expected=_BOX, found=raw_of(table.boxes))
    convert = f"{found.repair} with --corners" if found.is_file else "set bbox_mode XYXY_ABS"
    corners = add(
        "boxes leave their image, and as [x1, y1, x2, y2] all boxes fit: corners are suspected",
        corners_suspected(boxes, sizes),
        fix=f"if they are corners: {convert}",
    )
    finite = np.isfinite(boxes).all(axis=1)
    inside = boxes[finite]
    fractions = (
        len(inside) > 0
        and bool((np.abs(inside) <= 1).all())
        and bool((inside % 1 != 0).any())
        and not bool((sizes[finite] <= 2).any())
    )
    return corners or add(
        "boxes have no number above 1: fractions of the image are suspected",
        finite & fractions,
        fix="multiply x and width by the image's width, y and height by its height",
    )


def _check_outside(
    table: AnnotationTable, usable: NDArray[np.bool_], found: Findings, *, notice: bool
) -> None:
    boxes, sizes, total = table.boxes.values, table.image_sizes, table.num_annotations
    ends = boxes[:, :2] + boxes[:, 2:]
    with np.errstate(invalid="ignore"):  # images of unknown size
        outside = usable & ((boxes[:, :2] >= sizes) | (ends <= 0)).any(axis=1)
        beyond = (boxes[:, :2] < -TOLERANCE) | (ends > sizes + TOLERANCE)
    partly = usable & ~outside & beyond.any(axis=1)

    def words(row: int) -> str:
        width, height = sizes[row]
        return f"{shown(table.boxes.raw(row))} in {width:.0f} x {height:.0f}"

    add = partial(table.add_to(found, "bbox"), expected="boxes inside", found=words)
    add("boxes are wholly outside of their image", outside, notice=notice)
    what = "boxes are partly outside of their image"
    fix = f"training clips them; {found.repair}{', clipped' if found.is_file else ''}"
    corners = (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= sizes + TOLERANCE)
    if partly.sum() >= max(1, SUSPICIOUS_SHARE * total) and corners[partly].all():
        what += ", but inside as [x1, y1, x2, y2]"
        fix = f"if some of the boxes are corners, correct them in the file; else {fix}"
    add(what, partly, fix=fix, notice=True)


def check_crowds(table: AnnotationTable, source: Source, found: Findings) -> None:
    """`iscrowd` of another type than 0 and 1, and `ignore`, which Detectron2 refuses."""
    if source.kind == "lvis":
        return  # LVIS has no crowds: nothing reads the key
    column = table.annotations["iscrowd"]
    add = partial(table.add_to(found, "iscrowd"), expected="0 or 1")
    nulls = column.rows_where(None)
    taken = "null, taken as 0" if source.tolerant else "null, which training takes for a crowd"
    add("annotations have a null 'iscrowd'", nulls, found=taken, notice=source.tolerant)
    odd = sorted(set(column.odd) - set(nulls))
    add("annotations have an 'iscrowd' that is neither 0 nor 1", odd, found=raw_of(column))
    ignore = table.annotations["ignore"]
    ignored = ignore.values == 1
    ignored[[row for row, value in ignore.odd.items() if value]] = True
    table.add_to(found, "ignore")(
        "annotations have 'ignore' set",
        ignored,
        expected="no such key, or 0: Detectron2 refuses it",
        found=raw_of(ignore),
        fix="set iscrowd 1 in its place, or remove the annotations",
    )


def check_areas(table: AnnotationTable, use: DatasetUse, found: Findings) -> None:
    """Evaluation sorts objects by area; training does not look at it."""
    if use.training or not use.objects:
        return
    column = table.annotations["area"]
    add = partial(table.add_to(found, "area"), expected="square pixels")
    missing = column.rows_where(MISSING, None)
    what = "annotations have no 'area', or null"
    add(what, missing, found="none: the box's is taken", notice=True)
    wrong = ~(np.isfinite(column.values) & (column.values >= 0))
    wrong[missing] = False
    add("annotations have an area that is no number from 0 on", wrong, found=raw_of(column))
