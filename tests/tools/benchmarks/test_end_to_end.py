"""What is compared end to end gives the same kind of records, as many as were asked for."""

import torch
from benchmarks import end_to_end
from benchmarks.end_to_end import PICTOGRAMS, Case, Evaluation
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead

SMALL = Case("small", PICTOGRAMS, (64, 96), detections=30, rounds=1)


def test_both_make_coco_records_of_all_detections():
    ours = Evaluation(SMALL)
    with torch.no_grad():
        for thing in (ours, end_to_end._theirs(SMALL)):
            records = thing(0)
            assert len(records) == 30
            assert all(record["segmentation"]["size"] == [64, 96] for record in records)
    assert len(ours.network_seconds) == 1


def test_mask_rcnn_is_detectron2s_and_gives_full_size_masks():
    theirs = end_to_end._untrained(PICTOGRAMS[1], SMALL)
    assert type(theirs) is GeneralizedRCNN
    assert type(theirs.roi_heads.mask_head) is MaskRCNNConvUpsampleHead
    inputs = [{"image": torch.zeros(3, 64, 96), "height": 64, "width": 96}]
    with torch.no_grad():
        assert theirs(inputs)[0]["instances"].pred_masks.shape == (30, 64, 96)


def test_a_row_names_what_was_measured():
    (row,) = end_to_end.measure([SMALL])
    assert row["name"] == "small, 64 x 96 px, 30 detections"
    assert row["floor"] > 0
    assert row["ratio"] > 0
    assert row["operations"] > 1  # a head more
