"""Patches: the cells of a random grid, regions that need no labels (CLIPSelf, section 3.2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def grid_choices(max_rows: int) -> list[tuple[int, int]]:
    """All (rows, columns) with up to so many of each, neither more than about twice the other.

    24 of them for 6.
    """
    return [
        (rows, columns)
        for rows in range(1, max_rows + 1)
        for columns in range((rows + 1) // 2, min(2 * rows, max_rows) + 1)
    ]


def grid_cells(rows: int, columns: int, height: int, width: int) -> NDArray[np.float64]:
    """The (rows * columns, 4) XYXY cells of an image, row by row; borders may lie inside pixels."""
    y = np.arange(rows + 1) * (height / rows)
    x = np.arange(columns + 1) * (width / columns)
    top, left = (one.ravel() for one in np.meshgrid(y[:-1], x[:-1], indexing="ij"))
    bottom, right = (one.ravel() for one in np.meshgrid(y[1:], x[1:], indexing="ij"))
    return np.stack([left, top, right, bottom], axis=1)


def random_cells(
    height: int, width: int, *, max_rows: int, limit: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """At most `limit` cells, (K, 4) XYXY, of a grid that is drawn uniformly from all choices."""
    choices = grid_choices(max_rows)
    cells = grid_cells(*choices[generator.integers(len(choices))], height, width)
    if len(cells) <= limit:
        return cells
    return cells[np.sort(generator.choice(len(cells), limit, replace=False))]
