"""A small data set to tune a detector of Pictograms on: names new to it, ten boxes of each.

Its glyphs are those of the table that the default 80 categories leave out, so that no teacher in
this package has learnt them. Among them lie objects of the 80 without annotation, as in anybody's
own images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovd_d2.files import atomic_write_json

from .annotations import LVISBuilder, describe_scene, lvis_categories
from .generate import (
    ARGUMENTS_FILE,
    GENERATOR_VERSION,
    file_name,
    is_usable,
    publish,
    write_compact,
    write_image,
)
from .glyphs import GLYPHS, PictogramCategory, build_categories
from .plan import choose_frequencies, plan_val
from .scenes import draw_scene

NAME = "pictograms_v1_tuning"
KNOWN = 80  # categories of the default data set
NEW_NAMES = (  # the shipped text tower tells them apart; unknown words are mostly one to it
    "domino tile",
    "joker card",
    "four diamonds",
    "comet",
    "face with sunglasses",
    "smiling face with horns",
    "female sign",
    "circled arrow",
)
TRAIN, CHOOSE, VAL = "train", "choose", "val"
CHOOSE_OLD, VAL_OLD = "choose_old", "val_old"
_NEW_PER_IMAGE, _KNOWN_PER_IMAGE = 4, 2  # objects
_FIRST_ID = 100_000  # of images: apart from those of the default data set
_SEED_PLAN, _SEED_SCENES = 5, 200  # streams apart from those of `generate`
_NOTES = (
    "Drawn by code. The images of train, choose and val show objects of the 80 categories of"
    " pictograms_v1, too, which have no annotation. The sets choose_old and val_old have other"
    " scenes of these 80 than pictograms_v1, their image_count and instance_count are their own."
)


@dataclass(frozen=True)
class TuningArguments:
    """All that decides what the files hold.

    Attributes:
        train, choose, val: boxes of each new category in these sets.
        choose_old, val_old: images of the known categories in these sets, all annotated.
        size: side of the square images, px.
        seed: of everything.
        names: of the new categories, glyphs. An image has 4 boxes of them: their number times
            `train`, `choose` and `val` are multiples of 4.
    """

    name: str = NAME
    train: int = 10
    choose: int = 20
    val: int = 120
    choose_old: int = 480
    val_old: int = 960
    size: int = 160
    seed: int = 0
    names: tuple[str, ...] = NEW_NAMES
    generator_version: int = GENERATOR_VERSION


@dataclass(frozen=True)
class _Split:
    """One set: its categories, those drawn beside them, and what is in each image."""

    name: str
    categories: Sequence[PictogramCategory]
    others: Sequence[PictogramCategory]
    frequencies: Sequence[str]
    images: Sequence[Sequence[int]]


def prepare_tuning(
    root: str | os.PathLike[str],
    arguments: TuningArguments | None = None,
    *,
    overwrite: bool = False,
    replace_older: bool = False,
) -> Path:
    """Draws the data set below `root`, unless it is there already.

    Five sets in LVIS format: `train`; `choose` and `choose_old`, to choose by; `val` and `val_old`,
    to report. Those of the old names are other scenes than those of `pictograms_v1_val`.

    Args:
        root: the folder of all data sets.
        arguments: by default those of the documented set.
        overwrite, replace_older: as of :func:`ovd_d2.pictograms.dataset.prepare`.

    Returns:
        The folder of the data set.

    Raises:
        DifferentArgumentsError: as of :func:`ovd_d2.pictograms.dataset.prepare`.
    """
    arguments = arguments or TuningArguments()
    final, partial = Path(root) / arguments.name, Path(root) / f".{arguments.name}.partial"
    if is_usable(final, arguments, overwrite, replace_older):
        return final
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    atomic_write_json(partial / ARGUMENTS_FILE, asdict(arguments))
    first_id = _FIRST_ID
    for number, split in enumerate(_splits(arguments)):
        _write(partial, arguments, split, number, first_id)
        first_id += len(split.images)
    publish(partial, final)
    return final


def _splits(arguments: TuningArguments) -> Iterator[_Split]:
    known = build_categories(KNOWN)
    by_name = {one.name: one for one in build_categories(len(GLYPHS))}
    new = [by_name[name] for name in arguments.names]
    for number, name in enumerate((TRAIN, CHOOSE, VAL)):
        rng = np.random.default_rng([arguments.seed, _SEED_PLAN, number])
        images = _deal(rng, len(new), getattr(arguments, name))
        yield _Split(name, new, known, ["c"] * len(new), images)
    frequencies = choose_frequencies(known, arguments.seed)
    for number, name in enumerate((CHOOSE_OLD, VAL_OLD)):
        seed = arguments.seed + _SEED_PLAN + number
        contents = plan_val(KNOWN, getattr(arguments, name), seed).images
        yield _Split(name, known, (), frequencies, contents)


def _deal(rng: np.random.Generator, count: int, boxes: int) -> list[list[int]]:
    """Objects of every image: `count` new categories `boxes` times each, known ones behind them."""
    new = rng.permutation(np.repeat(np.arange(count), boxes)).reshape(-1, _NEW_PER_IMAGE)
    known = count + rng.integers(KNOWN, size=(len(new), _KNOWN_PER_IMAGE))
    return [list(map(int, objects)) for objects in np.concatenate([new, known], axis=1)]


def _write(
    folder: Path, arguments: TuningArguments, split: _Split, number: int, first_id: int
) -> None:
    """The images of a set and its JSON."""
    (folder / split.name).mkdir()
    records = [
        _draw(folder / split.name, arguments, split, number, index)
        for index in range(len(split.images))
    ]
    table = lvis_categories(split.categories, split.frequencies, records)
    builder = LVISBuilder(arguments.name, split.name, table, hide_rare=False, side=arguments.size)
    for index, record in enumerate(records):
        builder.add(first_id + index, file_name(index), record)
    content = builder.build(asdict(arguments))
    content["info"]["notes"] = _NOTES
    write_compact(folder / f"{arguments.name}_{split.name}.json", content)


def _draw(
    folder: Path, arguments: TuningArguments, split: _Split, number: int, index: int
) -> dict[str, Any]:
    """Writes one image; returns what is annotated of it."""
    rng = np.random.default_rng([arguments.seed, _SEED_SCENES + number, index])
    drawn = [*split.categories, *split.others]
    scene = draw_scene(rng, split.images[index], drawn, arguments.size)
    write_image(folder / file_name(index), scene.image)
    record = describe_scene(rng, scene, len(split.categories), negative_share=1.0)
    named = [one for one in record["objects"] if one["category"] < len(split.categories)]
    return {**record, "objects": named}
