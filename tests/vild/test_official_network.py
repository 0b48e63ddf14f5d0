"""The official network's parts, by hand and in training."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from ovd_d2.engine.run import load_config
from ovd_d2.vild.backbone import LateNormFPN, StridedTopBlock, pad_same
from ovd_d2.vild.boxes import InclusiveBox2BoxTransform, clip_to_pixels
from ovd_d2.vild.mask_head import soft_mask_targets
from ovd_d2.vild.rpn import LevelNormRPNHead, OneAnchorMatcher
from tests.tiny import DIM, tiny_input, tiny_vocabulary


def official_config(config="configs/vild_r50.yaml", side=64):
    """The full recipe's network with few channels."""
    cfg = load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.OVD.VOCABULARY", ""])
    cfg.defrost()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20, 10
    cfg.MODEL.OVD.EMBEDDING_DIM = DIM
    cfg.MODEL.VILD.SQUARE_PAD = side
    return cfg


def official_model(**kwargs):
    torch.manual_seed(0)
    model = build_model(official_config(**kwargs))
    model.set_vocabulary(tiny_vocabulary())
    return model


@pytest.mark.parametrize("config", ["configs/vild_r50.yaml", "configs/vild_ensemble_r50.yaml"])
@pytest.mark.parametrize("objects", [[2, 1], [0, 2], [0, 0]])
def test_it_trains_with_and_without_objects(config, objects):
    model = official_model(config=config)
    batch = [tiny_input(count, seed=k) for k, count in enumerate(objects)]
    with EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_windows_of_even_sides_begin_at_the_first_pixel():
    x = torch.arange(1.0, 7).view(1, 1, 1, 6).expand(1, 1, 6, 6)
    assert F.max_pool2d(pad_same(x), 3, 2)[0, 0, 0].tolist() == [3, 5, 6]  # PyTorch: 2, 4, 6
    x = torch.arange(1.0, 6).view(1, 1, 1, 5).expand(1, 1, 5, 5)
    assert F.max_pool2d(pad_same(x), 3, 2)[0, 0, 0].tolist() == [2, 4, 5]


def test_p6_comes_from_p5_before_its_norm():
    cfg = official_config()
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    assert isinstance(backbone, LateNormFPN)
    for norm in backbone.norms.values():
        nn.init.constant_(norm.bias, 5.0)
    x = torch.randn(1, 3, 64, 64)
    found = backbone(x)
    raw = (found["p5"] - 5) * (1 + backbone.norms["p5"].eps) ** 0.5  # mean 0, variance 1
    expected = backbone.norms["p6"](backbone.top_block(raw)[0])
    torch.testing.assert_close(found["p6"], expected, rtol=1e-4, atol=1e-4)
    assert [tuple(found[f"p{k}"].shape[-2:]) for k in range(2, 7)] == [
        (64 >> k, 64 >> k) for k in range(2, 7)
    ]


def test_a_strided_level_of_any_size():
    top = StridedTopBlock(4)
    assert [top(torch.zeros(1, 4, n, n))[0].shape[-1] for n in (1, 2, 5, 6)] == [1, 1, 3, 3]


def test_each_level_of_the_rpn_has_norms_of_its_own():
    head = LevelNormRPNHead(in_channels=4, num_anchors=1, conv_dims=[-1, -1], norm="BN", levels=2)
    x = torch.randn(2, 4, 6, 6)
    before = head([x, x])[0]
    with torch.no_grad():
        head.norms[1][0].weight.mul_(3)
        head.norms[1][0].bias.add_(1)
    after = head([x, x])[0]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    assert len({id(norm) for level in head.norms for norm in level}) == 4


def test_one_anchor_per_object():
    iou = torch.tensor([[0.5, 0.5, 0.1, 0.0], [0.0, 0.2, 0.8, 0.1], [0.0, 0.6, 0.1, 0.0]])
    matches, labels = OneAnchorMatcher([0.3, 0.7], [0, -1, 1])(iou)
    assert labels.tolist() == [1, 1, 1, 0]  # of two equal anchors of the first object one
    assert matches.tolist()[:3] == [0, 2, 1]


def test_two_objects_whose_best_anchor_is_one():
    matches, labels = OneAnchorMatcher([0.3, 0.7], [0, -1, 1])(
        torch.tensor([[0.2, 0.1], [0.6, 0.1]])
    )
    assert labels.tolist() == [1, 0] and matches[0] == 0


def test_no_objects_no_match():
    matches, labels = OneAnchorMatcher([0.3, 0.7], [0, -1, 1])(torch.zeros(0, 5))
    assert matches.tolist() == [0] * 5 and labels.tolist() == [0] * 5


def test_sides_count_the_last_pixel():
    coder = InclusiveBox2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    boxes, target = torch.tensor([[0.0, 0, 9, 19]]), torch.tensor([[10.0, 0, 29, 19]])
    deltas = coder.get_deltas(boxes, target)  # 10 x 20 to 20 x 20 pixels
    torch.testing.assert_close(deltas, torch.tensor([[1.5, 0, torch.tensor(2.0).log(), 0]]))
    torch.testing.assert_close(coder.apply_deltas(deltas, boxes), target)
    assert clip_to_pixels(torch.tensor([[-3.0, 2, 50, 50]]), (30, 40)).tolist() == [[0, 2, 39, 29]]


def test_targets_of_masks_are_soft():
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1  # the right half
    box = torch.tensor([[0.0, 0, 8, 8]])
    whole = soft_mask_targets(mask, box, box, 4)[0]
    assert whole[1].tolist() == pytest.approx([0, 0.5, 1, 0.5])  # sampled between two pixels
    outside = soft_mask_targets(mask, box, torch.tensor([[20.0, 20, 28, 28]]), 4)
    assert outside.abs().max() == 0


def rpn_proposals(rpn, deltas=0.0):
    images = ImageList(torch.zeros(1, 3, 64, 64), [(40, 50)])
    features = {f"p{k}": torch.zeros(1, 16, 64 >> k, 64 >> k) for k in range(2, 7)}
    return rpn(images, features)[0][0]


def test_proposals_reach_into_the_padding_and_end_at_its_last_pixel():
    rpn = official_model().eval().proposal_generator
    rpn.post_nms_topk[False] = 1000
    found = rpn_proposals(rpn)
    assert found.image_size == (40, 50)
    assert found.proposal_boxes.tensor.max() == 63
    assert found.proposal_boxes.tensor.min() == 0


def test_detections_end_at_the_last_pixel_of_the_padding():
    heads = official_model().eval().roi_heads
    proposals = Instances((40, 50), proposal_boxes=Boxes([[0, 0, 60.0, 60]]))
    boxes, probs = [torch.tensor([[-5.0, 0, 90, 90]])], torch.tensor([[0.9, 0, 0, 0]])
    found = heads.box_predictor.select_detections(probs, boxes, [proposals])[0]
    assert found.image_size == (40, 50)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 49, 39]]


def test_an_image_gives_full_size_detections_inside_of_it():
    model = official_model().eval()
    with torch.no_grad():
        found = model([{"image": torch.zeros(3, 40, 50), "height": 80, "width": 100}])
    instances = found[0]["instances"]
    assert instances.image_size == (80, 100)
    limits = torch.tensor([100, 80, 100, 80])
    assert (instances.pred_boxes.tensor <= limits).all()


def test_soft_targets_reach_the_loss():
    model = official_model()
    head = model.roi_heads.mask_head
    region = Instances((64, 64))
    region.gt_boxes = region.proposal_boxes = Boxes([[0.0, 0, 32, 32]])
    region.gt_masks = BitMasks(torch.ones(1, 64, 64, dtype=torch.bool))
    region.gt_classes = torch.zeros(1, dtype=torch.int64)
    features = torch.randn(1, 16, 14, 14)
    loss = head(features, [region])["loss_mask"]
    logits = head.layers(features)[:, 0]
    targets = soft_mask_targets(
        torch.ones(1, 112, 112), region.gt_boxes.tensor, region.gt_boxes.tensor, 28
    )
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


def test_initial_weights():
    model = official_model(config="configs/vild_ensemble_r50.yaml")
    heads = model.roi_heads
    for linear in (heads.box_head.fc2, heads.image_head.projection, heads.image_head.trunk.fc1):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
    assert heads.box_predictor.bbox_pred.weight.std() < 0.002
    conv = model.backbone.bottom_up.res5[1].conv2.weight
    fan_in = conv[0].numel()
    assert conv.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
    assert conv.abs().max() <= 2 * fan_in**-0.5 / 0.879
    lateral = model.backbone.fpn_lateral5.weight
    assert lateral.abs().max() <= (6 / (lateral.shape[0] + lateral.shape[1])) ** 0.5


def test_a_frozen_stem_stays_frozen():
    cfg = official_config()
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert not any(p.requires_grad for p in backbone.bottom_up.stem.parameters())
    assert all(p.requires_grad for p in backbone.bottom_up.res2.parameters())
