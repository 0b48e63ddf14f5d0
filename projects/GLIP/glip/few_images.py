"""Which images make a few-shot set."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np


def few_images(table: dict[str, Any], shots: int, seed: int) -> list[int]:
    """Ids of images that show every category `shots` times, as far as there are so many.

    In random order, an image is taken while one of its categories is in fewer than `shots` of those
    taken before. Images without a box are not taken.

    Args:
        table: COCO's.
        shots: images per category, at least.
        seed: of the order.
    """
    shown: defaultdict[int, set[int]] = defaultdict(set)
    for one in table["annotations"]:
        shown[one["image_id"]].add(one["category_id"])
    order = np.random.default_rng(seed).permutation(sorted(shown))
    counts: Counter[int] = Counter()
    taken = []
    for image in order.tolist():
        if any(counts[one] < shots for one in shown[image]):
            taken.append(image)
            counts.update(shown[image])
    return taken
