import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ovd_d2.losses import distillation_l1
from ovd_d2.scoring import mix_objectness, text_probabilities
from ovd_d2.structures import cached_proposals_of
from ovd_d2.vild import VARIANTS
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary

STAGES = 3


def cascade_config(variant, norm=""):
    cfg = tiny_config(variant, norm)
    cfg.MODEL.ROI_HEADS.NAME = "ViLDCascadeROIHeads"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return cfg


def make_model(variant="vild_text", vocabulary=None, norm=""):
    torch.manual_seed(0)
    model = build_model(cascade_config(variant, norm))
    model.set_vocabulary(vocabulary or tiny_vocabulary())
    return model


def training_losses(model, *inputs):
    with EventStorage():
        return model.train()(list(inputs))


def test_it_is_detectron2s_cascade_with_our_classifier_in_every_stage():
    heads = make_model().roi_heads
    assert isinstance(heads, CascadeROIHeads)
    assert len(heads.predictors) == heads.num_cascade_stages == STAGES
    transforms = [p.box2box_transform.weights for p in heads.predictors]
    assert [weights[0] for weights in transforms] == [10.0, 20.0, 30.0]
    assert len({id(p.classifier.background) for p in heads.predictors}) == STAGES


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_by_variant(variant):
    losses = training_losses(make_model(variant), tiny_input(), tiny_input(seed=1))
    named = {name for name in losses if "distillation" in name}
    expected = {
        "vild_text": set(),
        "vild_image": {f"loss_distillation_stage{k}" for k in range(STAGES)},
        "vild": {f"loss_distillation_stage{k}" for k in range(STAGES)},
        "vild_ensemble": {"loss_distillation"},
    }
    assert named == expected[variant]
    for k in range(STAGES):
        assert (losses[f"loss_cls_stage{k}"] > 0) == VARIANTS[variant].classifies
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", ["", "BN", "SyncBN"])
@pytest.mark.parametrize(("objects", "cached"), [(2, 3), (0, 3), (2, 0), (0, 0)])
def test_every_parameter_gets_a_gradient_in_every_step(variant, norm, objects, cached):
    model = make_model(variant, norm=norm)
    losses = training_losses(model, tiny_input(objects, cached), tiny_input(objects, cached))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []


def test_text_embeddings_stay_frozen_over_a_training_step():
    model = make_model("vild")
    before = tiny_vocabulary().embeddings
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(training_losses(model, tiny_input()).values()).backward()
    optimizer.step()
    for predictor in model.roi_heads.predictors:
        assert torch.equal(predictor.classifier.text_embeddings, before)


def test_features_see_the_mean_of_the_stages_distillation_gradients():
    heads = make_model("vild").roi_heads.train()
    features = {name: map.requires_grad_() for name, map in random_features().items()}
    record = tiny_input()
    cached = cached_proposals_of(record["instances"])
    with EventStorage():
        proposals = [proposals_of([[4.0] * 4], [0.0])]
        _, losses = heads(None, features, proposals, [record["instances"]])
    for k, predictor in enumerate(heads.predictors):
        student = predictor.embed(heads.box_head[k](heads._pool(features, [cached])))
        plain = distillation_l1(student, cached.teacher_embeddings, heads.distillation_weight)
        expected = torch.autograd.grad(plain, features["p2"])[0] / STAGES
        loss = losses[f"loss_distillation_stage{k}"]
        torch.testing.assert_close(loss, plain)
        (gradient,) = torch.autograd.grad(loss, features["p2"], retain_graph=True)
        torch.testing.assert_close(gradient, expected)


def test_a_shared_head_learns_to_classify_as_detectron2s_cascade_does():
    """Without norms the cached proposals change nothing for the sampled ones."""
    heads = make_model("vild").roi_heads.train()
    record, features = tiny_input(), random_features()
    proposals, targets = [proposals_of([[4.0, 4.0, 36.0, 40.0]], [0.0])], [record["instances"]]
    torch.manual_seed(0)
    with EventStorage():
        _, losses = heads(None, features, proposals, targets)
    torch.manual_seed(0)
    with EventStorage():
        _, expected = CascadeROIHeads.forward(heads, None, features, proposals, targets)
    assert set(losses) == {*expected, *(f"loss_distillation_stage{k}" for k in range(STAGES))}
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def proposals_of(boxes, objectness):
    proposals = Instances((64, 64))
    proposals.proposal_boxes = Boxes(torch.tensor(boxes))
    proposals.objectness_logits = torch.tensor(objectness)
    return proposals


def random_features():
    return {
        f"p{k}": torch.randn(1, 16, 64 >> k, 64 >> k, generator=torch.Generator().manual_seed(k))
        for k in (2, 3, 4, 5)
    }


def detect(heads, proposals):
    features = random_features()
    return features, heads._forward_box(features, [proposals])[0]


@torch.no_grad()
def test_scores_are_averaged_over_the_stages_each_on_its_own_regions():
    heads = make_model("vild_text").roi_heads.eval()
    proposals = proposals_of([[4.0, 4.0, 36.0, 40.0]], [0.0])
    features, found = detect(heads, proposals)
    regions, expected = proposals, []
    for k, predictor in enumerate(heads.predictors):
        logits, deltas = predictor(heads.box_head[k](heads._pool(features, [regions])))
        expected.append(text_probabilities(logits)[0])
        (box,) = predictor.box2box_transform.apply_deltas(deltas, regions.proposal_boxes.tensor)
        regions = Instances((64, 64))
        regions.proposal_boxes = Boxes(box[None])
        regions.proposal_boxes.clip((64, 64))
    scores = torch.stack(expected).mean(dim=0)
    torch.testing.assert_close(found.scores, scores.sort(descending=True).values)
    torch.testing.assert_close(found.pred_boxes.tensor[:1], regions.proposal_boxes.tensor)
    text, boxes = heads._classify_by_text(features, [proposals], heads.classifier.words)
    torch.testing.assert_close(text[0], torch.stack(expected).mean(dim=0))
    torch.testing.assert_close(boxes[0][0], box)


@torch.no_grad()
def test_objectness_of_the_first_regions_is_mixed_into_the_mean():
    heads = make_model("vild_image").roi_heads.eval()
    proposals = proposals_of([[4.0, 4.0, 36.0, 40.0]], [-1.0])
    plain = detect(heads, proposals)[1].scores
    heads.objectness_weight = 0.5
    mixed = detect(heads, proposals)[1].scores
    objectness = torch.tensor([-1.0]).sigmoid()
    torch.testing.assert_close(mixed, mix_objectness(plain[None], objectness, 0.5)[0])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_proposals_no_detections(variant):
    heads = make_model(variant).roi_heads.eval()
    none = proposals_of([], [])
    none.proposal_boxes = Boxes(torch.zeros(0, 4))
    assert len(detect(heads, none)[1]) == 0


@torch.no_grad()
@pytest.mark.parametrize("names", [["dog"], [f"thing {k}" for k in range(500)]])
def test_another_vocabulary_reaches_every_stage(names):
    model = make_model("vild_ensemble").eval()
    vocabulary = tiny_vocabulary(names)
    model.set_vocabulary(vocabulary)
    heads = model.roi_heads
    for predictor in heads.predictors:
        assert torch.equal(predictor.classifier.text_embeddings, vocabulary.embeddings)
        assert predictor.num_classes == heads.num_classes == len(names)
    found = model([tiny_input()])[0]["instances"]
    assert len(found) > 0
    assert found.pred_classes.max() < len(names)
    assert found.pred_masks.shape[1:] == (64, 64)


@torch.no_grad()
def test_state_dict_round_trip_with_a_swapped_vocabulary():
    first = make_model("vild_ensemble", tiny_vocabulary(["cat", "cow"], seed=4)).eval()
    second = build_model(cascade_config("vild_ensemble")).eval()  # no vocabulary yet
    second.load_state_dict(first.state_dict())
    heads = second.roi_heads
    assert {heads.num_classes, *(p.num_classes for p in heads.predictors)} == {2}
    one, other = (model([tiny_input()])[0]["instances"] for model in (first, second))
    torch.testing.assert_close(one.scores, other.scores)
    assert torch.equal(one.pred_classes, other.pred_classes)
    losses = training_losses(second, tiny_input(objects=1))
    assert all(torch.isfinite(loss) for loss in losses.values())
