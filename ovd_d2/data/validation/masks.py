"""Checks of segmentations against what the run and the loader make of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.segmentations import Kind
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source, shown

_POLYGONS = "polygons of three or more points"


def check_masks(table: AnnotationTable, source: Source, use: DatasetUse, found: Findings) -> None:
    """Masks that are wanted and not there, or cannot be used; and what stops the loader."""
    if use.masks or source.demands_masks:
        _check_absent(table, source, use, found)
    if use.masks or source.demands_masks or not (source.tolerant or source.kind == "lvis"):
        _check_unusable(table, source, found)
    if use.masks and use.training and use.mask_format == "polygon":
        rle = (_kinds(table) == Kind.RLE) & ~table.crowd
        if not source.demands_masks:
            _add(
                *(table, found, rle, "annotations have RLE masks", "polygons"),
                fix=f'set {use.format_key} bitmask (it is "polygon")',
            )
    if use.masks:
        _check_rle_sizes(table, found)


def _kinds(table: AnnotationTable) -> np.ndarray:
    return table.segmentations.values


def _add(
    table: AnnotationTable,
    found: Findings,
    rows: np.ndarray,
    what: str,
    expected: str,
    **rest: Any,
) -> None:
    def example(row: int) -> str:
        return table.segmentations.examples.get(int(_kinds(table)[row]), "")

    add = table.add_to(found, "segmentation")
    add(what, rows, expected=expected, found=example, **rest)


def _check_absent(table: AnnotationTable, source: Source, use: DatasetUse, found: Findings) -> None:
    absent = _kinds(table) == Kind.ABSENT
    if use.training and not source.demands_masks:
        absent = absent & ~table.crowd  # crowds are not trained on
    if not absent.any():
        return
    if source.demands_masks:
        what, fix = "annotations have no segmentation", "Detectron2's LVIS loader needs masks"
        _add(table, found, absent, what, _POLYGONS, fix=f"{fix}: export them, too")
        return
    what = f"annotations have no segmentation while {use.masks_key} is True"
    if use.training:
        some = "" if absent.all() else "give all of them masks, or "
        _add(table, found, absent, what, _POLYGONS, fix=f"{some}set {use.masks_key} False")
    elif absent.all():
        fix = "masks are not evaluated"
        _add(table, found, absent, what, _POLYGONS, fix=fix, notice=True)
    else:
        fix = f"give masks to all or to none, or set {use.masks_key} False"
        _add(table, found, absent, what, "masks for all or for none", fix=fix)


def _check_unusable(table: AnnotationTable, source: Source, found: Findings) -> None:
    kinds = _kinds(table)
    lost = "; Detectron2 leaves out their boxes, too" if not source.tolerant else ""
    short = "annotations have polygons with fewer than three points or an odd number of coordinates"
    _add(table, found, kinds == Kind.ALL_SHORT, short + lost, _POLYGONS)
    some = "annotations have such polygons beside sound ones"
    _add(
        *(table, found, kinds == Kind.SOME_SHORT, some, _POLYGONS),
        notice=not source.demands_masks,
        fix="" if source.demands_masks else f"they are left out; {found.repair}",
    )
    finite = "annotations have polygons that are not finite (NaN or infinite)"
    _add(table, found, kinds == Kind.NOT_FINITE, finite, "finite coordinates")
    rle = "annotations have a broken RLE mask"
    expected = "size [height, width] and counts that fill it"
    _add(table, found, kinds == Kind.BROKEN_RLE, rle, expected)
    malformed = "annotations have a segmentation that is neither polygons nor RLE"
    _add(table, found, kinds == Kind.MALFORMED, malformed, "[[x1, y1, x2, y2, ...], ...]")
    if source.demands_masks:
        fix = "Detectron2's LVIS loader reads polygons alone: register the file as COCO format"
        _add(table, found, kinds == Kind.RLE, "annotations have RLE masks", "polygons", fix=fix)


def _check_rle_sizes(table: AnnotationTable, found: Findings) -> None:
    rows = list(table.segmentations.sizes)
    if not rows:
        return
    masks = np.array([table.segmentations.sizes[row] for row in rows], np.float64)[:, ::-1]
    images = table.image_sizes[rows]
    other = (masks != images).any(axis=1) & np.isfinite(images).all(axis=1)

    def words(row: int) -> str:
        height, width = table.segmentations.sizes[row]
        image_width, image_height = table.image_sizes[row]
        return f"{shown(width)} x {height} in an image of {image_width:.0f} x {image_height:.0f}"

    table.add_to(found, "segmentation.size")(
        "annotations have an RLE mask of another size than their image",
        np.array(rows)[other],
        expected="[height, width] of the image",
        found=words,
        fix="export the masks again at the images' size",
    )
