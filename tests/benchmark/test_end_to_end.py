"""What is compared end to end gives the same kind of records, as many as were asked for."""

import torch
from detectron2.modeling import GeneralizedRCNN

from ovd_d2.benchmark import end_to_end
from ovd_d2.benchmark.end_to_end import OURS, THEIRS, Case
from ovd_d2.modeling import BoxMasks

SMALL = Case("small", (64, 96), detections=30, rounds=1)


def test_both_make_coco_records_of_all_detections():
    things = end_to_end._things(SMALL)
    with torch.no_grad():
        for name in ("ours", "theirs"):
            records = things[name](0)
            assert len(records) == 30
            assert all(record["segmentation"]["size"] == [64, 96] for record in records)
        assert isinstance(things["network"](0)[0].pred_masks, torch.Tensor)  # as predicted


def test_mask_rcnn_is_detectron2s_and_gives_full_size_masks():
    theirs = end_to_end._untrained(THEIRS, SMALL)
    ours = end_to_end._untrained(OURS, SMALL)
    assert type(theirs) is GeneralizedRCNN
    ours.full_masks = False
    inputs = [{"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}]
    with torch.no_grad():
        assert theirs(inputs)[0]["instances"].pred_masks.shape == (30, 64, 96)
        assert isinstance(ours(inputs)[0]["instances"].pred_masks, BoxMasks)


def test_rows_name_what_was_measured():
    all_of_it, network = end_to_end.measure([SMALL])
    assert all_of_it.name == "evaluation, vild_ensemble / Mask R-CNN, small, 30 detections"
    assert network.name == f"{all_of_it.name}: network alone / all"
    assert min(network.measured, all_of_it.measured) > 0
    assert all_of_it.predicted == network.predicted > 1  # a head more
