from __future__ import annotations

import copy

import numpy as np
import pytest
from lvis import LVISResults

from ovd_d2.evaluation.protocols import (
    COCO,
    FEDERATED,
    FIXED,
    Protocol,
    fixed_ap_problems,
    select,
)


def found(*records: tuple[int, int, float]) -> list[dict]:
    """(image id, category id, score); `k` tells them apart."""
    return [
        {"image_id": image, "category_id": category, "score": score, "k": k}
        for k, (image, category, score) in enumerate(records)
    ]


SIX = found((1, 1, 0.5), (1, 2, 0.9), (1, 1, 0.7), (2, 1, 0.1), (2, 1, 0.6), (2, 2, 0.2))


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"per_image": 2}, [1, 2, 4, 5]),
        ({"per_category": 2}, [1, 2, 4, 5]),
        ({"per_category": 1}, [1, 2]),
        ({"per_image_and_category": 1}, [1, 2, 4, 5]),
        ({"per_image": 1, "per_category": 1}, [1, 4]),  # first the image, then the category
        ({"per_image": 0}, []),
    ],
)
def test_limits_by_hand(limits, kept):
    assert [one["k"] for one in select(SIX, Protocol("test", "lvis", **limits))] == kept


def test_of_equal_scores_the_earlier_one_stays():
    ties = found((1, 1, 0.5), (1, 2, 0.5), (1, 3, 0.5))
    kept = select(ties, Protocol("test", "lvis", per_image=2))
    assert [one["k"] for one in kept] == [0, 1]


@pytest.mark.parametrize("protocol", [FEDERATED, FIXED, COCO])
def test_no_detections(protocol):
    assert select([], protocol) == []


def test_the_limit_of_an_image_is_that_of_the_lvis_package():
    rng = np.random.default_rng(0)
    records = found(
        *((int(rng.integers(3)), int(rng.integers(4)), float(rng.integers(9))) for _ in range(200))
    )
    expected = LVISResults.limit_dets_per_image(None, copy.deepcopy(records), 20)
    kept = select(records, Protocol("test", "lvis", per_image=20))
    assert sorted(one["k"] for one in kept) == sorted(one["k"] for one in expected)


def test_fixed_ap_takes_10000_a_category_over_the_data_set():
    rng = np.random.default_rng(0)
    scores = rng.permutation(10_500) / 10_500
    records = found(*((k % 7, 1, score) for k, score in enumerate(scores.tolist())))
    records += found((1, 2, 0.0))
    kept = select(records, FIXED)
    assert len(kept) == 10_001
    assert min(one["score"] for one in kept[:-1]) == pytest.approx(500 / 10_500)
    assert kept[-1]["category_id"] == 2  # another category does not compete


def test_titles_say_the_limits():
    assert FEDERATED.title == "LVIS federated (best 300 detections per image)"
    assert FIXED.title == "LVIS fixed AP (best 10,000 detections per category)"
    assert COCO.title == "COCO (best 100 detections per image and category)"
    assert Protocol("mine", "lvis").title == "mine (all detections)"


def test_fixed_ap_of_all_detections_is_refused():
    (problem,) = fixed_ap_problems("fixed", -1)
    assert "DETECTIONS_PER_IMAGE is -1" in problem and "set it to 1000" in problem
    assert fixed_ap_problems("fixed", 1000) == fixed_ap_problems("federated", -1) == []
