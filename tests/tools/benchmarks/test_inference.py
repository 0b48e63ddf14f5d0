"""The inference benchmark, tiny: every kind of row, their masks as Detectron2's, the page."""

import pycocotools.mask
import pytest
import torch
from benchmarks import inference
from benchmarks.end_to_end import PICTOGRAMS, Case
from benchmarks.inference import Sizes, memory_row, random_masks, tables_of

from ovd_d2.modeling import BoxMasks

FEW = [
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE", "10", "TEST.DETECTIONS_PER_IMAGE", "10"),
]
TINY = Sizes(
    cases=[Case("small", PICTOGRAMS, (64, 96), detections=30, rounds=1)],
    images=[(40, 60)],
    masks=5,
    rounds=1,
    compared=3,
    names=300,
    large=((200, 300), 40),
    official=(128, 1, FEW),
)


def test_all_rows_and_their_page():
    rows = inference.measure(TINY)
    assert len(rows) == 7
    masks = rows[1]
    assert masks["masks_compared"] == 15
    assert masks["pixels_compared"] == 15 * 40 * 60
    assert masks["pixels_differing"] <= 2
    assert [row["products"] for row in rows[2:4]] == [1, 2]
    assert all(0.5 < row["official_operations"] < 2 for row in rows[5:])
    text = inference.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    for row in rows:
        assert text.count(f"| {row['name']} ") >= 1
    assert all(len(table.splitlines()) >= 3 for table in tables_of(rows).values())


def test_records_of_both_ways_hold_the_same_masks():
    masks = random_masks(20, (50, 70), seed=1)
    theirs = pycocotools.mask.decode(inference.detectron2_records(masks))
    ours = pycocotools.mask.decode(masks.to_rle())
    assert 0 < theirs.sum() < theirs.size
    assert (theirs != ours).sum() <= 2


def test_masks_lie_in_the_image():
    boxes = random_masks(200, (50, 700), seed=0).boxes
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= torch.tensor([700.0, 50.0]) + 1).all()


@pytest.mark.parametrize("wrong", [0, 3])
def test_pixels_that_differ_are_counted(monkeypatch, wrong):
    right = inference.detectron2_pixels

    def other(masks):
        pixels = right(masks)
        pixels[0, 0, :wrong] ^= True
        return pixels

    masks = BoxMasks(torch.ones(2, 28, 28), torch.tensor([[8.0, 8, 16, 16]] * 2), (20, 30))
    monkeypatch.setattr(inference, "detectron2_pixels", other)
    assert inference._differing(masks) == wrong


def test_memory_of_full_size_masks_is_seen():
    row = memory_row((400, 500), 50)
    assert row["their_megabytes"] > 50 * 400 * 500 / 1e6
    assert 0 < row["our_megabytes"] < row["their_megabytes"] / 5
