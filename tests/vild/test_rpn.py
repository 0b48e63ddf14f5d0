import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ovd_d2.vild import LevelMeanRPN
from tests.tiny import tiny_config, tiny_input

DELTA = 0.5


def make_rpn(name="LevelMeanRPN", loss_weight=1.0):
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    cfg.MODEL.RPN.SMOOTH_L1_BETA = DELTA
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = loss_weight
    return build_model(cfg).proposal_generator


def rpn_losses(rpn, labels):
    """Two levels of two anchors of 10 pixels each, all objects 1 pixel to the right of theirs,
    all deltas predicted as 0; labels (images, 4)."""
    corners = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    boxes = torch.cat([corners, corners + 10], dim=1)
    matched = boxes + torch.tensor([1.0, 0.0, 1.0, 0.0])
    labels = torch.tensor(labels)
    matched = matched.repeat(len(labels), 1, 1)
    matched[labels != 1] = 0.0  # as Detectron2 leaves what has no match
    logits = torch.zeros(len(labels), 2, requires_grad=True)
    deltas = torch.zeros(len(labels), 2, 4, requires_grad=True)
    with EventStorage():
        losses = rpn.losses(
            [Boxes(boxes[:2]), Boxes(boxes[2:])],
            [logits, logits],
            list(labels),
            [deltas, deltas],
            list(matched),
        )
    return losses, deltas


# One coordinate of a positive anchor is off by 0.1 widths, the other three by nothing.
ONE = 0.5 * 0.1**2 / 4


@pytest.mark.parametrize(
    ("labels", "levels"),
    [
        ([[1, 0, 0, -1]], 1),
        ([[1, 1, 0, 0]], 1),  # a mean: the second one changes nothing
        ([[1, 1, 1, 0]], 2),
        ([[1, 0, 0, 0], [0, 0, 0, 1]], 2),  # over the images of the batch
        ([[0, 0, -1, -1]], 0),
    ],
)
def test_every_level_with_positive_anchors_counts_once(labels, levels):
    losses, deltas = rpn_losses(make_rpn(), labels)
    assert losses["loss_rpn_loc"].item() == pytest.approx(levels * ONE, rel=1e-4)
    losses["loss_rpn_loc"].backward()
    assert torch.isfinite(deltas.grad).all()


def test_its_weight_and_the_objectness_loss_are_detectron2s():
    labels = [[1, 1, 0, -1]]
    ours, theirs = (rpn_losses(make_rpn(name), labels)[0] for name in ("LevelMeanRPN", "RPN"))
    torch.testing.assert_close(ours["loss_rpn_cls"], theirs["loss_rpn_cls"])
    weighted = rpn_losses(make_rpn(loss_weight=3.0), labels)[0]
    torch.testing.assert_close(weighted["loss_rpn_loc"], 3.0 * ours["loss_rpn_loc"])


@pytest.mark.parametrize("objects", [2, 0])
def test_a_detector_trains_with_it(objects):
    cfg = tiny_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LevelMeanRPN"
    model = build_model(cfg).train()
    assert type(model.proposal_generator) is LevelMeanRPN
    record = tiny_input(objects)
    features = model.backbone(model.preprocess_image([record]).tensor)
    with EventStorage():
        proposals, losses = model.proposal_generator(
            model.preprocess_image([record]), features, [record["instances"]]
        )
    assert isinstance(proposals[0], Instances)
    sum(losses.values()).backward()
    head = model.proposal_generator.rpn_head
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_the_head_has_a_norm_after_each_conv():
    cfg = tiny_config()
    cfg.MODEL.RPN.NORM = "BN"
    cfg.MODEL.RPN.CONV_DIMS = [-1, -1]
    rpn = build_model(cfg).proposal_generator
    assert isinstance(rpn, RPN)
    convs = [m for m in rpn.rpn_head.conv.modules() if isinstance(m, Conv2d)]
    assert [type(conv.norm) for conv in convs] == [nn.BatchNorm2d, nn.BatchNorm2d]
