"""Grids of patches."""

import numpy as np
import pytest

from ovd_d2.projects.clipself.grids import grid_cells, grid_choices, random_cells


def drawn(count, **options):
    generator = np.random.default_rng(0)
    options = {"max_rows": 6, "limit": 20, **options}
    return [random_cells(60, 120, generator=generator, **options) for _ in range(count)]


def test_24_grids_none_of_them_long_and_thin():
    choices = grid_choices(6)
    assert len(choices) == len(set(choices)) == 24
    assert {m for m, _ in choices} == {n for _, n in choices} == set(range(1, 7))
    assert all(m <= 2 * n and n <= 2 * m for m, n in choices)
    assert (1, 2) in choices and (2, 4) in choices and (1, 3) not in choices
    assert grid_choices(1) == [(1, 1)]


def test_cells_by_hand():
    expected = [[0, 0, 5, 4], [5, 0, 10, 4], [0, 4, 5, 8], [5, 4, 10, 8]]
    assert grid_cells(2, 2, 8, 10).tolist() == expected
    fractional = grid_cells(1, 3, 7, 10)
    assert fractional[1] == pytest.approx([10 / 3, 0, 20 / 3, 7])


def test_cells_cover_the_image_once():
    for rows, columns in grid_choices(6):
        cells = grid_cells(rows, columns, 37, 53)
        areas = (cells[:, 2:] - cells[:, :2]).prod(axis=1)
        assert areas.sum() == pytest.approx(37 * 53) and areas == pytest.approx(areas[0])


def test_every_grid_is_drawn_as_often():
    """Grids of at most 20 cells are told by the size of a cell."""
    sizes = [tuple((one[0, 2:] - one[0, :2]).round(6)) for one in drawn(4800)]
    counts = np.unique(sizes, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > 140 and counts.max() < 260  # 200, and 4 deviations of 14


def test_at_most_20_cells_13_on_average():
    numbers = [len(one) for one in drawn(4800)]
    assert max(numbers) == 20
    exact = np.mean([min(m * n, 20) for m, n in grid_choices(6)])
    assert exact == pytest.approx(13.0, abs=0.05)
    assert np.mean(numbers) == pytest.approx(exact, abs=0.4)
    capped = sum(m * n >= 20 for m, n in grid_choices(6))
    assert capped == 8


def test_a_limit_takes_all_cells_alike_and_none_twice():
    cells = [random_cells(6, 6, max_rows=1, limit=5, generator=np.random.default_rng(1))]
    assert cells[0].tolist() == [[0, 0, 6, 6]]
    several = drawn(2000, limit=1, max_rows=2)
    assert all(len(one) == 1 for one in several)
    quarters = [tuple(one[0]) for one in several if tuple(one[0, 2:] - one[0, :2]) == (60, 30)]
    counts = np.unique(quarters, axis=0, return_counts=True)[1]
    assert len(counts) == 4 and counts.min() > 0.7 * counts.max()
    for one in drawn(50):
        assert len(np.unique(one, axis=0)) == len(one)
