"""Drawing of pictograms: glyph masks, appearances, and single objects on a background.

Scenes (`scenes.py`) and the teacher's crops (`random_crop_sample`) draw through `draw_object`, so
both come from one family of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colours import COLOURS, contrast, luminance, sample_ink
from .glyphs import Glyph, PictogramCategory, font_path
from .textures import textured_background

__all__ = [
    "COLOURS",
    "Appearance",
    "ObjectLayers",
    "draw_object",
    "glyph_mask",
    "object_layers",
    "paste_glyph",
    "paste_object",
    "random_crop_sample",
    "readable_appearance",
    "sample_appearance",
    "sample_side",
    "textured_background",
    "top_left",
]

MAX_ROTATION_DEG = 30.0
MIN_OBJECT_PX = 20  # below, a person cannot name the glyph
OBJECT_SIDE = (0.14, 0.50)  # longer side of an object, as a fraction of the image's side
_MIN_CONTRAST = 0.22  # between ink and what lies under it; below, the object gets a backing
_BACKINGS = ("none", "halo", "sticker")
_MASTERS = (128, 256, 768)  # px; a glyph is scaled down from the first of at least twice its size


@dataclass(frozen=True)
class Appearance:
    """How one object is drawn.

    Attributes:
        colour: name of the ink.
        ink: RGB of the ink, 0..255.
        rotation_deg: counter-clockwise rotation.
        weight: extra stroke, as a fraction of the glyph's size.
        backing: "none", "halo" (a contrasting rim around the ink) or "sticker" (a contrasting
            filled silhouette below the ink).
        margin: width of the rim, as a fraction of the glyph's size.
    """

    colour: str
    ink: tuple[int, int, int]
    rotation_deg: float
    weight: float
    backing: str
    margin: float


@lru_cache(maxsize=1024)
def _master_mask(codepoint: int, size_px: int, stroke_px: int) -> np.ndarray:
    """The upright glyph at `size_px`, tight but for a 1 px border, uint8 alpha."""
    font = ImageFont.truetype(str(font_path()), size_px)
    left, top, right, bottom = font.getbbox(chr(codepoint), stroke_width=stroke_px)
    # A font's em is not the glyph's size: ask again for the size that makes the longer side fit.
    font = ImageFont.truetype(
        str(font_path()), max(1, round(size_px * size_px / max(right - left, bottom - top)))
    )
    left, top, right, bottom = font.getbbox(chr(codepoint), stroke_width=stroke_px)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
    ImageDraw.Draw(image).text(
        (1 - left, 1 - top), chr(codepoint), fill=255, font=font, stroke_width=stroke_px
    )
    return np.asarray(image)


def glyph_mask(
    glyph: Glyph, size_px: int, rotation_deg: float = 0.0, weight: float = 0.0
) -> np.ndarray:
    """The antialiased alpha of a glyph, uint8 (h, w) with max(h, w) == size_px, cropped tight.

    Args:
        glyph: what to draw.
        size_px: longer side of the tight box after the rotation, at least 1.
        rotation_deg: counter-clockwise.
        weight: extra stroke as a fraction of the size (0.02 is a bold glyph).

    Raises:
        ValueError: size_px < 1.
    """
    if size_px < 1:
        raise ValueError(f"size_px: expected at least 1, got {size_px}")
    master_px = next((side for side in _MASTERS if side >= 2 * size_px), _MASTERS[-1])
    master = _master_mask(glyph.codepoint, master_px, round(weight * master_px))
    rotated = _tight(_rotate(master, rotation_deg))
    scale = size_px / max(rotated.shape)
    height, width = (max(1, round(side * scale)) for side in rotated.shape)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(rotated, (width, height), interpolation=method)


def _rotate(mask: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the centre on a canvas that holds the whole result."""
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    out_width = int(np.ceil(width * cosine + height * sine))
    out_height = int(np.ceil(width * sine + height * cosine))
    matrix[:, 2] += (out_width - width) / 2, (out_height - height) / 2
    return cv2.warpAffine(mask, matrix, (out_width, out_height), flags=cv2.INTER_LINEAR)


def _tight(mask: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero((mask >= 128).any(axis=1))
    columns = np.flatnonzero((mask >= 128).any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def paste_glyph(
    canvas: np.ndarray, mask: np.ndarray, colour: Sequence[int], xy: tuple[int, int]
) -> None:
    """Blend `colour` into `canvas` in place, where `mask` says; what lies outside is clipped.

    Args:
        canvas: (H, W, 3) uint8 RGB.
        mask: (h, w) uint8 alpha.
        colour: RGB, 0..255.
        xy: where the mask's top left pixel goes; may be negative.
    """
    window, part = _clip(canvas.shape[:2], mask.shape, xy)
    if window is None:
        return
    alpha = mask[part].astype(np.float32)[..., None] / 255
    below = canvas[window].astype(np.float32)
    canvas[window] = np.rint(below + (np.asarray(colour, np.float32) - below) * alpha)


def _clip(
    canvas: tuple[int, int], patch: tuple[int, ...], xy: tuple[int, int]
) -> tuple[tuple[slice, slice] | None, tuple[slice, slice]]:
    """The slices of canvas and patch that overlap; the first is None if nothing does."""
    x, y = xy
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + patch[1], canvas[1]), min(y + patch[0], canvas[0])
    part = (slice(top - y, bottom - y), slice(left - x, right - x))
    if right <= left or bottom <= top:
        return None, part
    return (slice(top, bottom), slice(left, right)), part


def sample_appearance(rng: np.random.Generator, category: PictogramCategory) -> Appearance:
    """Draw colour (unless the category fixes it), jitter, rotation, weight and backing."""
    names = list(COLOURS)
    colour = category.colour or names[int(rng.integers(len(names)))]
    return Appearance(
        colour=colour,
        ink=sample_ink(rng, colour),
        rotation_deg=float(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG)),
        weight=float(rng.uniform(0.0, 0.016)),
        backing=_BACKINGS[int(rng.choice(3, p=(0.4, 0.3, 0.3)))],
        margin=float(rng.uniform(0.03, 0.06)),
    )


def sample_side(rng: np.random.Generator, image_side: int, largest: float = OBJECT_SIDE[1]) -> int:
    """The longer side of an object in px, log-uniform.

    From OBJECT_SIDE[0] of the image's side, but never below MIN_OBJECT_PX, to `largest` of it.
    """
    low = max(OBJECT_SIDE[0] * image_side, MIN_OBJECT_PX)
    high = max(low, largest * image_side)
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


@dataclass(frozen=True)
class ObjectLayers:
    """What an object is made of: arrays of one shape (h, w).

    Attributes:
        ink: uint8 alpha of the glyph.
        backing: uint8 alpha of halo or sticker below it; all 0 without one.
        silhouette: bool, the object's mask: the outline of all that is drawn, holes filled.
    """

    ink: np.ndarray
    backing: np.ndarray
    silhouette: np.ndarray


def object_layers(glyph: Glyph, size_px: int, appearance: Appearance) -> ObjectLayers:
    """Render an object whose longer side, rim included, is `size_px`."""
    margin = 0
    if appearance.backing != "none":
        margin = max(1, round(appearance.margin * size_px))
    inner = max(1, size_px - 2 * margin)
    ink = glyph_mask(glyph, inner, appearance.rotation_deg, appearance.weight)
    ink = np.pad(ink, margin)
    if margin == 0:
        return ObjectLayers(ink, np.zeros_like(ink), _filled(ink))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1))
    backing = cv2.dilate(ink, kernel)
    silhouette = _filled(backing)
    if appearance.backing == "sticker":
        backing = np.maximum(backing, silhouette.astype(np.uint8) * 255)
    return ObjectLayers(ink, backing, silhouette)


def _filled(alpha: np.ndarray) -> np.ndarray:
    """The silhouette of an alpha mask: at least half opaque, holes filled; bool (h, w)."""
    solid = (alpha >= 128).astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(solid, contours, -1, 1, cv2.FILLED)
    return solid.astype(bool)


def _backing_colour(rng: np.random.Generator, ink: tuple[int, int, int]) -> tuple[int, int, int]:
    """A neutral tone far from the ink: pale under dark inks, dark under pale ones."""
    pale = luminance(ink) < 140
    tone = rng.uniform(222, 252) if pale else rng.uniform(14, 58)
    red, green, blue = np.clip(tone + rng.normal(0, 5, 3), 0, 255)
    return round(red), round(green), round(blue)


def readable_appearance(
    rng: np.random.Generator,
    canvas: np.ndarray,
    size_px: int,
    appearance: Appearance,
    centre: tuple[float, float],
) -> Appearance:
    """The same appearance, with a backing if the ink would drown in the canvas around `centre`."""
    choice = _BACKINGS[1 + int(rng.integers(2))]
    half = size_px // 2
    x, y = round(centre[0]), round(centre[1])
    window = canvas[
        max(0, y - half) : max(0, y + half + 1), max(0, x - half) : max(0, x + half + 1)
    ]
    pixels = window.reshape(-1, 3)
    if appearance.backing != "none" or len(pixels) == 0:
        return appearance
    distances = contrast(appearance.ink, pixels[:: max(1, len(pixels) // 64)])
    drowned = np.quantile(distances, 0.3) < _MIN_CONTRAST
    return replace(appearance, backing=choice) if drowned else appearance


def top_left(silhouette: np.ndarray, centre: tuple[float, float]) -> tuple[int, int]:
    """(x, y) of the first pixel of a (h, w) patch whose box is centred at `centre`."""
    height, width = silhouette.shape
    return round(centre[0] - width / 2), round(centre[1] - height / 2)


def paste_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    layers: ObjectLayers,
    appearance: Appearance,
    xy: tuple[int, int],
) -> None:
    """Paint the layers of an object into `canvas`, in place."""
    backing_colour = _backing_colour(rng, appearance.ink)
    if appearance.backing != "none":
        paste_glyph(canvas, layers.backing, backing_colour, xy)
    paste_glyph(canvas, layers.ink, appearance.ink, xy)


def draw_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    glyph: Glyph,
    size_px: int,
    appearance: Appearance,
    centre: tuple[float, float],
) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw one object into `canvas` (H, W, 3) uint8 RGB, in place.

    Args:
        size_px: longer side of the object, rim included.
        centre: (x, y) of its box; the object may reach over the border.

    Returns:
        The silhouette, bool (h, w) and unclipped, and the (x, y) of its top left pixel.
    """
    appearance = readable_appearance(rng, canvas, size_px, appearance, centre)
    layers = object_layers(glyph, size_px, appearance)
    xy = top_left(layers.silhouette, centre)
    paste_object(rng, canvas, layers, appearance, xy)
    return layers.silhouette, xy


def random_crop_sample(
    rng: np.random.Generator,
    category: PictogramCategory,
    size: int | None,
    context: tuple[float, float] = (1.0, 1.5),
    *,
    image_side: int = 160,
    box_jitter: float = 0.06,
    neighbours: Sequence[PictogramCategory] = (),
    occlusion: float = 0.35,
) -> tuple[np.ndarray, str]:
    """A crop around one object, drawn as in a scene but independent of every scene.

    Args:
        rng: source of all randomness.
        category: what to draw.
        size: the crop is stretched to (size, size), as region crops are for CLIP; None keeps the
            crop's own size and aspect.
        context: range of the crop's sides as a multiple of the object's box.
        image_side: side of the scenes that the crop could come from, px; sets the object's size.
        box_jitter: standard deviation of centre and sides, as a fraction of the box: proposals are
            not exact.
        neighbours: categories that may reach into the crop; () for none.
        occlusion: probability that there is a neighbour.

    Returns:
        The crop, (h, w, 3) uint8 RGB, and the name of the object's colour.
    """
    side = sample_side(rng, image_side)
    canvas_side = min(image_side, round(side * (context[1] + 4 * box_jitter)) + 2)
    canvas = textured_background(rng, canvas_side, canvas_side, unit=image_side)
    lowest, highest = sorted((0.45 * side, canvas_side - 0.45 * side))
    centre = (float(rng.uniform(lowest, highest)), float(rng.uniform(lowest, highest)))
    above = False
    if len(neighbours) and rng.random() < occlusion:
        above = bool(rng.random() < 0.5)
        if not above:
            _draw_neighbour(rng, canvas, neighbours, (side, image_side), centre)
    appearance = sample_appearance(rng, category)
    silhouette, (x, y) = draw_object(rng, canvas, category.glyph, side, appearance, centre)
    if above:
        _draw_neighbour(rng, canvas, neighbours, (side, image_side), centre)
    height, width = silhouette.shape
    crop = _jittered_crop(rng, canvas, (x, y, width, height), context, box_jitter)
    if size is not None:
        method = cv2.INTER_AREA if max(crop.shape[:2]) > size else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (size, size), interpolation=method)
    return np.ascontiguousarray(crop), appearance.colour


def _draw_neighbour(
    rng: np.random.Generator,
    canvas: np.ndarray,
    neighbours: Sequence[PictogramCategory],
    sides: tuple[int, int],
    centre: tuple[float, float],
) -> None:
    """Another object beside the first, near enough to reach over its edge but not its middle.

    `sides` are those of the first object and of the scene, px.
    """
    side, image_side = sides
    category = neighbours[int(rng.integers(len(neighbours)))]
    other = min(sample_side(rng, image_side), round(1.3 * side))
    angle = rng.uniform(0, 2 * np.pi)
    distance = (side + other) / 2 * rng.uniform(0.72, 1.15)
    place = (centre[0] + distance * np.cos(angle), centre[1] + distance * np.sin(angle))
    draw_object(rng, canvas, category.glyph, other, sample_appearance(rng, category), place)


def _jittered_crop(
    rng: np.random.Generator,
    canvas: np.ndarray,
    box: tuple[int, int, int, int],
    context: tuple[float, float],
    jitter: float,
) -> np.ndarray:
    """Cut an XYWH box, jittered and scaled about its centre, clamped to the canvas."""
    x, y, width, height = box
    scale = rng.uniform(*context)
    noise = np.clip(rng.normal(0, jitter, 4), -2 * jitter, 2 * jitter)
    centre_x = x + width * (0.5 + noise[0])
    centre_y = y + height * (0.5 + noise[1])
    half_width = max(1.0, width * scale * (1 + noise[2]) / 2)
    half_height = max(1.0, height * scale * (1 + noise[3]) / 2)
    top, left = max(0, int(centre_y - half_height)), max(0, int(centre_x - half_width))
    bottom = max(top + 1, int(np.ceil(centre_y + half_height)))
    right = max(left + 1, int(np.ceil(centre_x + half_width)))
    return canvas[top:bottom, left:right]
