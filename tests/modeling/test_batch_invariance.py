"""An image gives the same detections alone and in any batch, for every kind of detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from ovd_d2.modeling import BatchInvariantRCNN, OpenVocabularyRCNN
from ovd_d2.vild import VARIANTS
from tests.tiny import pointrend_config, tiny_config, tiny_vocabulary, vit_config

# (height, width), padded to multiples of 32: some of them to the same size
SIZES = [(64, 96), (60, 90), (96, 64), (33, 70), (128, 128), (97, 128), (64, 64), (50, 50)]
SIZES += [(64, 96), (128, 64), (160, 96)]
TOLERANCE = 1e-4


def inputs() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": (torch.rand(3, *size, generator=generator) * 255).byte(),
            "height": size[0] + 7,  # detections and masks are scaled back
            "width": size[1],
        }
        for size in SIZES
    ]


def supervised() -> CfgNode:
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = "BatchInvariantRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    return cfg


def cascade(variant: str) -> CfgNode:
    cfg = tiny_config(variant)
    cfg.MODEL.ROI_HEADS.NAME = "ViLDCascadeROIHeads"
    return cfg


def group_norm() -> CfgNode:
    """Norms of features over the whole map, padding included."""
    cfg = tiny_config("vild", norm="GN")
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.FPN.NORM = cfg.MODEL.RPN.NORM = "GN"
    return cfg


CONFIGS: dict[str, Callable[[], CfgNode]] = {
    **{name: lambda name=name: tiny_config(name) for name in VARIANTS},
    **{f"cascade {name}": lambda name=name: cascade(name) for name in ("vild", "vild_ensemble")},
    "group norm": group_norm,
    "supervised": supervised,
    "ViT": vit_config,  # attends to the padding, too
    "PointRend": pointrend_config,
}


def build(cfg: CfgNode) -> BatchInvariantRCNN:
    """Random weights of heads, so large that scores differ and boxes move."""
    torch.manual_seed(0)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 12
    model = build_model(cfg).eval()
    if isinstance(model, OpenVocabularyRCNN):
        model.set_vocabulary(tiny_vocabulary())
    for name, parameter in model.named_parameters():
        if name.startswith(("proposal_generator.rpn_head", "roi_heads")) and parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
            parameter.data *= 0.1 if "bbox_pred" in name or "anchor_deltas" in name else 1.0
    return model


def batches(count: int) -> list[list[int]]:
    """All images in one shuffled batch, and in batches of three."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    return [order, *(order[k : k + 3] for k in range(0, count, 3))]


def assert_same(found: Instances, expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    assert found.image_size == expected.image_size
    for name, value in expected.get_fields().items():
        other = found.get(name)
        if hasattr(value, "tensor"):
            value, other = value.tensor, other.tensor
        if value.is_floating_point():
            torch.testing.assert_close(other, value, atol=TOLERANCE, rtol=TOLERANCE)
        else:
            assert torch.equal(other, value), name


def assert_batches_do_not_matter(
    run: Callable[[Sequence[dict[str, Any]]], list[Instances]], records: list[dict[str, Any]]
) -> None:
    alone = [run([one])[0] for one in records]
    for batch in batches(len(records)):
        for k, found in zip(batch, run([records[k] for k in batch]), strict=True):
            assert_same(found, alone[k])


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_detections(make):
    model = build(make())
    assert_batches_do_not_matter(lambda batch: [x["instances"] for x in model(batch)], inputs())


@pytest.mark.parametrize(
    "make", [CONFIGS["vild"], group_norm, vit_config], ids=["vild", "norms", "ViT"]
)
@torch.no_grad()
def test_proposals(make):
    assert_batches_do_not_matter(build(make()).predict_proposals, inputs())


@torch.no_grad()
def test_masks_of_given_boxes():
    """The second half of test-time augmentation."""
    model, records = build(tiny_config("vild")), inputs()
    boxes = model.inference(records, do_postprocess=False)
    for one in boxes:
        one.remove("pred_masks")
    together = model.inference(records, boxes, do_postprocess=False)
    for record, box, found in zip(records, boxes, together, strict=True):
        assert_same(found, model.inference([record], [box], do_postprocess=False)[0])


@torch.no_grad()
def test_a_batch_of_nothing_gives_nothing():
    assert build(tiny_config())([]) == []
