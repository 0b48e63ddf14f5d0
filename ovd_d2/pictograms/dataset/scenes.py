"""One scene: a textured background, clutter, and objects that may overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .colours import COLOURS, sample_ink
from .glyphs import Glyph, PictogramCategory
from .render import (
    MIN_OBJECT_PX,
    OBJECT_SIDE,
    Appearance,
    ObjectLayers,
    draw_object,
    object_layers,
    paste_object,
    readable_appearance,
    sample_appearance,
    sample_side,
    top_left,
)
from .textures import textured_background

MIN_VISIBLE = 0.45  # of an object's silhouette, after everything above it and the border
_SAME_COLOUR = 0.6  # probability that a repeated category keeps its colour: "two blue umbrellas"
_CROWD_MEMBERS = (14, 26)
_CROWD_SIDE = (0.15, 0.20)  # of a member, as a fraction of the image's side
_CROWD_SPACING = 0.62  # of a member's side, between neighbours: they overlap
_TRIES = 40  # positions tried for one object before it shrinks
_LETTERS = "BEFGKPQRSZ234567"  # read as clutter: no category looks like a letter or a digit


@dataclass(frozen=True)
class SceneObject:
    """An object as it is seen.

    Attributes:
        category: 0-based index into the categories.
        colour: a key of COLOURS.
        mask: bool (H, W), the visible part of the silhouette; of a crowd its whole region.
        is_crowd: it stands for many objects that touch each other.
    """

    category: int
    colour: str
    mask: np.ndarray
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8 RGB; objects: in drawing order, the topmost last."""

    image: np.ndarray
    objects: list[SceneObject]


@dataclass(frozen=True)
class _Wanted:
    """An object before it has a place."""

    category: int
    glyph: Glyph
    side: int
    appearance: Appearance


class _Canvas:
    """The image in the making, and who owns each pixel of it."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.owner = np.full(image.shape[:2], -1, np.int16)
        self._areas: list[int] = []  # of the whole silhouettes, hidden parts and all
        self._visible: list[int] = []

    def accepts(self, silhouette: np.ndarray, xy: tuple[int, int]) -> bool:
        """Whether a new silhouette and all those below it would stay visible enough."""
        covered, inside = self._under(silhouette, xy)
        if inside < 0.85 * silhouette.sum():
            return False
        left = np.array(self._visible, np.int64) - covered
        return bool(np.all(left >= MIN_VISIBLE * np.array(self._areas)))

    def claim(self, silhouette: np.ndarray, xy: tuple[int, int]) -> None:
        """Give the pixels of a silhouette to a new object, on top."""
        covered, inside = self._under(silhouette, xy)
        for index, count in enumerate(covered.tolist()):
            self._visible[index] -= count
        window, part = self._windows(silhouette, xy)
        self.owner[window][silhouette[part]] = len(self._areas)
        self._areas.append(int(silhouette.sum()))
        self._visible.append(inside)

    def _under(self, silhouette: np.ndarray, xy: tuple[int, int]) -> tuple[np.ndarray, int]:
        """Pixels of each earlier object below the silhouette, and its pixels in the image."""
        window, part = self._windows(silhouette, xy)
        owners = self.owner[window][silhouette[part]]
        covered = np.bincount(owners[owners >= 0], minlength=len(self._areas))
        return covered, len(owners)

    def _windows(
        self, patch: np.ndarray, xy: tuple[int, int]
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The overlap of image and patch, as slices into either."""
        height, width = self.image.shape[:2]
        x, y = xy
        left, top = max(x, 0), max(y, 0)
        right = max(left, min(x + patch.shape[1], width))
        bottom = max(top, min(y + patch.shape[0], height))
        window = (slice(top, bottom), slice(left, right))
        return window, (slice(top - y, bottom - y), slice(left - x, right - x))


def draw_scene(
    rng: np.random.Generator,
    contents: Sequence[int],
    categories: Sequence[PictogramCategory],
    side: int,
) -> Scene:
    """Draw a square scene that shows exactly the objects asked for.

    Args:
        rng: source of all randomness.
        contents: 0-based category index of every object, at most 9.
        categories: all categories.
        side: of the image, px.

    Raises:
        ValueError: more than 9 objects: the layout cannot promise to show them all.
    """
    if len(contents) > 9:
        raise ValueError(f"contents: expected at most 9 objects, got {len(contents)}")
    background = textured_background(rng, side, side)
    _draw_clutter(rng, background)
    wanted = _choose_objects(rng, contents, categories, side)
    for shrink in (1.0, 0.85, 0.7, 0.55):
        canvas = _Canvas(background.copy())
        if all(_place(rng, canvas, _shrunk(item, shrink)) for item in wanted):
            return _finish(canvas, wanted)
    return _grid_scene(rng, background, wanted)


def draw_crowd(
    rng: np.random.Generator, category: int, categories: Sequence[PictogramCategory], side: int
) -> Scene:
    """Draw a square scene that shows one dense crowd of small objects and nothing else.

    Args:
        rng: source of all randomness.
        category: 0-based category index of all its members.
        categories: all categories.
        side: of the image, px.

    Returns:
        The scene; its one object is the crowd, whose mask covers the gaps between the members.
    """
    image = textured_background(rng, side, side)
    _draw_clutter(rng, image)
    first = sample_appearance(rng, categories[category])
    size = max(MIN_OBJECT_PX, round(rng.uniform(*_CROWD_SIDE) * side))
    mask = np.zeros((side, side), np.uint8)
    for centre in _crowd_places(rng, side, _CROWD_SPACING * size):
        look = replace(
            sample_appearance(rng, categories[category]), colour=first.colour, ink=first.ink
        )
        drawn, (x, y) = draw_object(rng, image, categories[category].glyph, size, look, centre)
        top, left = max(y, 0), max(x, 0)
        part = drawn[top - y : side - y, left - x : side - x]
        mask[top : top + part.shape[0], left : left + part.shape[1]] |= part
    around = 2 * round(0.5 * size) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (around, around))
    # In a frame: at the image's border, closing would grow the region to the border.
    framed = cv2.morphologyEx(np.pad(mask, around), cv2.MORPH_CLOSE, kernel)
    closed = framed[around:-around, around:-around].astype(bool)
    return Scene(image, [SceneObject(category, first.colour, closed, is_crowd=True)])


def _crowd_places(rng: np.random.Generator, side: int, spacing: float) -> list[tuple[float, float]]:
    """Centres (x, y) of the members: the places of a jittered grid nearest to the crowd's middle,
    where near is measured along an ellipse."""
    middle = rng.uniform(0.35, 0.65, 2) * side
    reach = int(side / spacing) + 1
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), axis=-1).reshape(-1, 2)
    places = (grid + rng.uniform(-0.3, 0.3, grid.shape)) * spacing
    nearest = np.argsort(np.hypot(*(places / rng.uniform(0.75, 1.35, 2)).T))
    places = places[nearest[: int(rng.integers(*_CROWD_MEMBERS))]] + middle
    inside = ((places > 0.3 * spacing) & (places < side - 0.3 * spacing)).all(axis=1)
    return [(float(x), float(y)) for x, y in places[inside]]


def _choose_objects(
    rng: np.random.Generator,
    contents: Sequence[int],
    categories: Sequence[PictogramCategory],
    side: int,
) -> list[_Wanted]:
    """Sizes and appearances; roughly from large to small, so that the small ones lie on top."""
    largest = min(OBJECT_SIDE[1], 1.25 / math.sqrt(max(1, len(contents))))
    colours: dict[int, Appearance] = {}
    wanted = []
    for index in contents:
        appearance = sample_appearance(rng, categories[index])
        first = colours.setdefault(index, appearance)
        if rng.random() < _SAME_COLOUR:
            appearance = replace(appearance, colour=first.colour, ink=first.ink)
        size = sample_side(rng, side, largest)
        wanted.append(_Wanted(index, categories[index].glyph, size, appearance))
    depth = [item.side * rng.uniform(0.6, 1.6) for item in wanted]
    return [wanted[i] for i in np.argsort(depth)[::-1]]


def _shrunk(item: _Wanted, factor: float) -> _Wanted:
    return replace(item, side=max(min(MIN_OBJECT_PX, item.side), round(item.side * factor)))


def _place(rng: np.random.Generator, canvas: _Canvas, item: _Wanted) -> bool:
    """Draw the object at the first random position where nothing gets hidden; False if none."""
    side = canvas.image.shape[0]
    layers: dict[str, ObjectLayers] = {}
    for _ in range(_TRIES):
        centre = tuple(rng.uniform(0.42 * item.side, side - 0.42 * item.side, 2).tolist())
        appearance = readable_appearance(rng, canvas.image, item.side, item.appearance, centre)
        if appearance.backing not in layers:
            layers[appearance.backing] = object_layers(item.glyph, item.side, appearance)
        drawn = layers[appearance.backing]
        xy = top_left(drawn.silhouette, centre)
        if canvas.accepts(drawn.silhouette, xy):
            paste_object(rng, canvas.image, drawn, appearance, xy)
            canvas.claim(drawn.silhouette, xy)
            return True
    return False


def _grid_scene(
    rng: np.random.Generator, background: np.ndarray, wanted: Sequence[_Wanted]
) -> Scene:
    """The layout that cannot fail: no object leaves its own cell of a 3 x 3 grid."""
    canvas = _Canvas(background.copy())
    cell = background.shape[0] / 3
    for item, place in zip(wanted, rng.permutation(9).tolist(), strict=False):
        centre = ((place % 3 + 0.5) * cell, (place // 3 + 0.5) * cell)
        size = min(item.side, int(0.92 * cell))
        silhouette, xy = draw_object(rng, canvas.image, item.glyph, size, item.appearance, centre)
        canvas.claim(silhouette, xy)
    return _finish(canvas, wanted)


def _finish(canvas: _Canvas, wanted: Sequence[_Wanted]) -> Scene:
    objects = [
        SceneObject(item.category, item.appearance.colour, canvas.owner == index)
        for index, item in enumerate(wanted)
    ]
    return Scene(canvas.image, objects)


def _draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Shapes that are no category, below all objects, in place: plain figures and letters."""
    side = image.shape[0]
    for _ in range(int(rng.integers(1, 7))):
        colour = sample_ink(rng, list(COLOURS)[int(rng.integers(len(COLOURS)))])
        _draw_figure(rng, image, colour)
    for _ in range(int(rng.choice(3, p=(0.55, 0.3, 0.15)))):
        letter = _LETTERS[int(rng.integers(len(_LETTERS)))]
        glyph = Glyph(letter, ord(letter), "a letter or digit")
        category = PictogramCategory(letter, glyph, None, glyph.definition, "")
        centre = tuple(rng.uniform(0, side, 2).tolist())
        size = min(sample_side(rng, side), round(0.3 * side))
        draw_object(rng, image, glyph, size, sample_appearance(rng, category), centre)


def _draw_figure(rng: np.random.Generator, image: np.ndarray, colour: tuple[int, int, int]) -> None:
    """A line, an arc, an ellipse, a box or a triangle."""
    side = image.shape[0]
    size = side * math.exp(rng.uniform(math.log(0.05), math.log(0.3)))
    x, y = (int(value) for value in rng.uniform(0, side, 2))
    thickness = max(1, round(side * rng.uniform(0.006, 0.02)))
    angle = rng.uniform(0, 360)
    kind = int(rng.integers(5))
    half = (max(1, int(size / 2)), max(1, int(size * rng.uniform(0.2, 0.5))))
    if kind == 3:  # a slender box: a square one on its tip is the diamond suit
        half = (half[0], max(1, half[1] // 2))
    if kind == 0:
        dx, dy = size * math.cos(angle), size * math.sin(angle)
        cv2.line(image, (x, y), (int(x + dx), int(y + dy)), colour, thickness, cv2.LINE_AA)
    elif kind == 1:
        end = rng.uniform(60, 250)
        cv2.ellipse(image, (x, y), half, angle, 0, end, colour, thickness, cv2.LINE_AA)
    elif kind == 2:
        fill = -1 if rng.random() < 0.5 else thickness
        cv2.ellipse(image, (x, y), half, angle, 0, 360, colour, fill, cv2.LINE_AA)
    else:
        corners = cv2.boxPoints(((x, y), (2.0 * half[0], 2.0 * half[1]), angle))
        points = corners[: 4 if kind == 3 else 3].astype(np.int32)
        if rng.random() < 0.5:
            cv2.fillPoly(image, [points], colour, cv2.LINE_AA)
        else:
            cv2.polylines(image, [points], True, colour, thickness, cv2.LINE_AA)
