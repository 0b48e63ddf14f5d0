from __future__ import annotations

import math

import pytest
from evaluation_scenes import COCO_IDS, FREQUENCIES, make_dataset

from ovd_d2.evaluation.ground_truth import GroundTruth, for_iou_type


@pytest.fixture
def dataset():
    return make_dataset(COCO_IDS, images=3)


def test_annotations_are_numbered_from_one(dataset):
    for one in dataset["annotations"]:
        one["id"] = 0
    truth = GroundTruth(dataset, "lvis")
    assert [one["id"] for one in truth.annotations] == list(range(1, 13))


def test_a_missing_area_is_the_boxs(dataset):
    del dataset["annotations"][0]["area"]
    dataset["annotations"][0]["bbox"] = [1, 2, 3, 5]
    assert GroundTruth(dataset, "coco").annotations[0]["area"] == 15


def test_a_null_area_is_the_boxs_and_a_null_iscrowd_is_none(dataset):
    dataset["annotations"][0].update(area=None, bbox=[1, 2, 3, 5], iscrowd=None)
    for rules in ("lvis", "coco"):
        assert GroundTruth(dataset, rules).annotations[0]["area"] == 15
    truth = GroundTruth(dataset, "coco")
    assert truth.annotations[0]["iscrowd"] == 0
    assert sum(truth.objects_per_category().values()) == 12


def test_masks_of_some_objects_do_not_matter_where_boxes_are_evaluated(dataset):
    dataset["annotations"][0]["segmentation"] = None
    assert not GroundTruth(dataset, "coco", masks=False).has_masks
    with pytest.raises(ValueError, match="1 of 12 annotations have no segmentation"):
        GroundTruth(dataset, "coco")


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [math.nan, 1, 2, 3]},
        {"bbox": [0, 1, math.inf, 3]},
        {"bbox": [0, 1, 2]},
        {"bbox": None},
        {"bbox": [0, 1, "2", 3]},
        {"area": math.nan},
    ],
)
@pytest.mark.parametrize("rules", ["lvis", "coco"])
def test_annotations_that_are_not_finite_are_refused_by_name(dataset, change, rules):
    dataset["annotations"][5].update(change)
    with pytest.raises(ValueError, match=r"my\.json: 1 of 12 .*annotation 6 of image 2, bbox "):
        GroundTruth(dataset, rules, "my.json")


def test_lvis_has_no_crowds_and_coco_no_ignored(dataset):
    dataset["annotations"][0].update(iscrowd=1, ignore=1)
    del dataset["annotations"][1]["iscrowd"]
    dataset["annotations"][2]["iscrowd"] = None
    lvis, coco = GroundTruth(dataset, "lvis"), GroundTruth(dataset, "coco")
    assert "iscrowd" not in lvis.annotations[0] and lvis.annotations[0]["ignore"] == 1
    assert [one["iscrowd"] for one in coco.annotations[:3]] == [1, 0, 0]
    assert "ignore" not in coco.annotations[0]


def test_lvis_leaves_out_objects_without_area(dataset):
    dataset["annotations"][0]["area"] = 0
    assert len(GroundTruth(dataset, "lvis").annotations) == 11
    assert len(GroundTruth(dataset, "coco").annotations) == 12


def test_objects_per_category_leaves_crowds_out(dataset):
    for one in dataset["annotations"]:
        one["category_id"] = 3
    dataset["annotations"][0]["iscrowd"] = 1
    assert GroundTruth(dataset, "coco").objects_per_category() == {3: 11}


def test_categories_come_in_ascending_order(dataset):
    dataset["categories"].reverse()
    truth = GroundTruth(dataset, "lvis")
    assert truth.category_ids == COCO_IDS
    assert truth.frequencies == FREQUENCIES


@pytest.mark.parametrize("empty", [None, []])
def test_boxes_only(dataset, empty):
    for one in dataset["annotations"]:
        one["segmentation"] = empty
    truth = GroundTruth(dataset, "lvis")
    assert not truth.has_masks
    assert "segmentation" not in truth.annotations[0]


def test_some_masks_are_refused(dataset):
    del dataset["annotations"][5]["segmentation"]
    with pytest.raises(ValueError, match=r"my\.json: 1 of 12 annotations .*of image 2"):
        GroundTruth(dataset, "lvis", "my.json")


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_lvis_needs_the_federated_fields(dataset, field):
    del dataset["images"][1][field]
    assert GroundTruth(dataset, "coco").image_ids == {1, 2, 3}
    with pytest.raises(ValueError, match=rf"1 of 3 images have no '{field}' \(first: image 2\)"):
        GroundTruth(dataset, "lvis")


def test_masks_need_the_size_of_the_image(dataset):
    del dataset["images"][0]["height"]
    with pytest.raises(ValueError, match="1 images have no height and width"):
        GroundTruth(dataset, "coco")


def test_detections_elsewhere_are_refused(dataset):
    detection = {"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    with pytest.raises(ValueError, match=r"images \[9\] that my\.json does not have"):
        GroundTruth(dataset, "lvis", "my.json").check([detection])


@pytest.mark.parametrize("change", [{"score": math.nan}, {"bbox": [0, 0, math.inf, 1]}])
def test_detections_that_are_not_finite_are_refused(dataset, change):
    good = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    truth = GroundTruth(dataset, "lvis")
    truth.check([good])
    truth.check([])
    with pytest.raises(ValueError, match="1 of 2 detections .* not finite"):
        truth.check([good, {**good, **change}])


def test_only_the_geometry_of_the_task_stays():
    detection = {"bbox": [0, 0, 1, 1], "segmentation": {"counts": ""}, "score": 0.5}
    (box,), (mask,) = for_iou_type([detection], "bbox"), for_iou_type([detection], "segm")
    assert sorted(box) == ["bbox", "score"]
    assert sorted(mask) == ["score", "segmentation"]
    assert len(detection) == 3
