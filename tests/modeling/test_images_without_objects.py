"""Every kind of detector trains on batches that have images without objects, and on nothing else.

In base-only labels hundreds of LVIS's images are of that kind.
"""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage

from ovd_d2.vild import VARIANTS
from tests.modeling.test_mask_head import pointrend_config
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary

BATCHES = {"some": (2, 0), "one": (0, 2), "all": (0, 0)}  # objects of each image


def cascade_config(variant):
    cfg = tiny_config(variant, "SyncBN")
    cfg.MODEL.ROI_HEADS.NAME = "ViLDCascadeROIHeads"
    return cfg


def supervised_config(heads):
    cfg = tiny_config("vild_text", "SyncBN")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "GeneralizedRCNN", heads
    return cfg


DETECTORS = {
    **{name: lambda name=name: tiny_config(name, "SyncBN") for name in VARIANTS},
    **{f"cascade {name}": lambda name=name: cascade_config(name) for name in VARIANTS},
    "pointrend": pointrend_config,
    "supervised": lambda: supervised_config("StandardROIHeads"),
    "supervised cascade": lambda: supervised_config("CascadeROIHeads"),
}


def make_model(name):
    torch.manual_seed(0)
    cfg = DETECTORS[name]()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "LevelMeanRPN"  # of the LVIS recipes
    model = build_model(cfg)
    if hasattr(model, "set_vocabulary"):
        model.set_vocabulary(tiny_vocabulary())
    return model.train()


def make_batch(name, objects):
    batch = [tiny_input(count, seed=k) for k, count in enumerate(objects)]
    if name == "pointrend":
        return batch  # it learns from bitmasks alone
    for count, record in zip(objects, batch, strict=True):
        square = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]
        record["instances"].gt_masks = PolygonMasks([square] * count)
    return batch


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", DETECTORS)
def test_losses_gradients_and_statistics_are_sound(name, batch):
    model = make_model(name)
    with EventStorage():
        losses = model(make_batch(name, BATCHES[batch]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for _, p in trained)
    assert all(torch.isfinite(statistic).all() for statistic in model.buffers())
    if batch == "all":
        assert losses["loss_mask"] == losses["loss_rpn_loc"] == 0
