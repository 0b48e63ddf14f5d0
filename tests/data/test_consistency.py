"""What a data set's files say against what is there."""

import pytest
from detectron2.structures import BoxMode

from ovd_d2.data.categories import CategoryTable
from ovd_d2.data.consistency import (
    annotation_problems,
    split_notices,
    split_problems,
)


def box(x, y, width, height, category=0, mode=BoxMode.XYWH_ABS):
    return {"bbox": [x, y, width, height], "bbox_mode": mode, "category_id": category}


@pytest.fixture
def records():
    """Three images with a box each."""
    return [
        {"image_id": k, "file_name": f"{k}.png", "annotations": [box(0, 0, 4, 4)]}
        for k in (1, 2, 3)
    ]


def test_a_sound_set(records):
    assert annotation_problems("mine", records) == []


def test_flat_boxes_in_either_convention(records):
    records[0]["annotations"].append(box(1, 1, 0, 5))
    records[1]["annotations"].append(box(3, 3, 9, 3, mode=BoxMode.XYXY_ABS))
    (problem,) = annotation_problems("mine", records)
    assert "2 boxes have no width or height, first in" in problem and "1.png" in problem


def test_an_id_that_stands_twice(records):
    records[2]["image_id"] = 1
    (problem,) = annotation_problems("mine", records)
    assert "1 image ids stand more than once, first [1]" in problem


def test_split_without_base_categories_or_their_boxes(records):
    everything_novel = CategoryTable(["a", "b"], [True, True])
    assert "all 2 categories are novel" in split_problems("mine", everything_novel, records)[0]
    first_novel = CategoryTable(["a", "b"], [True, False])
    assert "none of its 1 base" in split_problems("mine", first_novel, records)[0]
    assert split_problems("mine", CategoryTable(["a", "b"], [False, True]), records) == []


def test_an_odd_split_is_only_noted(records):
    notes = split_notices("mine", CategoryTable(list("abcde"), [False] * 5), records)
    assert "no novel category" in notes[0]
    assert "4 base categories have no box in training: b, c, d ..." in notes[1]
    assert split_notices("mine", CategoryTable(["a", "b"], [False, True]), records) == []
