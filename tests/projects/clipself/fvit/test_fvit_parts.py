"""F-ViT's parts together and with those of others: frozen, trainable, safe."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from ovd_d2.engine.optimization import build_optimizer
from ovd_d2.errors import SetupError
from ovd_d2.modeling.pooler import LevelPooler
from ovd_d2.projects.clipself.fvit.matcher import BestOfObjectMatcher
from ovd_d2.projects.clipself.fvit.predictor import (
    NonNegativeProjection,
    ScaledClassifier,
    weighted_cross_entropy,
)
from ovd_d2.projects.clipself.fvit.roi_heads import DenseBranch
from ovd_d2.vild import VARIANTS
from tests.tiny import tiny_config, tiny_input
from tests.tiny_fvit import build_tiny_fvit, tiny_fvit_config, wide_vocabulary


def step(model, *inputs):
    with EventStorage():
        losses = model.train()(list(inputs))
    total = sum(losses.values())
    total.backward()
    return losses


def without_gradient(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_frozen_stays_frozen(tmp_path):
    cfg = tiny_fvit_config(tmp_path)
    model = build_tiny_fvit(cfg)
    vit = model.backbone.vit
    before = {name: one.clone() for name, one in vit.state_dict().items()}
    optimizer = build_optimizer(cfg, model)
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not taken & {id(p) for p in vit.parameters()}
    step(model, tiny_input(cached=None), tiny_input(cached=None, seed=1))
    optimizer.step()
    assert not any(module.training for module in vit.modules())
    assert not any(p.requires_grad or p.grad is not None for p in vit.parameters())
    assert all(torch.equal(before[name], one) for name, one in vit.state_dict().items())
    found = vit.run(torch.rand(1, 3, 32, 32, requires_grad=True), taps=(0, 2))
    assert not any(one.requires_grad for one in (found.dense, *found.taps.values()))
    assert model.backbone.pyramid.up4[0].weight.grad.abs().sum() > 0


def test_dropout_in_the_ViT_never_drops(tmp_path):
    model = build_tiny_fvit(tiny_fvit_config(tmp_path))
    model.backbone.vit.visual.trunk.blocks[0].mlp.drop1.p = 0.5
    images = torch.rand(1, 3, 32, 32)
    model.train()
    dense = [model.backbone.vit(images) for _ in range(2)]
    assert torch.equal(*dense)


@pytest.mark.parametrize("norm", ["", "SyncBN"])
@pytest.mark.parametrize("objects", [(0, 0), (2, 0)])
def test_batches_with_images_without_objects(tmp_path, norm, objects):
    model = build_tiny_fvit(tiny_fvit_config(tmp_path, norm=norm, masks=True))
    losses = step(model, *(tiny_input(count, None, seed=count) for count in objects))
    assert all(torch.isfinite(one) for one in losses.values())
    assert without_gradient(model) == []


def test_no_proposals(tmp_path):
    model = build_tiny_fvit(tiny_fvit_config(tmp_path)).eval()
    features = model.backbone(torch.rand(1, 3, 64, 64))
    none = Instances((64, 64), proposal_boxes=Boxes(torch.zeros(0, 4)))
    with torch.no_grad():
        (found,), _ = model.roi_heads(None, features, [none], None)
    assert len(found) == 0


def test_a_region_of_zeros_is_like_nothing_and_harms_nothing():
    projection = NonNegativeProjection(ShapeSpec(channels=4), 3)
    torch.nn.init.constant_(projection.bias, -1.0)
    x = torch.zeros(2, 4, requires_grad=True)
    embedded = projection(x)
    assert torch.equal(embedded, torch.zeros(2, 3))
    classifier = ScaledClassifier(
        scale=50, embedding_dim=3, num_classes=4, background="text", vocabulary=wide_vocabulary(3)
    )
    logits = classifier(embedded)
    weighted_cross_entropy(logits, torch.tensor([0, 4]), 0.6).backward()
    assert torch.equal(logits, torch.zeros(2, 5))
    grads = [x.grad, projection.weight.grad, projection.bias.grad, classifier.scale.grad]
    assert all(torch.isfinite(one).all() for one in grads)


def test_the_scale_is_learned_and_another_at_test_time():
    options = {"embedding_dim": 8, "num_classes": 4, "background": "text"}
    classifier = ScaledClassifier(scale=50, test_scale=40, vocabulary=wide_vocabulary(8), **options)
    embeddings = F.normalize(torch.rand(6, 8), dim=1)
    classifier(embeddings).sum().backward()
    assert torch.allclose(
        classifier.scale.grad, (classifier(embeddings) / 50).sum().detach(), rtol=1e-5
    )
    with torch.no_grad():
        trained, tested = classifier(embeddings), classifier.eval()(embeddings)
    assert torch.allclose(tested, trained * 40 / 50)
    classifier.test_scale = None
    assert torch.equal(classifier(embeddings), trained)


def test_weighted_cross_entropy_by_hand():
    logits = torch.tensor([[1.0, float("-inf"), 0.0], [0.0, float("-inf"), 2.0]])
    object_loss = torch.log1p(torch.tensor(-1.0).exp())
    background_loss = torch.log1p(torch.tensor(-2.0).exp())
    loss = weighted_cross_entropy(logits, torch.tensor([0, 2]), 0.6)
    assert torch.allclose(loss, (object_loss + 0.6 * background_loss) / 2)


def test_matching_by_hand():
    quality = torch.tensor([[0.8, 0.35, 0.1, 0.6], [0.0, 0.4, 0.2, 0.65], [0.0, 0.0, 0.25, 0.1]])
    matcher = BestOfObjectMatcher([0.3, 0.7], [0, -1, 1], least_iou=0.3)
    matches, labels = matcher(quality)
    assert labels.tolist() == [1, -1, 0, 1]  # the third object's best is too bad
    assert matches[0] == 0 and matches[3] == 1
    # a box that lies better on another object, yet is the best of its own
    contested = torch.tensor([[0.9, 0.55], [0.6, 0.1]])
    matches, _ = BestOfObjectMatcher([0.5], [0, 1], least_iou=0.5)(contested)
    assert matches.tolist() == [1, 0]
    appended = torch.cat([contested, torch.eye(2)], dim=1)
    matcher = BestOfObjectMatcher([0.5], [0, 1], least_iou=0.5, objects_appended=True)
    assert matcher(appended)[0].tolist() == [1, 0, 0, 1]
    assert matcher(torch.zeros(0, 5))[1].tolist() == [0] * 5


def test_pooling_at_fractional_strides_is_that_of_a_finer_map():
    """A map of stride 3.5 is one of stride 7 of an image twice as large."""
    maps = [torch.rand(1, 2, 16 >> k, 16 >> k) for k in range(4)]
    boxes = torch.tensor([[3.0, 4.0, 30.0, 25.0], [0.0, 0.0, 56.0, 50.0]])
    fine, coarse = LevelPooler(3, [3.5, 7, 14, 28]), LevelPooler(3, [7, 14, 28, 56])
    assert fine.levels(boxes).tolist() == coarse.levels(2 * boxes).tolist() == [0, 0]
    assert torch.allclose(fine(maps, [Boxes(boxes)]), coarse(maps, [Boxes(2 * boxes)]), atol=1e-6)
    assert fine(maps, [Boxes(torch.zeros(0, 4))]).shape == (0, 2, 3, 3)
    sides = torch.tensor([55.0, 111.9, 112.0, 224.0, 448.0, 900.0])
    squares = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert fine.levels(squares).tolist() == [0, 0, 1, 2, 3, 3]


def test_scores_are_the_mixture_of_both_branches(tmp_path):
    model = build_tiny_fvit(tiny_fvit_config(tmp_path)).eval()
    heads = model.roi_heads
    boxes = torch.tensor([[4.0, 6.0, 40.0, 30.0], [20.0, 8.0, 60.0, 60.0]])
    proposals = [Instances((64, 64), proposal_boxes=Boxes(boxes))]
    features = model.backbone(torch.rand(1, 3, 64, 64))
    with torch.no_grad():
        probs, _ = heads._classify_proposals(
            heads.image_head, features, proposals, heads.classifier.words
        )
        vocabulary = wide_vocabulary()
        words = torch.cat([vocabulary.embeddings, vocabulary.background[None]])
        pooled = heads._pool(features, proposals)
        vector = torch.relu(
            F.linear(
                heads.box_head(pooled),
                heads.box_predictor.projection.weight,
                heads.box_predictor.projection.bias,
            )
        )
        det = (50 * F.normalize(vector, dim=1) @ words.T).softmax(1)[:, :4]
        regions = heads.image_head.embed(
            type("Regions", (), {"features": features, "proposals": proposals})
        )
        vlm = (75 * regions @ words.T).softmax(1)[:, :4]
    alpha, beta = 0.1, 0.8
    expected = det ** (1 - alpha) * vlm**alpha
    novel = vocabulary.novel
    expected[:, novel] = det[:, novel] ** (1 - beta) * vlm[:, novel] ** beta
    assert torch.allclose(probs, expected, atol=1e-6)


def test_the_vit_comes_from_the_file_and_not_where_a_checkpoint_brings_it(tmp_path):
    cfg = tiny_fvit_config(tmp_path)
    trained = build_tiny_fvit(cfg)
    stored = torch.load(cfg.MODEL.OVD.TEACHER.PRETRAINED, weights_only=True)
    name = "visual.trunk.blocks.0.attn.q_proj.weight"
    assert torch.equal(trained.backbone.vit.state_dict()[name], stored[name])
    refined = {key: one + 1 for key, one in stored.items()}
    torch.save({"state_dict": refined}, tmp_path / "refined.pt")
    cfg.MODEL.FVIT.VIT_WEIGHTS = str(tmp_path / "refined.pt")
    assert torch.equal(build_tiny_fvit(cfg).backbone.vit.state_dict()[name], refined[name])
    cfg.MODEL.WEIGHTS, cfg.MODEL.OVD.TEACHER.PRETRAINED = "model.pth", "is-not-read"
    untrained = build_tiny_fvit(cfg)
    assert not torch.equal(untrained.backbone.vit.state_dict()[name], stored[name])
    untrained.load_state_dict(trained.state_dict())
    assert torch.equal(untrained.backbone.vit.state_dict()[name], stored[name])
    partial = {k: v for k, v in trained.state_dict().items() if not k.endswith(name)}
    with pytest.raises(ValueError, match=r"1 weights of the frozen ViT are missing.*q_proj"):
        untrained.load_state_dict(partial, strict=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_vild_heads_on_the_fvit_backbone(tmp_path, variant):
    """With distillation from the cache: ViLD's own, whatever the backbone."""
    cfg = tiny_fvit_config(tmp_path)
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.VILD.VARIANT = "ViLDROIHeads", variant
    model = build_tiny_fvit(cfg)
    record = tiny_input()
    proposals = record["instances"].cached_proposals.value
    proposals.teacher_embeddings = F.normalize(torch.rand(len(proposals), 12), dim=1)
    losses = step(model, record)
    assert ("loss_distillation" in losses) == VARIANTS[variant].distils
    assert all(torch.isfinite(one) for one in losses.values())
    assert "instances" in model.eval()([tiny_input()])[0]


def test_vild_heads_at_fractional_strides(tmp_path, monkeypatch):
    cfg = tiny_fvit_config(tmp_path, masks=True)
    cfg.MODEL.ROI_HEADS.NAME = "ViLDROIHeads"
    model = build_tiny_fvit(cfg)
    shapes = model.backbone.output_shape()
    for shape in shapes.values():
        shape.stride = shape.stride * 7 / 8
    from detectron2.modeling.roi_heads import build_roi_heads

    heads = build_roi_heads(cfg, shapes)
    assert heads.box_pooler.strides == (1.75, 3.5, 7.0, 14.0)
    assert heads.mask_pooler.strides == (1.75, 3.5, 7.0, 14.0)


def test_fvit_heads_on_a_resnet():
    cfg = tiny_config()
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.OVD.BACKGROUND = "FViTROIHeads", "text"
    with pytest.raises(SetupError, match="MODEL.FVIT.ENSEMBLE needs a dense map"):
        build_tiny_fvit(cfg)
    cfg.MODEL.FVIT.ENSEMBLE = False
    model = build_tiny_fvit(cfg)
    losses = step(model, tiny_input(cached=None))
    assert all(torch.isfinite(one) for one in losses.values())
    assert model.roi_heads.classifier.scale.grad.abs() > 0
    assert "instances" in model.eval()([tiny_input(cached=None)])[0]


def test_dense_branch_in_other_heads(tmp_path):
    cfg = tiny_fvit_config(tmp_path)
    cfg.MODEL.ROI_HEADS.NAME = "ViLDROIHeads"
    model = build_tiny_fvit(cfg).eval()
    text = model([tiny_input()])[0]["instances"].scores
    model.roi_heads.set_image_branch(DenseBranch(stride=8, scale=75.0), scores="ensemble")
    assert not torch.equal(model([tiny_input()])[0]["instances"].scores[:5], text[:5])


def test_detections_do_not_depend_on_the_batch(tmp_path):
    cfg = tiny_fvit_config(tmp_path, masks=True)
    cfg.MODEL.FVIT.SQUARE_PAD = 96
    model = build_tiny_fvit(cfg).eval()
    inputs = [{"image": tiny_input(size=64)["image"]}, {"image": torch.rand(3, 96, 50) * 255}]
    alone = [model([one])[0]["instances"] for one in inputs]
    together = [one["instances"] for one in model(inputs)]
    for one, other in zip(alone, together, strict=True):
        assert len(one) > 0
        assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(one.scores, other.scores)


def test_losses_of_the_rpn_are_over_the_sampled_anchors(tmp_path):
    cfg = tiny_fvit_config(tmp_path)
    model = build_tiny_fvit(cfg)
    losses = []
    for wanted in (10**5, 10**6):  # more than there are anchors
        model.proposal_generator.batch_size_per_image = wanted
        model.proposal_generator.positive_fraction = 0.5
        losses.append(step(model, tiny_input(cached=None))["loss_rpn_cls"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert 0.5 < losses[0] < 1.0  # about log 2 per anchor
