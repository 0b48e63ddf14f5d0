"""Boxes, crowds and areas."""

import random

import numpy as np
import pytest

from ovd_d2.data.validation import Source, validate_file
from ovd_d2.data.validation.boxes import corners_suspected
from tests.annotation_sets import TEST, TRAIN, checked, only_problem, sound_set, written

NAN, INF = float("nan"), float("inf")


def with_box(box):
    dataset = sound_set()
    dataset["annotations"][3]["bbox"] = box
    return dataset


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([1, NAN, 2, 3], "not finite"),
        ([1, 2, INF, 3], "not finite"),
        ([1, 2, 10**400, 3], "not finite"),
        ([1, 2, 0, 3], "have no width or height"),
        ([1, 2, 3, -3], "have no width or height"),
        (["1", "2", "3", "4"], "not four numbers"),
        ([1, 2, 3], "not four numbers"),
        ([], "not four numbers"),
        ([1, 2, 3, None], "not four numbers"),
        ([1, 2, 3, True], "not four numbers"),
        (None, "not four numbers"),
        ({"x": 1}, "not four numbers"),
        ([64, 0, 5, 5], "wholly outside"),
        ([-9, 0, 5, 5], "wholly outside"),
        ([0, 50, 5, 5], "wholly outside"),
    ],
)
@pytest.mark.parametrize("use", [TRAIN, TEST])
def test_a_box_that_is_none(tmp_path, box, said, use):
    message = only_problem(checked(tmp_path, with_box(box), use))
    assert f"1 of 12 boxes are {said}" in message or f"1 of 12 boxes {said}" in message
    assert "annotation 4 of image 2" in message and "--fix" in message


def test_boxes_a_little_and_clearly_outside(tmp_path):
    report = checked(tmp_path, with_box([44.5, -0.5, 20, 20]))
    assert (report.problems, report.notices) == ([], [])
    report = checked(tmp_path, with_box([50, 4, 20, 20]))
    assert report.problems == []
    assert "1 of 12 boxes are partly outside" in report.notices[0]
    assert "[50.0, 4.0, 20.0, 20.0] in 64 x 48" in report.notices[0]


def test_official_sets_keep_their_flat_boxes(tmp_path):
    path = written(tmp_path, with_box([1, 2, 0, 3]))
    report = validate_file(path, TRAIN, source=Source(str(path), official=True, has_split=False))
    assert report.problems == [] and "no width or height" in report.notices[0]


def test_corners_in_place_of_sides_are_suspected(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    message = only_problem(checked(tmp_path, dataset))
    assert "corners are suspected" in message and "--corners" in message


def test_some_corners_among_sides_are_noted(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"][:6]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x, y, x + width, y + height]
    report = checked(tmp_path, dataset)
    assert report.problems == [] and "inside as [x1, y1, x2, y2]" in report.notices[0]
    report = checked(tmp_path, with_box([50, 4, 20, 20]))
    assert "[x1, y1, x2, y2]" not in report.notices[0]


def test_sound_boxes_are_never_taken_for_corners():
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(1, 20))
        sizes = rng.integers(20, 300, (count, 2)).astype(float)
        starts = rng.uniform(0, 0.9, (count, 2)) * sizes
        sides = rng.uniform(0.05, 1, (count, 2)) * (sizes - starts)
        assert not corners_suspected(np.hstack([starts, sides]), sizes).any()


def test_a_few_boxes_outside_are_no_corners():
    sizes = np.full((100, 2), 100.0)
    boxes = np.tile([10.0, 10.0, 30.0, 30.0], (100, 1))
    boxes[:4] = [60, 60, 80, 80]
    assert not corners_suspected(boxes, sizes).any()
    boxes[4] = [60, 60, 80, 80]
    assert corners_suspected(boxes, sizes).sum() == 5
    boxes[50:60, 2] = 5  # as corners they are none
    assert not corners_suspected(boxes, sizes).any()


def test_random_corners_are_found():
    rng = random.Random(0)
    boxes = []
    for _ in range(200):
        (x1, x2), (y1, y2) = (sorted(rng.sample(range(101), 2)) for _ in range(2))
        boxes.append([x1, y1, x2, y2])
    sizes = np.full((200, 2), 100.0)
    assert corners_suspected(np.array(boxes, float), sizes).any()


def test_fractions_of_the_image_are_suspected(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.25]
    assert "fractions of the image are suspected" in only_problem(checked(tmp_path, dataset))


@pytest.mark.parametrize("value", [0, False, 0.0])
def test_what_means_no_crowd(tmp_path, value):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = value
    report = checked(tmp_path, dataset)
    assert (report.problems, report.notices, report.counts["crowds"]) == ([], [], 0)
    for annotation in dataset["annotations"]:
        del annotation["iscrowd"]
    report = checked(tmp_path, dataset)
    assert (report.problems, report.notices) == ([], [])


@pytest.mark.parametrize("value", ["0", "1", 2, -1, 0.5, [0], NAN])
def test_crowds_of_other_values(tmp_path, value):
    dataset = sound_set()
    dataset["annotations"][0]["iscrowd"] = value
    message = only_problem(checked(tmp_path, dataset))
    assert "1 of 12 annotations have an 'iscrowd' that is neither 0 nor 1" in message


def test_null_crowds_are_noted_where_the_loader_takes_them_for_0(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = None
    report = checked(tmp_path, dataset)
    assert report.problems == [] and "taken as 0" in report.notices[0]
    assert len(report.annotated_images) == 4
    message = only_problem(checked(tmp_path, dataset, d2=True))
    assert "12 of 12 annotations have a null 'iscrowd'" in message and "for a crowd" in message


def test_ignore_is_refused(tmp_path):
    dataset = sound_set()
    dataset["annotations"][0]["ignore"] = 1
    dataset["annotations"][1]["ignore"] = 0
    assert "1 of 12 annotations have 'ignore' set" in only_problem(checked(tmp_path, dataset))


@pytest.mark.parametrize("area", [-1, "400", NAN])
def test_areas_are_for_evaluation(tmp_path, area):
    dataset = sound_set()
    dataset["annotations"][0]["area"] = area
    assert checked(tmp_path, dataset, TRAIN).problems == []
    assert "1 of 12 annotations have an area" in only_problem(checked(tmp_path, dataset, TEST))
    del dataset["annotations"][0]["area"]
    dataset["annotations"][1]["area"] = None
    report = checked(tmp_path, dataset, TEST)
    assert report.problems == [] and "2 of 12 annotations have no 'area'" in report.notices[0]
