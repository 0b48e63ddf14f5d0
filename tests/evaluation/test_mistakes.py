from __future__ import annotations

import pytest

from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.mistakes import match_novel, worst_false_positives, worst_misses

ANCHOR, BELL, CLOUD = 1, 2, 3
NOVEL = {ANCHOR, CLOUD}


def box_at(place: float, shift: float = 0.0, width: float = 10.0) -> list[float]:
    return [20.0 * place + shift, 0.0, width, 10.0]


def truth(*objects: tuple[int, int, int], rules="coco", images=(1, 2), **fields) -> GroundTruth:
    """Objects are (image id, place, category id); `fields` of every image."""
    defaults = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return GroundTruth(
        {
            "images": [{"id": k, **defaults, **fields} for k in images],
            "categories": [{"id": k, "name": str(k)} for k in (ANCHOR, BELL, CLOUD)],
            "annotations": [
                {"image_id": image, "category_id": category, "bbox": box_at(place)}
                for image, place, category in objects
            ],
        },
        rules,
    )


def found(image: int, place: float, category: int, score: float, **shape: float) -> dict:
    box = box_at(place, **shape)
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_matching_by_hand():
    gt = truth((1, 0, ANCHOR), (1, 1, ANCHOR), (1, 2, BELL), (2, 0, CLOUD))
    hit = found(1, 0, ANCHOR, 0.3)
    surer = found(1, 0, ANCHOR, 0.8, shift=1.0)  # finds the object first, though it fits worse
    off = found(1, 1, ANCHOR, 0.9, shift=5.0)  # IoU 1/3
    base = found(1, 2, BELL, 0.9, shift=8.0)  # base categories are not looked at
    matching = match_novel(gt, [hit, surer, off, base], NOVEL)
    assert matching.false_positives == [off, hit]
    assert matching.missed == [gt.annotations[1], gt.annotations[3]]


def test_a_detection_takes_the_object_it_overlaps_most():
    gt = truth((1, 0, ANCHOR), (1, 0.1, ANCHOR))  # 2 pixels apart
    first, second = found(1, 0.1, ANCHOR, 0.9), found(1, 0, ANCHOR, 0.8)
    matching = match_novel(gt, [first, second], NOVEL)
    assert (matching.false_positives, matching.missed) == ([], [])


def test_federated_annotation_decides_what_counts():
    objects = ((1, 0, ANCHOR),)
    wrong = [found(1, 3, ANCHOR, 0.9), found(1, 3, CLOUD, 0.9)]
    # cloud was not looked for in the image; then it was, and found absent; then anchors are partial
    assert match_novel(truth(*objects, rules="lvis"), wrong, NOVEL).false_positives == wrong[:1]
    looked = truth(*objects, rules="lvis", neg_category_ids=[CLOUD])
    assert match_novel(looked, wrong, NOVEL).false_positives == wrong
    partial = truth(*objects, rules="lvis", not_exhaustive_category_ids=[ANCHOR])
    assert match_novel(partial, wrong, NOVEL).false_positives == []
    assert len(match_novel(partial, wrong, NOVEL).missed) == 1


def test_crowds_swallow_detections_and_are_not_missed():
    gt = truth((1, 0, ANCHOR))
    gt.annotations[0].update(iscrowd=1, bbox=[0.0, 0.0, 100.0, 10.0])
    inside, outside = found(1, 2, ANCHOR, 0.9), found(1, 9, ANCHOR, 0.8)
    matching = match_novel(gt, [inside, outside], NOVEL)
    assert (matching.false_positives, matching.missed) == ([outside], [])


@pytest.mark.parametrize(
    ("detection", "place", "iou", "reason"),
    [
        (found(1, 0, ANCHOR, 0.4, shift=1.0), 0, 9 / 11, "second box on one object"),
        (found(1, 1, ANCHOR, 0.4), 1, 1.0, "wrong name"),
        (found(1, 0, ANCHOR, 0.4, shift=6.0), 0, 4 / 16, "box is off"),
        (found(1, 1, ANCHOR, 0.4, shift=6.0), 1, 4 / 16, "wrong name, box is off"),
        (found(1, 4, ANCHOR, 0.4), None, 0.0, "nothing annotated here"),
        (found(2, 0, ANCHOR, 0.4), None, 0.0, "nothing annotated here"),
    ],
)
def test_what_was_really_there(detection, place, iou, reason):
    gt = truth((1, 0, ANCHOR), (1, 1, BELL))
    matching = match_novel(gt, [found(1, 0, ANCHOR, 0.9), detection], NOVEL)
    (mistake,) = worst_false_positives(matching, gt, 5)
    assert mistake.detection == detection
    assert mistake.truth == (None if place is None else gt.annotations[place])
    assert (mistake.iou, mistake.reason) == (pytest.approx(iou), reason)


@pytest.mark.parametrize(
    ("detections", "shown", "iou", "reason"),
    [
        ([], None, 0.0, "nothing detected here"),
        ([found(1, 3, ANCHOR, 0.9)], None, 0.0, "nothing detected here"),
        ([found(1, 0, BELL, 0.2)], 0, 1.0, "called something else"),
        ([found(1, 0, BELL, 0.2), found(1, 0, CLOUD, 0.7)], 1, 1.0, "called something else"),
        ([found(1, 0, ANCHOR, 0.2, shift=6.0)], 0, 4 / 16, "box is off"),
        ([found(1, 0, BELL, 0.2, shift=6.0)], 0, 4 / 16, "called something else, box is off"),
    ],
)
def test_the_best_detection_of_a_missed_object(detections, shown, iou, reason):
    gt = truth((1, 0, ANCHOR))
    (mistake,) = worst_misses(match_novel(gt, detections, NOVEL), detections, 5)
    assert mistake.truth is gt.annotations[0]
    assert mistake.detection == (None if shown is None else detections[shown])
    assert (mistake.iou, mistake.reason) == (pytest.approx(iou), reason)


def test_two_objects_under_one_detection():
    gt = truth((1, 0, ANCHOR), (1, 0.1, ANCHOR))
    detections = [found(1, 0, ANCHOR, 0.9)]
    (mistake,) = worst_misses(match_novel(gt, detections, NOVEL), detections, 5)
    assert mistake.reason == "its detection counts for another object"


def test_the_surest_first_and_few_of_one_category():
    scores = {ANCHOR: (0.9, 0.8, 0.7, 0.6, 0.5), CLOUD: (0.2, 0.1)}
    wrong = [found(1, k, c, s) for c, values in scores.items() for k, s in enumerate(values)]
    gt = truth()
    matching = match_novel(gt, wrong, NOVEL)

    def shown(count):
        return [m.detection["score"] for m in worst_false_positives(matching, gt, count)]

    assert shown(2) == [0.9, 0.8]
    assert shown(5) == [0.9, 0.8, 0.7, 0.2, 0.1]
    assert shown(9) == [0.9, 0.8, 0.7, 0.2, 0.1, 0.6, 0.5]


def test_missed_objects_surely_misnamed_first_then_large_ones():
    gt = truth((1, 0, ANCHOR), (1, 1, ANCHOR), (2, 0, CLOUD), (2, 1, CLOUD))
    gt.annotations[3]["bbox"] = [20.0, 0.0, 30.0, 10.0]
    detections = [found(1, 0, BELL, 0.3), found(1, 1, BELL, 0.6)]
    mistakes = worst_misses(match_novel(gt, detections, NOVEL), detections, 9)
    assert [gt.annotations.index(one.truth) for one in mistakes] == [1, 0, 3, 2]


@pytest.mark.parametrize("novel", [set(), NOVEL])
def test_nothing(novel):
    matching = match_novel(truth(), [], novel)
    assert worst_false_positives(matching, truth(), 3) == []
    assert worst_misses(matching, [], 3) == []
