from __future__ import annotations

import json

import pytest

from ovd_d2.evaluation import CategoryConfusion, confusion_table, novel_confusion

NAMES = ["anchor", "bell", "cloud", "drum"]
NOVEL = [True, False, True, True]
ANCHOR, BELL, CLOUD, DRUM = 1, 2, 3, 4


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
    gt, predictions = scene
    anchor, cloud = novel_confusion(gt, predictions, NAMES, NOVEL)
    assert (anchor.category, anchor.num_objects, anchor.missed) == ("anchor", 3, 1)
    assert anchor.predicted == [("bell", 2)]
    # precision 1 up to recall 2/3: the recall points 0, 0.01 ... 0.66 of 101
    assert anchor.ap50 == pytest.approx(100 * 67 / 101)
    assert cloud == CategoryConfusion("cloud", pytest.approx(100.0), 1, [("cloud", 1)], 0)
    # "bell" is base, "drum" has no ground truth: neither is reported


def test_top_keeps_the_worst(scene):
    gt, predictions = scene
    assert [one.category for one in novel_confusion(gt, predictions, NAMES, NOVEL, top=1)] == [
        "anchor"
    ]


def test_thresholds(scene):
    gt, predictions = scene
    lower = novel_confusion(gt, predictions, NAMES, NOVEL, score_threshold=0.0)[0]
    assert (lower.predicted, lower.missed) == ([("bell", 3)], 0)
    stricter = novel_confusion(gt, predictions, NAMES, NOVEL, iou=0.9)[0]
    assert (stricter.predicted, stricter.missed) == ([("bell", 1)], 2)


def test_no_predictions(scene):
    gt, _ = scene
    confusions = novel_confusion(gt, [], NAMES, NOVEL)
    assert [(one.category, one.ap50, one.missed) for one in confusions] == [
        ("anchor", 0.0, 3),
        ("cloud", 0.0, 1),
    ]


def test_no_novel_categories_and_no_ground_truth(scene):
    gt, predictions = scene
    assert novel_confusion(gt, predictions, NAMES, [False] * 4) == []
    assert novel_confusion(truth(), predictions, NAMES, NOVEL) == []


def test_from_a_file_and_inputs_stay_as_they_were(scene, tmp_path):
    gt, predictions = scene
    before = json.dumps([gt, predictions])
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(gt))
    assert novel_confusion(path, predictions, NAMES, NOVEL) == novel_confusion(
        gt, predictions, NAMES, NOVEL
    )
    assert json.dumps([gt, predictions]) == before


@pytest.mark.parametrize(
    "names, novel, message",
    [
        (NAMES, [True], "1 novel flags for 4 categories"),
        (NAMES[:2], NOVEL, "2 class names for 4 categories"),
    ],
)
def test_wrong_lengths(scene, names, novel, message):
    with pytest.raises(ValueError, match=message):
        novel_confusion(*scene, names, novel)


def test_table(scene):
    gt, predictions = scene
    assert confusion_table(novel_confusion(gt, predictions, NAMES, NOVEL)) == "\n".join(
        [
            "| novel category   |   AP50 |   objects | called    |   missed |",
            "|:-----------------|-------:|----------:|:----------|---------:|",
            "| anchor           |   66.3 |         3 | bell (2)  |        1 |",
            "| cloud            |  100.0 |         1 | cloud (1) |        0 |",
        ]
    )


def test_table_of_nothing():
    assert confusion_table([]).startswith("| novel category")
