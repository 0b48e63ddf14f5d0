"""Panoptic quality (Kirillov et al., arXiv 1801.00868), without panopticapi.

The numbers are those of Detectron2's `COCOPanopticEvaluator`, whose panopticapi is on no package
index but in a form that wants NumPy 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = 0  # id of pixels without segment
MATCH = 0.5  # an intersection over union above it is a match; there can be only one


@dataclass
class Counts:
    """What was matched of C categories.

    Attributes:
        overlap: (C,) sum of the intersections over union of matches.
        matched, wrong, missed: (C,) true positives, false positives, false negatives.
    """

    categories: int
    overlap: NDArray[np.float64] = field(init=False)
    matched: NDArray[np.int64] = field(init=False)
    wrong: NDArray[np.int64] = field(init=False)
    missed: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.overlap = np.zeros(self.categories)
        self.matched, self.wrong, self.missed = np.zeros((3, self.categories), dtype=np.int64)

    def add(self, other: Counts) -> None:
        """Those of other images."""
        self.overlap += other.overlap
        self.matched += other.matched
        self.wrong += other.wrong
        self.missed += other.missed

    def qualities(self, chosen: NDArray[np.bool_]) -> dict[str, float] | None:
        """PQ, SQ and RQ in percent, means over those of the chosen categories that occur.

        Args:
            chosen: (C,).

        Returns:
            None where none of them occurs.
        """
        total = self.matched + (self.wrong + self.missed) / 2
        occurs = chosen & (total > 0)
        if not occurs.any():
            return None
        overlap, matched, total = self.overlap[occurs], self.matched[occurs], total[occurs]
        parts = {"PQ": overlap / total, "SQ": overlap / np.maximum(matched, 1)}
        parts["RQ"] = matched / total
        return {name: 100 * float(values.mean()) for name, values in parts.items()}


def matches(
    truth: NDArray[np.integer],
    truth_entries: Sequence[Mapping[str, Any]],
    found: NDArray[np.integer],
    found_entries: Sequence[Mapping[str, Any]],
    categories: int,
) -> Counts:
    """One image.

    Args:
        truth, found: (H, W) ids of segments, 0 where there is none.
        truth_entries, found_entries: their `id` and `category_id`, below `categories`; of the truth
            `iscrowd`, too. A found segment lies mostly where there is no truth, or a crowd of its
            category: it does not count.

    Raises:
        ValueError: the sizes differ.
    """
    if truth.shape != found.shape:
        raise ValueError(f"masks of {found.shape} pixels for an image of {truth.shape}")
    shared = _intersections(truth, found)
    area_of_truth, area_of_found = _areas(truth), _areas(found)
    real = {one["id"]: one for one in truth_entries if one["id"] in area_of_truth}
    guessed = {one["id"]: one["category_id"] for one in found_entries if one["id"] in area_of_found}
    counts = Counts(categories)
    done: set[tuple[str, int]] = set()
    for (a, b), pixels in shared.items():
        if a not in real or b not in guessed or real[a].get("iscrowd"):
            continue
        union = area_of_truth[a] + area_of_found[b] - pixels - shared.get((VOID, b), 0)
        if real[a]["category_id"] == guessed[b] and pixels / union > MATCH:
            counts.overlap[guessed[b]] += pixels / union
            counts.matched[guessed[b]] += 1
            done |= {("truth", a), ("found", b)}
    for a, entry in real.items():
        if ("truth", a) not in done and not entry.get("iscrowd"):
            counts.missed[entry["category_id"]] += 1
    crowds = {one["category_id"]: a for a, one in real.items() if one.get("iscrowd")}
    for b, category in guessed.items():
        aside = shared.get((VOID, b), 0) + shared.get((crowds.get(category, -1), b), 0)
        if ("found", b) not in done and aside / area_of_found[b] <= MATCH:
            counts.wrong[category] += 1
    return counts


def _areas(id_map: NDArray[np.integer]) -> dict[int, int]:
    ids, areas = np.unique(id_map, return_counts=True)
    return {int(one): int(area) for one, area in zip(ids, areas, strict=True) if one != VOID}


def _intersections(
    truth: NDArray[np.integer], found: NDArray[np.integer]
) -> dict[tuple[int, int], int]:
    """(id, id) -> pixels."""
    pairs = truth.astype(np.int64) << 32 | found.astype(np.int64)
    values, pixels = np.unique(pairs, return_counts=True)
    both = zip((values >> 32).tolist(), (values & 0xFFFFFFFF).tolist(), strict=True)
    return dict(zip(both, pixels.tolist(), strict=True))
