"""The best detections of every category while images come, without keeping the others."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np


class BestPerCategory:
    """Keeps what :func:`ovd_d2.evaluation.protocols.select` with `per_category` would keep.

    Of equal scores the earlier detection stays. A score that is not a number has no rank: such a
    detection is kept beside the others, for whoever checks the detections to find.
    """

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: detections of each category, at most.
        """
        self.limit = limit
        # Least first, so of equal scores the latest: (score, -place in order of arrival, detection)
        self._heaps: dict[int, list[tuple[float, int, dict[str, Any]]]] = defaultdict(list)
        self._unranked: list[tuple[float, int, dict[str, Any]]] = []
        self._arrived = 0

    def admits(self, categories: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(N,) bool: whether detections would be kept if they came next, one without the others.

        Args:
            categories: (N,) int.
            scores: (N,) float.
        """
        unique, where = np.unique(categories, return_inverse=True)
        bounds = np.array([self._bound(int(one)) for one in unique], dtype=np.float64)
        return ~(scores.astype(np.float64) <= bounds[where])  # so NaN is admitted

    def add(self, detections: Iterable[dict[str, Any]]) -> None:
        """Takes the next detections, with `category_id` and `score` each, in their order."""
        for one in detections:
            entry = (one["score"], -self._arrived, one)
            self._arrived += 1
            heap = self._heaps[one["category_id"]]
            if math.isnan(one["score"]):
                self._unranked.append(entry)
            elif len(heap) < self.limit:
                heapq.heappush(heap, entry)
            elif heap and entry > heap[0]:
                heapq.heapreplace(heap, entry)

    def detections(self) -> list[dict[str, Any]]:
        """All that is kept, in order of arrival."""
        entries = [entry for heap in self._heaps.values() for entry in heap] + self._unranked
        return [one for _, _, one in sorted(entries, key=lambda entry: -entry[1])]

    def _bound(self, category: int) -> float:
        """A score must be above it; NaN, which no score is below, where there is room."""
        heap = self._heaps[category]
        if len(heap) < self.limit:
            return math.nan
        return heap[0][0] if heap else math.inf
