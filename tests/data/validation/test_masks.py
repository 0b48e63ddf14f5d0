"""Segmentations against MASK_ON, MASK_FORMAT and the loaders."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from ovd_d2.data.validation.segmentations import Kind, kind_of, rle_fault
from tests.annotation_sets import (
    TEST,
    TRAIN,
    TRAIN_BITMASKS,
    TRAIN_BOXES,
    checked,
    lvis_set,
    only_problem,
    sound_set,
)

ABSENT = object()


def with_masks(value, rows=range(12), dataset=None):
    dataset = dataset or sound_set()
    for row in rows:
        dataset["annotations"][row]["segmentation"] = value
        if value is ABSENT:
            del dataset["annotations"][row]["segmentation"]
    return dataset


def rle(height=48, width=64):
    return {"counts": [10, 5, height * width - 15], "size": [height, width]}


@pytest.mark.parametrize("value", [ABSENT, [], None])
def test_boxes_without_masks(tmp_path, value):
    message = only_problem(checked(tmp_path, with_masks(value), TRAIN))
    assert "12 of 12 annotations have no segmentation while MODEL.MASK_ON is True" in message
    assert "; set MODEL.MASK_ON False" in message
    assert checked(tmp_path, with_masks(value), TRAIN_BOXES).problems == []
    report = checked(tmp_path, with_masks(value), TEST)
    assert report.problems == [] and "masks are not evaluated" in report.notices[0]


def test_some_without_masks(tmp_path):
    dataset = with_masks(ABSENT, [1, 2])
    assert "2 of 12" in only_problem(checked(tmp_path, dataset, TRAIN))
    assert "give masks to all or to none" in only_problem(checked(tmp_path, dataset, TEST))
    for row in (1, 2):
        dataset["annotations"][row]["iscrowd"] = 1
    assert checked(tmp_path, dataset, TRAIN).problems == []  # crowds are not trained on


CORNERS = [[5, 4, 25, 24]]


@pytest.mark.parametrize("value", [CORNERS, [[1, 2]], [[1, 2, 3, 4, 5, 6, 7]], [[]]])
def test_polygons_of_too_few_points(tmp_path, value):
    dataset = with_masks(value, range(6))
    for use in (TRAIN, TEST):
        message = only_problem(checked(tmp_path, dataset, use))
        assert "6 of 12 annotations have polygons with fewer than three points" in message
    assert checked(tmp_path, dataset, TRAIN_BOXES).problems == []
    message = only_problem(checked(tmp_path, dataset, TRAIN_BOXES, d2=True))
    assert "leaves out their boxes" in message


def test_a_short_polygon_beside_a_sound_one(tmp_path):
    dataset = with_masks([[1, 2, 9, 2, 9, 9], [1, 2, 3, 4]], [0])
    report = checked(tmp_path, dataset)
    assert report.problems == [] and "beside sound ones" in report.notices[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([[1, 2, 3, float("nan"), 5, 6]], "not finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not finite"),
        ([1, 2, 3, 4, 5, 6], "neither polygons nor RLE"),
        ("mask", "neither polygons nor RLE"),
        ([["1", "2", "3", "4", "5", "6"]], "neither polygons nor RLE"),
        ({"counts": [1, 2], "size": [48, 64]}, "broken RLE"),
        ({"counts": "~~~", "size": [48, 64]}, "broken RLE"),
        ({"size": [48, 64]}, "broken RLE"),
        ({"counts": [3072]}, "broken RLE"),
        ({"counts": [-1, 3073], "size": [48, 64]}, "broken RLE"),
    ],
)
def test_masks_that_cannot_be_used(tmp_path, value, said):
    dataset = with_masks(value, [7])
    for use in (TRAIN, TRAIN_BITMASKS, TEST):
        message = only_problem(checked(tmp_path, dataset, use))
        assert said in message and "1 of 12" in message and "annotation 8 of image 3" in message
    assert checked(tmp_path, dataset, TRAIN_BOXES).problems == []


def test_rle_masks_need_bitmask(tmp_path):
    dataset = with_masks(rle())
    message = only_problem(checked(tmp_path, dataset, TRAIN))
    assert "12 of 12 annotations have RLE masks" in message
    assert "set INPUT.MASK_FORMAT bitmask" in message
    for use in (TRAIN_BITMASKS, TRAIN_BOXES, TEST):
        assert checked(tmp_path, dataset, use).problems == []
    for annotation in dataset["annotations"][3:]:
        annotation.update(segmentation=[[1, 2, 9, 2, 9, 9]])
    for annotation in dataset["annotations"][:3]:
        annotation["iscrowd"] = 1
    assert checked(tmp_path, dataset, TRAIN).problems == []  # as COCO writes its crowds


def test_rle_of_another_size(tmp_path):
    dataset = with_masks(rle(64, 48), [2])
    message = only_problem(checked(tmp_path, dataset, TRAIN_BITMASKS))
    assert "RLE mask of another size" in message and "48 x 64 in an image of 64 x 48" in message


@pytest.mark.parametrize("value", [ABSENT, CORNERS, rle(), [[1, 2, 9, 2, 9, 9], [1, 2]]])
def test_lvis_loader_needs_polygons_even_for_boxes(tmp_path, value):
    dataset = with_masks(value, dataset=lvis_set())
    report = checked(tmp_path, dataset, TRAIN_BOXES, lvis=True)
    assert "12 of 12" in only_problem(report)


def test_compressed_rle_is_checked_as_pycocotools_reads_it():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = map(int, rng.integers(1, 60, 2))
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), np.uint8)
        if rng.random() < 0.5:  # long runs: counts of several characters, and differences
            mask = np.asfortranarray(np.kron(mask, np.ones((7, 9), np.uint8)))
        found = mask_utils.encode(mask)
        value = {"size": list(map(int, found["size"])), "counts": found["counts"].decode()}
        assert rle_fault(value) is None
        assert kind_of(value) == Kind.RLE
        other = {**value, "size": [value["size"][0] + 1, value["size"][1]]}
        assert "counts fill" in rle_fault(other)


def test_hostile_counts_are_refused():
    for counts in ("", "P", "o" * 1000, "~", "\x00", "é", "oooooooooooooooo0"):
        assert kind_of({"size": [4, 4], "counts": counts}) == Kind.BROKEN_RLE
    assert kind_of({"size": [4, "4"], "counts": [16]}) == Kind.BROKEN_RLE
    assert kind_of([[10**400, 1, 2, 3, 4, 5]]) == Kind.NOT_FINITE
