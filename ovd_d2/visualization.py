"""Pictures of ground truth and of detections, with novel categories marked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import cv2
import matplotlib.font_manager as font_manager
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageDraw, ImageFont

from ovd_d2.files import atomic_write

BASE_COLOR = (31, 119, 180)
NOVEL_COLOR = (230, 85, 13)
NOVEL_MARK = "★ "
READABLE_SIDE = 480  # pixels: below this, labels cover the objects
MAX_NAME_LENGTH = 26
LINE_WIDTH = 3

Objects: TypeAlias = Instances | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SheetRow:
    """One scene of a picture sheet.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        ground_truth: Instances or annotation dicts, as `draw_instances` takes them.
        predictions: the same.
    """

    image: np.ndarray
    ground_truth: Objects
    predictions: Objects


@dataclass(frozen=True)
class _Drawable:
    """N objects in pixels of the image to be drawn on."""

    boxes: np.ndarray  # (N, 4) float XYXY
    classes: list[int]
    scores: list[float] | None
    masks: list[np.ndarray] | None  # N of (H, W) bool

    def __len__(self) -> int:
        return len(self.classes)

    def label(self, k: int, names: Sequence[str], novel: Sequence[bool]) -> str:
        name = names[self.classes[k]]
        if len(name) > MAX_NAME_LENGTH:
            name = name[: MAX_NAME_LENGTH - 1] + "…"
        mark = NOVEL_MARK if novel[self.classes[k]] else ""
        return mark + name + (f" {self.scores[k]:.0%}" if self.scores is not None else "")


def draw_instances(
    image_rgb: np.ndarray,
    objects: Objects,
    names: Sequence[str],
    novel: Sequence[bool],
    *,
    score_threshold: float = 0.0,
    scale: float | None = None,
    alpha: float = 0.25,
) -> np.ndarray:
    """Draws boxes, masks and labels; novel categories in orange with a star, base ones in blue.

    Args:
        image_rgb: (H, W, 3) uint8.
        objects: `Instances` of predictions (`pred_boxes`, `pred_classes`, optional `scores`,
            `pred_masks`) or of ground truth (`gt_boxes`, `gt_classes`, optional `gt_masks`), or
            Detectron2 annotation dicts (`bbox`, `bbox_mode`, contiguous `category_id`, optional
            `segmentation`). Coordinates are those of `image_rgb`.
        names: C names in class order.
        novel: C flags.
        score_threshold: objects scored below it are left out.
        scale: enlargement; by default small images grow (by a whole number) until labels are
            readable.
        alpha: opacity of the masks.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.

    Raises:
        ValueError: the image is not (H, W, 3) uint8, or a class has no name.
    """
    _check(image_rgb, names, novel)
    height, width = image_rgb.shape[:2]
    factor = readable_scale(height, width) if scale is None else scale
    size = (round(width * factor), round(height * factor))
    canvas = np.asarray(Image.fromarray(image_rgb).resize(size, Image.Resampling.BICUBIC))
    drawable = _enlarged(_as_drawable(objects, height, width, score_threshold), factor, size)
    _check_classes(drawable.classes, len(names))
    order = np.argsort(-_areas(drawable.boxes), kind="stable").tolist()  # small ones on top
    shapes = _draw_shapes(canvas, drawable, order, novel, alpha)
    return _draw_labels(shapes, drawable, order, names, novel)


def readable_scale(height: int, width: int) -> int:
    """The whole number that brings the shorter side to about 480 pixels; at least 1."""
    return max(1, round(READABLE_SIDE / max(1, min(height, width))))


def picture_sheet(
    rows: Sequence[SheetRow],
    path: str | os.PathLike[str],
    title: str,
    *,
    names: Sequence[str],
    novel: Sequence[bool],
    score_threshold: float = 0.3,
    scenes_per_line: int = 2,
) -> None:
    """Writes a PNG of ground truth beside predictions, with a title and a legend.

    Args:
        rows: the scenes, in reading order.
        path: the PNG; it appears whole or not at all.
        title: one line.
        names, novel: as in `draw_instances`, for both sides.
        score_threshold: predictions scored below it are left out.
        scenes_per_line: ground truth / prediction pairs side by side.

    Raises:
        ValueError: there are no scenes.
    """
    if not rows:
        raise ValueError(f"no scenes to draw for {os.fspath(path)}")
    pairs = [
        (
            draw_instances(row.image, row.ground_truth, names, novel),
            draw_instances(
                row.image, row.predictions, names, novel, score_threshold=score_threshold
            ),
        )
        for row in rows
    ]
    sheet = _compose(pairs, title, min(scenes_per_line, len(pairs)))
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _check(image: np.ndarray, names: Sequence[str], novel: Sequence[bool]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"image must be (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}"
        )
    if len(names) != len(novel):
        raise ValueError(f"{len(names)} names but {len(novel)} novel flags")


def _check_classes(classes: Sequence[int], num_names: int) -> None:
    unknown = sorted({one for one in classes if not 0 <= one < num_names})
    if unknown:
        raise ValueError(f"objects have classes {unknown[:5]}, but there are {num_names} names")


def _as_drawable(objects: Objects, height: int, width: int, threshold: float) -> _Drawable:
    if isinstance(objects, Instances):
        return _from_instances(objects, threshold)
    return _from_annotations(objects, height, width)


def _from_instances(instances: Instances, threshold: float) -> _Drawable:
    instances = instances.to("cpu")
    prefix = "pred" if instances.has("pred_boxes") else "gt"
    if instances.has("scores"):
        instances = instances[instances.scores >= threshold]
    fields = instances.get_fields()
    masks = fields.get(f"{prefix}_masks")
    return _Drawable(
        fields[f"{prefix}_boxes"].tensor.detach().numpy().reshape(-1, 4),
        fields[f"{prefix}_classes"].tolist(),
        fields["scores"].tolist() if "scores" in fields else None,
        None if masks is None else _binary_masks(masks, *instances.image_size),
    )


def _from_annotations(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int
) -> _Drawable:
    boxes = [
        BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
        for one in annotations
    ]
    has_masks = bool(annotations) and all("segmentation" in one for one in annotations)
    masks = [one["segmentation"] for one in annotations] if has_masks else None
    return _Drawable(
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        [int(one["category_id"]) for one in annotations],
        None,
        None if masks is None else _binary_masks(masks, height, width),
    )


def _binary_masks(masks: Any, height: int, width: int) -> list[np.ndarray]:
    """Bool tensors, BitMasks, PolygonMasks, polygons or RLE -> (H, W) bool arrays."""
    plain = getattr(masks, "polygons", getattr(masks, "tensor", masks))
    arrays = [one.numpy().astype(np.uint8) if hasattr(one, "numpy") else one for one in plain]
    return [GenericMask(one, height, width).mask.astype(bool) for one in arrays]


def _enlarged(drawable: _Drawable, factor: float, size: tuple[int, int]) -> _Drawable:
    masks = drawable.masks
    if masks is not None:
        masks = [_smoothly_enlarged(one, size) for one in masks]
    return _Drawable(drawable.boxes * factor, drawable.classes, drawable.scores, masks)


def _smoothly_enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _color(novel: bool) -> tuple[int, int, int]:
    return NOVEL_COLOR if novel else BASE_COLOR


def _draw_shapes(
    canvas: np.ndarray,
    drawable: _Drawable,
    order: Sequence[int],
    novel: Sequence[bool],
    alpha: float,
) -> np.ndarray:
    visualizer = Visualizer(canvas)
    for k in order:
        color = tuple(value / 255 for value in _color(novel[drawable.classes[k]]))
        if drawable.masks is not None and drawable.masks[k].any():
            visualizer.draw_binary_mask(
                drawable.masks[k].astype(np.uint8), color=color, alpha=alpha, area_threshold=0
            )
        visualizer.draw_box(drawable.boxes[k], alpha=1.0, edge_color=color)
    return visualizer.get_output().get_image()


def _draw_labels(
    shapes: np.ndarray,
    drawable: _Drawable,
    order: Sequence[int],
    names: Sequence[str],
    novel: Sequence[bool],
) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(shapes[:, :, :3]))
    brush = ImageDraw.Draw(picture)
    font = label_font(max(12, round(min(picture.size) / 30)))
    taken: list[tuple[float, float, float, float]] = []
    for k in order:
        text = drawable.label(k, names, novel)
        place = _place_label(drawable.boxes[k], _text_size(font, text), picture.size, taken)
        taken.append(place)
        brush.rectangle(place, fill=_color(novel[drawable.classes[k]]))
        brush.text((place[0] + 4, place[1] + 2), text, font=font, fill="white", anchor="lt")
    return np.asarray(picture)


def _text_size(font: ImageFont.FreeTypeFont, text: str) -> tuple[float, float]:
    """Width and height of the label's plate; the height is that of the font, not of the text."""
    ascent, descent = font.getmetrics()
    return font.getlength(text) + 8, ascent + descent + 2


def _place_label(
    box: np.ndarray,
    plate: tuple[float, float],
    picture: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """The place among a few beside the box that covers least of the labels already placed."""
    x0, y0, x1, y1 = box.tolist()
    width, height = plate
    tops = (y0 - height, y1, y0, y0 - 2 * height, y1 + height)
    corners = [(left, top) for top in tops for left in (x0, x1 - width)]
    places = []
    for left, top in corners:
        left = min(max(left, 0.0), max(picture[0] - width - 1, 0.0))
        top = min(max(top, 0.0), max(picture[1] - height - 1, 0.0))
        places.append((left, top, left + width, top + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Common area; labels that only touch (by the width of a line) do not overlap."""
    width = min(one[2], other[2]) - max(one[0], other[0]) - LINE_WIDTH
    height = min(one[3], other[3]) - max(one[1], other[1]) - LINE_WIDTH
    return max(width, 0.0) * max(height, 0.0)


# The sheet: a title, a legend, then lines of (ground truth, predictions) pairs.

MARGIN, GAP, PAIR_GAP = 24, 6, 30
TITLE_HEIGHT, LEGEND_HEIGHT, HEADER_HEIGHT = 48, 40, 32
INK, FAINT = (33, 37, 41), (108, 117, 125)
LEGEND_GAP = 36
LEGEND = (
    (BASE_COLOR, "base category: boxes seen in training"),
    (NOVEL_COLOR, f"{NOVEL_MARK}novel category: no box of it in the detection data"),
)


def _compose(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], title: str, columns: int
) -> Image.Image:
    cell_width = max(one.shape[1] for pair in pairs for one in pair)
    cell_height = max(one.shape[0] for pair in pairs for one in pair)
    pair_width = 2 * cell_width + GAP
    lines = -(-len(pairs) // columns)
    top = MARGIN + TITLE_HEIGHT + LEGEND_HEIGHT + HEADER_HEIGHT
    text_width = max(label_font(28, bold=True).getlength(title), _legend_width())
    pictures_width = columns * pair_width + (columns - 1) * PAIR_GAP
    width = 2 * MARGIN + max(pictures_width, round(text_width))
    sheet = Image.new("RGB", (width, top + lines * (cell_height + GAP) - GAP + MARGIN), "white")
    brush = ImageDraw.Draw(sheet)
    brush.text((MARGIN, MARGIN), title, font=label_font(28, bold=True), fill=INK, anchor="lt")
    _draw_legend(brush, MARGIN, MARGIN + TITLE_HEIGHT)
    for column in range(columns):
        left = MARGIN + column * (pair_width + PAIR_GAP)
        for k, header in enumerate(("ground truth", "predictions")):
            middle = left + k * (cell_width + GAP) + cell_width / 2
            brush.text((middle, top - 10), header, font=label_font(18), fill=FAINT, anchor="ms")
    for number, pair in enumerate(pairs):
        line, column = divmod(number, columns)
        left = MARGIN + column * (pair_width + PAIR_GAP)
        for k, picture in enumerate(pair):
            place = (left + k * (cell_width + GAP), top + line * (cell_height + GAP))
            sheet.paste(Image.fromarray(picture), place)
    return sheet


def _draw_legend(brush: ImageDraw.ImageDraw, left: float, top: float) -> None:
    for color, text in LEGEND:
        brush.rectangle((left, top, left + 20, top + 20), fill=color)
        brush.text((left + 28, top + 16), text, font=label_font(18), fill=INK, anchor="ls")
        left += _entry_width(text) + LEGEND_GAP


def _legend_width() -> float:
    return sum(_entry_width(text) for _, text in LEGEND) + LEGEND_GAP * (len(LEGEND) - 1)


def _entry_width(text: str) -> float:
    return 28 + label_font(18).getlength(text)


@lru_cache(maxsize=16)
def label_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans comes with matplotlib, so it is there on every machine; it has the star."""
    weight = "bold" if bold else "normal"
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), size)
