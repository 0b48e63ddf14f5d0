from __future__ import annotations

import json
import math

import pytest

from ovd_d2.evaluation import (
    CategoryConfusion,
    confusion_table,
    novel_confusion,
    read_confusion,
)
from ovd_d2.evaluation.confusion import write_confusion
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.vocabulary import Categories

NAMES = ["anchor", "bell", "cloud", "drum"]
NOVEL = [True, False, True, True]
ANCHOR, BELL, CLOUD, DRUM = 1, 2, 3, 4


CATEGORIES = Categories(NAMES, NOVEL, [1, 2, 3, 4])
NAN = math.nan


def confusion_of(gt, predictions, ap50=(30.0, 90.0, 10.0, NAN), categories=CATEGORIES, **options):
    return novel_confusion(GroundTruth(gt, "coco"), predictions, categories, ap50, **options)


def box_at(k: int) -> list[float]:
    return [20.0 * k, 0.0, 10.0, 10.0]


def truth(*objects: tuple[int, int, int]) -> dict:
    """Objects are (image id, place, category id)."""
    return {
        "images": [{"id": k, "height": 100, "width": 200} for k in (1, 2)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": image_id,
                "category_id": category,
                "bbox": box_at(place),
                "area": 100.0,
            }
            for k, (image_id, place, category) in enumerate(objects)
        ],
    }


def found(image_id: int, place: int, category: int, score: float, shift: float = 0.0) -> dict:
    x, y, width, height = box_at(place)
    box = [x + shift, y, width, height]
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


@pytest.fixture
def scene():
    gt = truth((1, 0, ANCHOR), (1, 1, ANCHOR), (2, 0, ANCHOR), (1, 2, CLOUD), (1, 3, BELL))
    predictions = [
        found(1, 0, BELL, 0.9),  # an anchor called bell
        found(1, 0, ANCHOR, 0.4),  # the same proposal, less sure
        found(1, 1, BELL, 0.6, shift=1.0),  # IoU 9 / 11
        found(1, 1, ANCHOR, 0.95, shift=3.0),  # IoU 7 / 13: overlaps less, though surer
        found(1, 2, CLOUD, 0.8),
        found(2, 0, BELL, 0.01),  # too unsure
        found(2, 0, DRUM, 0.7, shift=9.0),  # too far away
    ]
    return gt, predictions


def test_by_hand(scene):
    cloud, anchor = confusion_of(*scene)  # the lowest AP50 first
    assert anchor == CategoryConfusion("anchor", 30.0, 3, [("bell", 2)], 1)
    assert cloud == CategoryConfusion("cloud", 10.0, 1, [("cloud", 1)], 0)
    # "bell" is base, "drum" has no ground truth: neither is reported


def test_thresholds(scene):
    lower = confusion_of(*scene, score_threshold=0.0)[1]
    assert (lower.predicted, lower.missed) == ([("bell", 3)], 0)
    stricter = confusion_of(*scene, iou=0.9)[1]
    assert (stricter.predicted, stricter.missed) == ([("bell", 1)], 2)


def test_no_predictions(scene):
    gt, _ = scene
    confusions = confusion_of(gt, [], ap50=(0.0, 0.0, 0.0, NAN))
    assert [(one.category, one.missed) for one in confusions] == [("anchor", 3), ("cloud", 1)]


def test_crowds_are_no_objects(scene):
    gt, predictions = scene
    gt["annotations"][0]["iscrowd"] = 1
    anchor = confusion_of(gt, predictions)[1]
    assert (anchor.num_objects, anchor.predicted) == (2, [("bell", 1)])


def test_no_novel_categories_and_no_ground_truth(scene):
    gt, predictions = scene
    nothing_novel = Categories(NAMES, [False] * 4, [1, 2, 3, 4])
    assert confusion_of(gt, predictions, categories=nothing_novel) == []
    assert confusion_of(truth(), predictions, ap50=[NAN] * 4) == []


def test_inputs_stay_as_they_were(scene):
    before = json.dumps(scene)
    confusion_of(*scene)
    assert json.dumps(scene) == before


def test_file_round_trip(scene, tmp_path):
    confusions = confusion_of(*scene)
    assert write_confusion(confusions, tmp_path).name == "novel_confusion.json"
    assert read_confusion(tmp_path) == confusions


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"novel_confusion\.json.*--eval-only"):
        read_confusion(tmp_path)


def test_table(scene):
    assert confusion_table(confusion_of(*scene)) == "\n".join(
        [
            "| novel category   |   AP50 |   objects | called    |   missed |",
            "|:-----------------|-------:|----------:|:----------|---------:|",
            "| cloud            |   10.0 |         1 | cloud (1) |        0 |",
            "| anchor           |   30.0 |         3 | bell (2)  |        1 |",
        ]
    )


def test_table_of_nothing():
    assert confusion_table([]).startswith("| novel category")
