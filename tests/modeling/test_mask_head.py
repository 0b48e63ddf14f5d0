import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.utils.events import EventStorage

from ovd_d2.modeling import ClassAgnosticPointRendMaskHead, ViLDMaskHead
from tests.tiny import pointrend_config, tiny_input, tiny_vocabulary


def make_model():
    torch.manual_seed(0)
    model = build_model(pointrend_config())
    model.set_vocabulary(tiny_vocabulary())
    return model


def test_both_parts_predict_one_mask_whatever_the_number_of_names():
    head = make_model().roi_heads.mask_head
    assert isinstance(head, ClassAgnosticPointRendMaskHead)
    assert head.coarse_head.output_shape == (1, 5, 5)
    assert head.point_head.predictor.out_channels == 1


@pytest.mark.parametrize(("objects", "cached"), [(2, 3), (0, 3), (0, 0)])
def test_every_parameter_gets_a_gradient_with_and_without_objects(objects, cached):
    model = make_model().train()
    inputs = [tiny_input(objects, cached), tiny_input(objects, cached, seed=1)]
    with EventStorage():
        losses = model(inputs)
    assert {"loss_mask", "loss_mask_point"} <= set(losses)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    if not objects:
        assert losses["loss_mask"] == losses["loss_mask_point"] == 0
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []


@torch.no_grad()
def test_masks_are_as_fine_as_the_subdivision_says_for_any_names():
    model = make_model().eval()
    model.set_vocabulary(tiny_vocabulary(["dog"]))
    found = model.inference([tiny_input()], do_postprocess=False)[0]
    assert len(found) > 0
    assert found.pred_masks.shape[1:] == (1, 20, 20)  # 5, refined twice


@torch.no_grad()
def test_no_detections_no_masks():
    model = make_model().eval()
    model.roi_heads.box_predictor.test_score_thresh = 2.0
    assert len(model([tiny_input()])[0]["instances"]) == 0


@pytest.mark.parametrize("norm", ["", "BN"])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("regions", [0, 1, 16, 37])
def test_the_convolutional_head_computes_what_detectron2s_does(regions, classes, norm):
    shape, sizes = ShapeSpec(channels=6, height=5, width=5), [8, 8, 4]
    heads = [
        head(shape, num_classes=classes, conv_dims=sizes, conv_norm=norm)
        for head in (ViLDMaskHead, MaskRCNNConvUpsampleHead)
    ]
    for value in heads[1].parameters():
        torch.nn.init.normal_(value)
    heads[0].load_state_dict(heads[1].state_dict())
    pooled = torch.randn(regions, 6, 5, 5)
    found, expected = (head.eval().layers(pooled) for head in heads)
    assert found.shape == (regions, classes, 10, 10)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4)
    if regions:
        found, expected = (head.train().layers(pooled) for head in heads)
        assert torch.equal(found, expected)
