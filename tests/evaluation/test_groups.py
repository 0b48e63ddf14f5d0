from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ovd_d2.evaluation.groups import (
    CategoryAP,
    named_metrics,
    percent,
    read_per_category,
    write_category_csv,
    write_per_category,
)
from ovd_d2.vocabulary import Categories

AB = Categories(["a", "b"], [False, True])


def precision_of(ap: list[list[float]]) -> np.ndarray:
    """(T, R=4, C) constant over recall; `ap` is one list of C values per IoU threshold."""
    return np.repeat(np.array(ap)[:, None, :], 4, axis=1)


def test_means_over_groups_by_hand():
    precision = precision_of([[0.8, 0.6, 0.4, -1.0], [0.4, 0.2, 0.0, -1.0]])
    table = CategoryAP.from_precision(
        Categories(list("abcd"), [False, True, True, True]), precision
    )
    np.testing.assert_allclose(table.ap, [60, 40, 20, np.nan])
    np.testing.assert_allclose(table.ap50, [80, 60, 40, np.nan])
    assert table.group_means() == pytest.approx(
        {"AP_base": 60.0, "AP_novel": 30.0, "AP50_base": 80.0, "AP50_novel": 50.0}
    )


def test_a_group_without_ground_truth_is_nan_and_says_so(caplog):
    table = CategoryAP.from_precision(AB, precision_of([[0.5, -1.0]]))
    with caplog.at_level("INFO"):
        means = table.group_means()
    assert means["AP_base"] == pytest.approx(50.0)
    assert math.isnan(means["AP_novel"]) and math.isnan(means["AP50_novel"])
    assert "No novel category has ground truth" in caplog.text
    assert "No base" not in caplog.text


def test_no_categories():
    table = CategoryAP.from_precision(Categories([], []), np.zeros((10, 101, 0)))
    assert all(math.isnan(value) for value in table.group_means().values())


def test_wrong_precision_shape():
    with pytest.raises(ValueError, match=r"\(1, 4, 3\), expected .* 2 categories"):
        CategoryAP.from_precision(AB, precision_of([[0.5, 0.5, 0.1]]))


def test_per_category_file_round_trip_is_strict_json(tmp_path):
    table = CategoryAP.from_precision(AB, precision_of([[0.5, -1.0]]))
    path = write_per_category({"bbox": table}, tmp_path / "new")
    expected = {"bbox": {"AP-a": 50.0, "AP50-a": 50.0, "AP-b": None, "AP50-b": None}}
    assert read_per_category(path) == expected
    assert "NaN" not in path.read_text()
    assert json.loads(path.read_text()) == expected
    assert [one.name for one in path.parent.iterdir()] == ["per_category.json"]


def test_percent():
    assert percent(0.25) == 25.0
    assert percent(0.0) == 0.0
    assert math.isnan(percent(-1))


def test_named_metrics_by_hand():
    precision = np.full((10, 101, 3, 4), -1.0)  # the third category has no ground truth
    precision[:, :, 0], precision[:, :, 1] = 0.4, 0.2
    precision[0, :, :2] = 0.8  # IoU 0.50
    precision[5, :, :2] = 0.5  # IoU 0.75
    precision[:, :, 0, 1] = 0.1  # small objects
    precision[:, :, 1, 1:] = -1.0  # the second category has none of any size
    metrics = named_metrics(precision, ["r", "f", "c"])
    assert metrics == pytest.approx(
        {
            "AP": 100 * (0.8 + 0.5 + 8 * (0.4 + 0.2) / 2) / 10,
            "AP50": 80,
            "AP75": 50,
            "APs": 10,
            "APm": 100 * (0.8 + 0.5 + 8 * 0.4) / 10,
            "APl": 100 * (0.8 + 0.5 + 8 * 0.4) / 10,
            "APr": 100 * (0.8 + 0.5 + 8 * 0.4) / 10,
            "APc": math.nan,
            "APf": 100 * (0.8 + 0.5 + 8 * 0.2) / 10,
        },
        nan_ok=True,
    )


def test_no_frequencies_no_means_of_them():
    metrics = named_metrics(np.zeros((10, 101, 2, 4)))
    assert list(metrics) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def test_category_csv(tmp_path):
    categories = Categories(['a "b", c', "d", "e"], [False, True, True], [1, 2, 5], ["f", "r", "r"])
    precision = precision_of([[0.5, 0.25, -1.0]])
    table = CategoryAP.from_precision(categories, precision)
    path = write_category_csv({"bbox": table}, tmp_path / "new", categories, {1: 7, 2: 3})
    assert path.read_text().splitlines() == [
        "category,group,frequency,objects,box AP,box AP50",
        "d,novel,r,3,25.000,25.000",
        "e,novel,r,0,,",
        '"a ""b"", c",base,f,7,50.000,50.000',
    ]
