"""A picture sheet of crops, each with the boxes in question and a caption."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ovd_d2.files import atomic_write
from ovd_d2.visualization import (
    BASE_COLOR,
    FAINT,
    INK,
    LINE_WIDTH,
    MARGIN,
    NOVEL_COLOR,
    NOVEL_MARK,
    TITLE_HEIGHT,
    label_font,
)

SIDE = 250  # pixels of a crop on the sheet
COLUMNS = 6
GAP = 14
LINE_HEIGHT = 19
CAPTION_LINES = 3
CONTEXT = 0.5  # of the boxes' longer side, on every side
MIN_CONTEXT = 12  # pixels of the image
DASH, DASH_GAP = 9, 6
PLACEHOLDER = (222, 226, 230)
LEGEND = "solid: detection    dashed: annotated object    orange ★: novel category    blue: base"


@dataclass(frozen=True)
class CropBox:
    """One box of a crop.

    Attributes:
        box: (x, y, width, height) in pixels of the image.
        novel: orange, else blue.
        dashed: an annotated object, else a detection.
    """

    box: Sequence[float]
    novel: bool
    dashed: bool


@dataclass(frozen=True)
class Crop:
    """One cell of the sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB; None where the image is missing: the cell stays grey.
        boxes: at least one; the crop shows them all. May be empty where the image is shown whole.
        headline: first line of the caption, bold.
        novel: the headline is orange with a star.
        lines: the lines below it.
        whole: show the whole image.
    """

    image: np.ndarray | None
    boxes: Sequence[CropBox]
    headline: str
    novel: bool
    lines: Sequence[str]
    whole: bool = False


def crop_sheet(
    crops: Iterable[Crop | None],
    number: int,
    path: str | os.PathLike[str],
    title: str,
    *,
    legend: str = LEGEND,
    columns: int = COLUMNS,
    numbered: bool = True,
) -> None:
    """Writes a PNG of `number` crops in reading order, with a title and a legend.

    Args:
        crops: as many as `number` says, None for a cell that stays white; looked at one at a time,
            so an iterator that reads the images keeps one of them in memory.
        path: the PNG; it appears whole or not at all.
        title, legend: one line each.
        columns: crops beside each other.
        numbered: captions begin with the crop's number.

    Raises:
        ValueError: there are no crops.
    """
    if not number:
        raise ValueError(f"no crops to draw for {os.fspath(path)}")
    columns, cell = min(columns, number), SIDE + CAPTION_LINES * LINE_HEIGHT + 6
    top = MARGIN + TITLE_HEIGHT + 34
    text_width = max(label_font(24, bold=True).getlength(title), label_font(15).getlength(legend))
    width = 2 * MARGIN + max(columns * (SIDE + GAP) - GAP, math.ceil(text_width))
    rows = -(-number // columns)
    sheet = Image.new("RGB", (width, top + rows * (cell + GAP) - GAP + MARGIN), "white")
    brush = ImageDraw.Draw(sheet)
    brush.text((MARGIN, MARGIN), title, font=label_font(24, bold=True), fill=INK, anchor="lt")
    brush.text((MARGIN, MARGIN + 40), legend, font=label_font(15), fill=FAINT, anchor="lt")
    for k, crop in enumerate(crops):
        if crop is None:
            continue
        row, column = divmod(k, columns)
        left, upper = MARGIN + column * (SIDE + GAP), top + row * (cell + GAP)
        sheet.paste(_picture(crop), (left, upper))
        _caption(brush, crop, f"{k + 1}  " if numbered else "", left, upper + SIDE + 4)
    with atomic_write(path) as temporary:
        # Level 1 takes a quarter of the time of the default level, which an evaluation waits for.
        sheet.save(temporary, format="PNG", compress_level=1)


def crop_window(
    boxes: Sequence[Sequence[float]], width: int, height: int
) -> tuple[int, int, int, int]:
    """The square around all boxes (XYWH) with context, moved and cut to lie in the image: XYXY.

    Boxes outside the image or without area give a window of at least one pixel.
    """
    edges = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=np.float64)
    left, top = edges[:, :2].min(axis=0)
    right, bottom = edges[:, 2:].max(axis=0)
    longer = max(right - left, bottom - top)
    side = longer + 2 * max(CONTEXT * longer, MIN_CONTEXT)
    x0, x1 = _interval((left + right) / 2, side, width)
    y0, y1 = _interval((top + bottom) / 2, side, height)
    return x0, y0, x1, y1


def _interval(centre: float, side: float, size: int) -> tuple[int, int]:
    side = min(round(side), size)
    start = min(max(round(centre - side / 2), 0), size - side)
    return start, start + max(side, 1)


def _picture(crop: Crop) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), PLACEHOLDER)
    if crop.image is None:
        brush = ImageDraw.Draw(canvas)
        text = "image missing"
        brush.text((SIDE / 2, SIDE / 2), text, font=label_font(15), fill=INK, anchor="mm")
        return canvas
    height, width = crop.image.shape[:2]
    boxes = [one.box for one in crop.boxes]
    x0, y0, x1, y1 = (0, 0, width, height) if crop.whole else crop_window(boxes, width, height)
    factor = SIDE / max(x1 - x0, y1 - y0)
    size = (max(1, round((x1 - x0) * factor)), max(1, round((y1 - y0) * factor)))
    window = Image.fromarray(crop.image[y0:y1, x0:x1]).resize(size, Image.Resampling.BICUBIC)
    offset = ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2)
    canvas.paste(window, offset)
    brush = ImageDraw.Draw(canvas)
    for one in sorted(crop.boxes, key=lambda box: box.dashed):  # dashes over solid lines
        x, y, w, h = one.box
        corners = np.array([x - x0, y - y0, x + w - x0, y + h - y0]) * factor
        _draw_box(brush, (corners + np.tile(offset, 2)).clip(1, SIDE - 2), one)
    return canvas


def _draw_box(brush: ImageDraw.ImageDraw, corners: np.ndarray, one: CropBox) -> None:
    x0, y0, x1, y1 = corners.tolist()
    color = NOVEL_COLOR if one.novel else BASE_COLOR
    if not one.dashed:
        brush.rectangle((x0, y0, x1, y1), outline=color, width=LINE_WIDTH)
        return
    brush.rectangle((x0, y0, x1, y1), outline="white", width=LINE_WIDTH)
    for start, end in (
        ((x0, y0), (x1, y0)),
        ((x0, y1), (x1, y1)),
        ((x0, y0), (x0, y1)),
        ((x1, y0), (x1, y1)),
    ):
        _dashes(brush, start, end, color)


def _dashes(
    brush: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    color: tuple[int, int, int],
) -> None:
    length = max(end[0] - start[0], end[1] - start[1])
    along = (1.0, 0.0) if end[0] > start[0] else (0.0, 1.0)
    position = 0.0
    while position < length:
        stop = min(position + DASH, length)
        points = [start[k] + place * along[k] for place in (position, stop) for k in (0, 1)]
        brush.line(points, fill=color, width=LINE_WIDTH)
        position += DASH + DASH_GAP


def _caption(brush: ImageDraw.ImageDraw, crop: Crop, number: str, left: float, top: float) -> None:
    headline = f"{number}{NOVEL_MARK if crop.novel else ''}{crop.headline}"
    fill = NOVEL_COLOR if crop.novel else INK
    bold = label_font(15, bold=True)
    brush.text((left, top), shortened(headline, SIDE, bold), font=bold, fill=fill, anchor="lt")
    for k, line in enumerate(crop.lines[: CAPTION_LINES - 1], 1):
        font, color = label_font(14), INK if k == 1 else FAINT
        place = (left, top + k * LINE_HEIGHT)
        brush.text(place, shortened(line, SIDE, font), font=font, fill=color, anchor="lt")


def shortened(text: str, width: float, font: object) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels in `font`."""
    if font.getlength(text) <= width:  # type: ignore[attr-defined]
        return text
    while text and font.getlength(text + "…") > width:  # type: ignore[attr-defined]
        text = text[:-1]
    return text + "…"
