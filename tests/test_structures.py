"""What rides on the ground truth of an image reaches the heads of any meta-architecture."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.structures import PerImage, attach_cached_proposals, cached_proposals_of


def ground_truth(count):
    boxes = torch.arange(4.0 * count).reshape(count, 4)
    return Instances((8, 8), gt_boxes=Boxes(boxes), gt_classes=torch.arange(count))


def proposals(count=3):
    return Instances((8, 8), proposal_boxes=Boxes(torch.ones(count, 4)))


@pytest.mark.parametrize("count", [0, 2])
def test_it_stays_whole_on_its_way(count):
    record = {"instances": ground_truth(count)}
    attach_cached_proposals(record, proposals())
    moved = record["instances"].to("cpu")
    assert len(moved) == count
    assert len(cached_proposals_of(moved)) == 3
    selected = moved[torch.zeros(count, dtype=torch.bool)]
    assert len(selected) == 0
    assert len(cached_proposals_of(selected)) == 3


def test_it_moves_with_the_other_fields():
    record = {"instances": ground_truth(2)}
    attach_cached_proposals(record, proposals())
    moved = cached_proposals_of(record["instances"].to("meta"))
    assert moved.proposal_boxes.device.type == "meta"
    assert cached_proposals_of(record["instances"]).proposal_boxes.device.type == "cpu"


def test_one_object_of_several():
    assert len(PerImage(proposals(), 4)[1]) == 1
    assert len(PerImage(proposals(), 4)[torch.tensor([0, 2, 3])]) == 3
    assert len(PerImage(proposals(), 4)[1:]) == 3


def test_ground_truth_without_proposals():
    assert cached_proposals_of(ground_truth(1)) is None
