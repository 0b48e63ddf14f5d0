"""Which categories go into which image, so that LVIS's frequency rule holds by construction.

LVIS calls a category rare, common or frequent by the number of training images it is in: 1-10,
11-100, more than 100. The plan fixes these numbers first and deals the categories out after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .glyphs import PictogramCategory

RARE_SHARE, FREQUENT_SHARE = 0.2, 0.3  # of the categories; the rest is common
MAX_OBJECTS = 8
_DISTINCT_PER_IMAGE = 4.5  # mean number of different categories in an image, where there is room
_MOST_DISTINCT = 7.2  # the highest mean that leaves room to deal categories out
_LEAST_WITHOUT_BASE = 2  # images of each kind that `without_base` appends, at least
_LVIS_RARE, _LVIS_COMMON, _LVIS_IMAGES = 10, 100, 1000
_REPEAT = (0.65, 0.25, 0.1)  # probability of 0, 1, 2 further objects of a category in an image


@dataclass(frozen=True)
class SplitPlan:
    """The contents of one split.

    Attributes:
        images: for every image the category indices (0-based) of its objects, in random order; a
            category that is there twice is listed twice.
        crowds: the category of each further image, which shows one crowd and nothing else; they
            come after `images`.
    """

    images: tuple[tuple[int, ...], ...]
    crowds: tuple[int, ...] = ()

    def image_counts(self, num_categories: int) -> np.ndarray:
        """In how many images each category is, (num_categories,) int64."""
        counts = np.zeros(num_categories, np.int64)
        for objects in [*self.images, *((category,) for category in self.crowds)]:
            counts[sorted(set(objects))] += 1
        return counts


def frequency_thresholds(num_images: int) -> tuple[int, int]:
    """The most images of a rare and of a common category, among `num_images` of training.

    LVIS's 10 and 100 from 1000 images up; below, they shrink in proportion, but a rare category
    keeps at least 1 image and a common one at least 2.
    """
    scale = min(1.0, num_images / _LVIS_IMAGES)
    rare = max(1, round(_LVIS_RARE * scale))
    return rare, max(rare + 1, round(_LVIS_COMMON * scale))


def frequency_of(image_count: int, num_images: int) -> str:
    """Return "r", "c" or "f" by the number of training images that a category is in."""
    rare, common = frequency_thresholds(num_images)
    if image_count <= rare:
        return "r"
    return "c" if image_count <= common else "f"


def choose_frequencies(categories: Sequence[PictogramCategory], seed: int) -> list[str]:
    """Return "r", "c" or "f" for every category; depends on the categories and the seed alone.

    Rare categories differ in glyph as long as there are glyphs enough, since one rare
    "red anchor" and another "blue anchor" would make half a novel shape.

    Raises:
        ValueError: fewer than 4 categories.
    """
    if len(categories) < 4:
        raise ValueError(f"categories: expected at least 4, got {len(categories)}")
    rare = max(1, round(RARE_SHARE * len(categories)))
    frequent = max(1, round(FREQUENT_SHARE * len(categories)))
    shuffled = np.random.default_rng([seed, 1]).permutation(len(categories)).tolist()
    seen: set[str] = set()
    order: list[int] = []
    repeated: list[int] = []
    for index in shuffled:
        name = categories[index].glyph.name
        (repeated if name in seen else order).append(index)
        seen.add(name)
    order += repeated
    frequencies = ["c"] * len(categories)
    for rank, index in enumerate(order):
        if rank < rare:
            frequencies[index] = "r"
        elif rank >= len(order) - frequent:
            frequencies[index] = "f"
    return frequencies


def plan_train(frequencies: list[str], num_images: int, seed: int) -> SplitPlan:
    """A long-tailed split in which every category has the frequency it was given.

    Raises:
        ValueError: so many categories do not fit into so few images; says how many would do.
    """
    rng = np.random.default_rng([seed, 2])
    counts = _train_counts(rng, frequencies, num_images)
    if counts.sum() > _MOST_DISTINCT * num_images or counts.max() > num_images:
        raise ValueError(
            f"images: {num_images} training images cannot hold {len(frequencies)} categories at "
            f"LVIS's frequencies; use at least {_images_needed(frequencies, num_images)} images "
            "or fewer categories"
        )
    plan = _deal(rng, counts, num_images)
    _check_frequencies(plan, frequencies)
    return plan


def without_base(plan: SplitPlan, frequencies: list[str], seed: int) -> SplitPlan:
    """The training split with images appended that have no base object, as LVIS has them.

    For every hundred images, and at least two, of each kind in this order: images of rare (novel)
    categories alone, images of no object at all, and crowds of a frequent category. The frequency
    rule holds for `plan`; the appended images take rare categories that have room below their
    limit, as long as there are any, and frequent ones have no limit.
    """
    rng = np.random.default_rng([seed, 4])
    number = max(_LEAST_WITHOUT_BASE, len(plan.images) // 100)
    letters = np.array(frequencies)
    room = frequency_thresholds(len(plan.images))[0] - plan.image_counts(len(letters))
    room[letters != "r"] = -len(plan.images) - number  # never the roomiest
    only_novel = []
    for _ in range(number):
        roomiest = np.lexsort((rng.random(len(room)), -room))
        objects = [int(index) for index in roomiest[:2] if room[index] > 0] or [int(roomiest[0])]
        room[objects] -= 1
        _add_repeats(rng, objects)
        rng.shuffle(objects)
        only_novel.append(tuple(objects))
    crowds = rng.choice(np.flatnonzero(letters == "f"), number)
    return SplitPlan((*plan.images, *only_novel, *[()] * number), tuple(crowds.tolist()))


def plan_val(num_categories: int, num_images: int, seed: int) -> SplitPlan:
    """A balanced split: the categories' image counts differ by at most 1.

    Raises:
        ValueError: too few images to show every category once.
    """
    needed = math.ceil(num_categories / _MOST_DISTINCT)
    if num_images < needed:
        raise ValueError(
            f"val images: expected at least {needed} to show each of {num_categories} categories, "
            f"got {num_images}"
        )
    rng = np.random.default_rng([seed, 3])
    total = max(num_categories, round(_DISTINCT_PER_IMAGE * num_images))
    total = min(total, num_categories * num_images)
    counts = np.full(num_categories, total // num_categories)
    counts[rng.permutation(num_categories)[: total % num_categories]] += 1
    return _deal(rng, counts, num_images)


def _train_counts(rng: np.random.Generator, frequencies: list[str], num_images: int) -> np.ndarray:
    """The number of training images of each category, (C,) int64."""
    rare, common = frequency_thresholds(num_images)
    letters = np.array(frequencies)
    counts = np.zeros(len(letters), np.int64)
    is_rare, is_common, is_frequent = (letters == letter for letter in "rcf")
    counts[is_rare] = rng.integers(max(1, math.ceil(0.4 * rare)), rare + 1, is_rare.sum())
    logs = rng.uniform(np.log(rare + 1), np.log(common + 0.999), is_common.sum())
    counts[is_common] = np.floor(np.exp(logs))
    counts[is_frequent] = common + 1
    room = round(_DISTINCT_PER_IMAGE * num_images) - counts.sum()
    if room > 0:
        # The head takes what is left, unevenly: its own long tail.
        weights = np.exp(rng.uniform(0, np.log(6), is_frequent.sum()))
        extra = np.floor(room * weights / weights.sum()).astype(np.int64)
        counts[is_frequent] = np.minimum(counts[is_frequent] + extra, int(0.6 * num_images))
    return counts


def _images_needed(frequencies: list[str], num_images: int) -> int:
    """The least number of training images, a hundred up, that surely holds the categories."""
    needed = max(100, math.ceil(num_images / 100) * 100)
    while True:
        counts = _train_counts(np.random.default_rng(0), frequencies, needed)
        if counts.sum() * 1.05 <= _MOST_DISTINCT * needed and counts.max() <= needed:
            return needed
        needed += 100


def _deal(rng: np.random.Generator, counts: np.ndarray, num_images: int) -> SplitPlan:
    """Put category c into counts[c] different images, at most MAX_OBJECTS objects in each."""
    target = _image_sizes(rng, int(counts.sum()), num_images)
    load = np.zeros(num_images, np.int64)
    contents: list[list[int]] = [[] for _ in range(num_images)]
    for category in np.argsort(-counts, kind="stable"):
        for image in _pick_images(rng, int(counts[category]), target - load, load):
            contents[image].append(int(category))
            load[image] += 1
    _fill_empty(contents)
    for objects in contents:
        _add_repeats(rng, objects)
        rng.shuffle(objects)
    return SplitPlan(tuple(tuple(objects) for objects in contents))


def _image_sizes(rng: np.random.Generator, total: int, num_images: int) -> np.ndarray:
    """Different categories wanted in each image, (num_images,) in 1..MAX_OBJECTS, mean kept."""
    mean = total / num_images
    spread = max(0.0, min(2.0, MAX_OBJECTS - mean - 0.5, mean - 1))
    sizes = np.rint(mean + rng.uniform(-1.6, 1.6, num_images) * spread)
    return np.clip(sizes, 1, MAX_OBJECTS).astype(np.int64)


def _pick_images(
    rng: np.random.Generator, count: int, room: np.ndarray, load: np.ndarray
) -> np.ndarray:
    """`count` different images, likelier where more room is left; any with a free place if short.

    Categories come largest first, each once per image; with a mean load of at most _MOST_DISTINCT
    there are always enough images with a free place for the small ones that come last.
    """
    free = load < MAX_OBJECTS
    weight = np.where(free, np.maximum(room, 0) + 1e-6, 0.0)
    if free.sum() < count:
        raise RuntimeError(f"no place left for a category of {count} images; this is a bug")
    # Weighted sampling without replacement (Efraimidis & Spirakis 2006): the largest keys win.
    keys = np.full(len(weight), -np.inf)
    keys[free] = np.log(rng.random(int(free.sum()))) / weight[free]
    return np.sort(np.argsort(keys, kind="stable")[len(keys) - count :])


def _fill_empty(contents: list[list[int]]) -> None:
    """Give every empty image a category of the fullest one, in place; counts stay as they are."""
    for objects in contents:
        if objects:
            continue
        fullest = max(contents, key=len)
        if len(fullest) > 1:
            objects.append(fullest.pop())


def _add_repeats(rng: np.random.Generator, objects: list[int]) -> None:
    """Add further objects of categories that are there, in place; at least 2 objects result."""
    if not objects:
        return
    for _ in range(int(rng.choice(len(_REPEAT), p=_REPEAT))):
        if len(objects) < MAX_OBJECTS:
            objects.append(objects[int(rng.integers(len(objects)))])
    if len(objects) == 1:
        objects.append(objects[0])


def _check_frequencies(plan: SplitPlan, frequencies: list[str]) -> None:
    """Assert LVIS's rule on the plan; scenes draw every planned object, so it holds for them."""
    counts = plan.image_counts(len(frequencies))
    for category, (count, wanted) in enumerate(zip(counts, frequencies, strict=True)):
        found = frequency_of(int(count), len(plan.images))
        if count < 1 or found != wanted:
            raise AssertionError(
                f"category {category}: planned as {wanted!r}, but {count} of "
                f"{len(plan.images)} images make it {found!r}"
            )
