"""Crops and captions for training and testing the Pictogram CLIP.

The crops are drawn here, one object each, by the renderer of the Pictograms data set; the data
set's own scenes and boxes are never read. Every draw has a seed of its own, so the crops do not
depend on the number of worker processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ovd_d2.clip.prompts import PROMPT_FAMILIES, article
from ovd_d2.pictograms.dataset.glyphs import PictogramCategory
from ovd_d2.pictograms.dataset.render import random_crop_sample, textured_background
from ovd_d2.workers import process_pool

TRAIN_STREAM, HELD_OUT_STREAM, BATCH_STREAM = 1, 2, 3  # first word of every seed

BACKGROUND_CAPTIONS = ("just the background.", "an empty texture.", "nothing at all.")
FRAGMENT_CAPTIONS = ("a fragment of something.", "a cut off piece of something.")

_SCENE_SIDE = 160  # px; sets the objects' sizes, as in the default data set
_WINDOW_CUT = 0.14  # of a side, at most: a proposal of IoU 0.6 or more
_COLOUR_TRIES = 20


@dataclass(frozen=True)
class Crop:
    """A rendered crop: (h, w, 3) uint8 RGB at its native size, and the name of the ink."""

    pixels: np.ndarray
    colour: str


def render_crops(
    categories: Sequence[PictogramCategory],
    per_category: int,
    *,
    stream: int,
    seed: int,
    context: tuple[float, float] = (1.0, 1.5),
    box_jitter: float = 0.06,
    workers: int = 2,
    progress: bool = True,
) -> list[list[Crop]]:
    """Draws `per_category` crops of each category: a list (of categories) of lists.

    Args:
        categories: what to draw; they are also each other's neighbours in a crop.
        stream: `TRAIN_STREAM` or `HELD_OUT_STREAM`; equal seeds of different streams share nothing.
        seed: of the draw.
        context: range of the crop's sides, as a multiple of the object's box.
        box_jitter: standard deviation of the box's centre and sides, as a fraction of the box.
        workers: processes; 1 draws in this process.
    """
    view = {"context": context, "box_jitter": box_jitter}
    draw = partial(_draw_category, list(categories), per_category, (stream, seed), view)
    indices = range(len(categories))
    bar = partial(tqdm, total=len(categories), desc="draw", unit="category", disable=not progress)
    if workers <= 1:
        return list(bar(map(draw, indices)))
    with process_pool(workers) as pool:
        return list(bar(pool.map(draw, indices)))


def _draw_category(
    categories: list[PictogramCategory],
    count: int,
    seed: tuple[int, int],
    view: dict[str, Any],
    index: int,
) -> list[Crop]:
    rng = np.random.default_rng([*seed, index])
    drawn = (
        random_crop_sample(
            rng,
            categories[index],
            None,
            image_side=_SCENE_SIDE,
            neighbours=categories,
            **view,
        )
        for _ in range(count)
    )
    return [Crop(pixels, colour) for pixels, colour in drawn]


class CaptionedBatches:
    """Batches of (image, caption) in which no caption fits another caption's image.

    A contrastive loss takes every other caption of the batch for wrong, so a batch holds either
    each category at most once, or pairs of one glyph in two colours with the colours named. One
    background and one fragment join each batch: proposals are not all objects, and the embedding
    space needs a place for those that are none.
    """

    def __init__(
        self,
        categories: Sequence[PictogramCategory],
        bank: Sequence[Sequence[Crop]],
        *,
        seed: int,
        batch_size: int = 96,
        coloured_share: float = 0.3,
    ) -> None:
        """`bank` holds the crops of each category; `batch_size` bounds the objects in a batch."""
        self._categories = categories
        self._bank = bank
        self._seed = seed
        self._batch_size = batch_size
        named = [category.colour is not None for category in categories]
        self._coloured_share = 0.0 if any(named) else coloured_share

    def batch(self, step: int) -> tuple[list[Image.Image], list[str]]:
        """The batch of a step; it depends on the seed and the step alone."""
        rng = np.random.default_rng([BATCH_STREAM, self._seed, step])
        if rng.random() < self._coloured_share:
            samples = self._coloured_pairs(rng)
        else:
            samples = self._distinct_categories(rng)
        images = [Image.fromarray(_window(rng, crop.pixels)) for crop, _ in samples]
        captions = [caption_of(rng, name) for _, name in samples]
        images += [Image.fromarray(_background(rng)), Image.fromarray(self._fragment(rng))]
        captions += [_choice(rng, BACKGROUND_CAPTIONS), _choice(rng, FRAGMENT_CAPTIONS)]
        return images, captions

    def _distinct_categories(self, rng: np.random.Generator) -> list[tuple[Crop, str]]:
        chosen = rng.permutation(len(self._categories))[: self._batch_size]
        return [(self._any_crop(rng, index), self._categories[index].name) for index in chosen]

    def _coloured_pairs(self, rng: np.random.Generator) -> list[tuple[Crop, str]]:
        samples = []
        for index in rng.permutation(len(self._categories))[: max(1, self._batch_size // 2)]:
            name = self._categories[index].name
            first = self._any_crop(rng, index)
            samples.append((first, f"{first.colour} {name}"))
            for _ in range(_COLOUR_TRIES):
                second = self._any_crop(rng, index)
                if second.colour != first.colour:
                    samples.append((second, f"{second.colour} {name}"))
                    break
        return samples

    def _any_crop(self, rng: np.random.Generator, index: int) -> Crop:
        crops = self._bank[index]
        return crops[int(rng.integers(len(crops)))]

    def _fragment(self, rng: np.random.Generator) -> np.ndarray:
        """A corner of a crop: 25-40 % of its sides."""
        pixels = self._any_crop(rng, int(rng.integers(len(self._bank)))).pixels
        sides = [max(1, round(side * rng.uniform(0.25, 0.4))) for side in pixels.shape[:2]]
        top = int(rng.integers(2)) * (pixels.shape[0] - sides[0])
        left = int(rng.integers(2)) * (pixels.shape[1] - sides[1])
        return np.ascontiguousarray(pixels[top : top + sides[0], left : left + sides[1]])


def caption_of(rng: np.random.Generator, name: str) -> str:
    """A random sentence about a name: a template of any family, or "this is a ...", or the name."""
    kind = rng.random()
    if kind < 0.1:
        return name
    if kind < 0.3:
        return f"this is {article(name)} {name}"
    template = _choice(rng, PROMPT_FAMILIES["vild63"] + PROMPT_FAMILIES["clip7"])
    return template.format(article=article(name), name=name)


def _window(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """The crop with up to `_WINDOW_CUT` of two sides cut off, half of the time."""
    if rng.random() < 0.5:
        return pixels
    height, width = pixels.shape[:2]
    cut = rng.uniform(0, _WINDOW_CUT, 2)
    share = rng.random(2)
    top, left = int(height * cut[0] * share[0]), int(width * cut[1] * share[1])
    bottom = height - int(height * cut[0] * (1 - share[0]))
    right = width - int(width * cut[1] * (1 - share[1]))
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _background(rng: np.random.Generator) -> np.ndarray:
    height, width = (round(float(np.exp(rng.uniform(np.log(16), np.log(110))))) for _ in range(2))
    return textured_background(rng, height, width, unit=_SCENE_SIDE)


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
