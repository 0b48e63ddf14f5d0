"""Proposal generators that are not Detectron2's RPN: what their scores are."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn

from ovd_d2.modeling.objectness import objectness_kind
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary

BOXES = torch.tensor([[4.0, 4, 30, 30], [32, 32, 60, 60]])
PROBABILITIES = torch.tensor([0.9, 0.2])


class CenterNetStandIn(nn.Module):
    """Two fixed boxes, with probabilities in `objectness_logits`, as CenterNet gives them."""

    def __init__(self, cfg, input_shape):
        super().__init__()

    def forward(self, images, features, targets=None):
        proposals = []
        for size in images.image_sizes:
            one = Instances(size)
            one.proposal_boxes = Boxes(BOXES.clone())
            one.objectness_logits = PROBABILITIES.clone()
            proposals.append(one)
        return proposals, {}


@pytest.fixture
def center_net(monkeypatch):
    """The config of a ViLD whose proposals a CenterNet makes."""
    name = "CenterNetStandIn"
    monkeypatch.setitem(PROPOSAL_GENERATOR_REGISTRY._obj_map, name, CenterNetStandIn)
    cfg = tiny_config("vild_image")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return cfg


def scores(cfg, weight):
    """Scores by region and category, (2, 4)."""
    cfg.MODEL.OVD.OBJECTNESS_WEIGHT = weight
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    found = model([tiny_input()])[0]["instances"]
    regions = (found.pred_boxes.tensor[:, 0] > BOXES[:, 0].mean()).long()
    table = torch.full((2, 4), torch.nan)
    table[regions, found.pred_classes] = found.scores
    return table


@torch.no_grad()
def test_probabilities_are_mixed_in_as_they_are(center_net):
    center_net.MODEL.OVD.OBJECTNESS = "probability"
    expected = (scores(center_net, 0.0) * PROBABILITIES[:, None]).sqrt()
    torch.testing.assert_close(scores(center_net, 0.5), expected)


def test_a_generator_that_is_no_rpn_must_be_told(center_net):
    with pytest.raises(ValueError, match=r"CenterNetStandIn is not a subclass .*MODEL.OVD.OBJECT"):
        objectness_kind(center_net)
    center_net.MODEL.OVD.OBJECTNESS_WEIGHT = 0.5
    with pytest.raises(ValueError, match=r'OBJECTNESS to "logit" or "probability"'):
        build_model(center_net)
    center_net.MODEL.OVD.OBJECTNESS_WEIGHT = 0.0
    build_model(center_net)  # nothing asks for objectness


@torch.no_grad()
def test_logits_declared_as_probabilities_are_refused():
    cfg = tiny_config("vild_image")
    cfg.MODEL.OVD.OBJECTNESS, cfg.MODEL.OVD.OBJECTNESS_WEIGHT = "probability", 0.5
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    with pytest.raises(ValueError, match=r"outside of \[0, 1\].*MODEL.OVD.OBJECTNESS to"):
        model([tiny_input()])


@pytest.mark.parametrize("name", ["RPN", "LevelMeanRPN"])
def test_rpns_give_logits(name):
    cfg = tiny_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    assert objectness_kind(cfg) == "logit"
    cfg.MODEL.OVD.OBJECTNESS = "Logits"
    with pytest.raises(ValueError, match=r'MODEL.OVD.OBJECTNESS is "Logits", expected "logit"'):
        objectness_kind(cfg)


def test_stored_proposals_must_be_told():
    cfg = tiny_config()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    with pytest.raises(ValueError, match="PrecomputedProposals"):
        objectness_kind(cfg)
