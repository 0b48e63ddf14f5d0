"""The benchmark of exported detectors, tiny: a row per stage, and the page."""

from functools import partial

import pytest
import torch
from benchmarks import exported, glip
from benchmarks.end_to_end import PICTOGRAMS
from benchmarks.exported import Case, glip_stages, rcnn_stages
from benchmarks.speed import operations_of

FEW = [
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "TEST.DETECTIONS_PER_IMAGE", "10"),
]
LESS = (*glip.SMALL, "MODEL.GLIP.BERT.VOCABULARY", 100, "MODEL.GLIP.BLOCKS", 1)


def test_a_row_per_stage_and_their_page():
    build = partial(rcnn_stages, PICTOGRAMS[0], FEW)
    rows = exported.measure([Case("tiny", build, (64, 96), rounds=1)])
    stages = ["backbone", "proposals", "boxes", "masks", "whole"]
    assert [row["stage"] for row in rows] == stages
    whole = rows[-1]
    assert whole["share_of_time"] == whole["share_of_operations"] == 1
    assert whole["float32"] > 0 and whole["int8"] > 0
    assert sum(row["share_of_operations"] for row in rows[:-1]) == pytest.approx(1, abs=0.01)
    text = exported.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    assert text.count("| tiny, 64 x 96 px ") == len(stages)


@pytest.mark.parametrize("config", ["glip_t", "glip_t_a"])
def test_glip_finds_the_same_in_either_form(config):
    built = glip_stages(glip.Case("GLIP", config, (64, 96), LESS))
    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        before = operations_of(partial(built.eager, pixels))
        (found,) = built.eager(pixels)
        boxes, scores, _ = built.networks["tower, selection"].module(pixels, *built.words.values())
        assert operations_of(partial(built.eager, pixels)) == before  # captions are kept
    assert len(boxes) > 0
    torch.testing.assert_close(scores, found["instances"].scores)
