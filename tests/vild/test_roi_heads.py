import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ovd_d2 import scoring
from ovd_d2.modeling.image_branches import Regions
from ovd_d2.scoring import image_probabilities, text_probabilities, vild_ensemble
from ovd_d2.structures import cached_proposals_of
from ovd_d2.vild import VARIANTS
from tests.tiny import random_units, tiny_config, tiny_input, tiny_vocabulary


def make_model(variant="vild_text", vocabulary=None, norm=""):
    torch.manual_seed(0)
    model = build_model(tiny_config(variant, norm))
    model.set_vocabulary(vocabulary or tiny_vocabulary())
    return model


def training_losses(model, *inputs):
    with EventStorage():
        return model.train()(list(inputs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_by_variant(variant):
    losses = training_losses(make_model(variant), tiny_input(), tiny_input(seed=1))
    assert ("loss_distillation" in losses) == VARIANTS[variant].distils
    assert (losses["loss_cls"] > 0) == VARIANTS[variant].classifies
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("norm", ["", "BN", "SyncBN"])
@pytest.mark.parametrize(("objects", "cached"), [(0, 3), (2, 0), (0, 0)])
def test_no_objects_and_no_proposals_still_reach_every_parameter(variant, norm, objects, cached):
    model = make_model(variant, norm=norm)
    losses = training_losses(model, tiny_input(objects, cached), tiny_input(objects, cached))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    # A parameter without gradient would stall a distributed run.
    assert [
        name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == []


def test_distillation_needs_cached_proposals():
    with pytest.raises(ValueError, match="DISTILLATION.CACHE"):
        training_losses(make_model("vild"), tiny_input(cached=None))


def test_text_variant_ignores_cached_proposals():
    losses = [
        training_losses(make_model("vild_text"), tiny_input(cached=cached)) for cached in (None, 3)
    ]
    assert losses[0].keys() == losses[1].keys()


def test_shared_head_distils_into_the_text_trunk_and_a_separate_one_does_not():
    for variant, shared in (("vild", True), ("vild_ensemble", False)):
        model = make_model(variant)
        training_losses(model, tiny_input())["loss_distillation"].backward()
        gradient = model.roi_heads.box_predictor.projection.weight.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == shared
        if not shared:
            assert model.roi_heads.image_head.projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("variant", "text", "image"),
    [("vild_text", [32], []), ("vild", [32 + 6], []), ("vild_ensemble", [32], [6])],
)
def test_regions_that_pass_a_head_together(variant, text, image):
    """Batch norms of a shared head take their statistics over the regions of both branches."""
    heads = (model := make_model(variant, norm="BN")).roi_heads
    seen = {"text": [], "image": []}
    heads.box_head.register_forward_hook(lambda _, args, __: seen["text"].append(len(args[0])))
    if heads.image_head is not None:
        heads.image_head.register_forward_hook(
            lambda _, args, __: seen["image"].append(len(args[0]))
        )
    training_losses(model, tiny_input(), tiny_input(seed=1))
    assert seen == {"text": text, "image": image}


def test_without_norms_a_shared_heads_losses_do_not_depend_on_the_other_regions():
    losses = {}
    for variant in ("vild_text", "vild"):
        model = make_model(variant)
        torch.manual_seed(1)  # of the sampling
        losses[variant] = training_losses(model, tiny_input(), tiny_input(seed=1))
    for name, loss in losses["vild_text"].items():
        torch.testing.assert_close(losses["vild"][name], loss)


@pytest.mark.parametrize("variant", ["vild", "vild_ensemble"])
def test_masks_can_be_trained_on_predicted_boxes(variant):
    model = make_model(variant)
    heads, regions = model.roi_heads, []
    heads.train_on_pred_boxes = True
    forward_mask = heads._forward_mask
    heads._forward_mask = lambda features, proposals: (
        regions.extend(proposals) or forward_mask(features, proposals)
    )
    heads.box_predictor.bbox_pred.bias.data[0] = 1.0  # a tenth of a width to the right
    torch.nn.init.zeros_(heads.box_predictor.bbox_pred.weight)
    proposals = [proposals_at([[10.0, 10.0, 30.0, 30.0]])]
    record = tiny_input(objects=0)
    features = model.backbone(model.preprocess_image([record]).tensor)
    with EventStorage():
        heads.train()(None, features, proposals, [record["instances"]])
    assert regions[0].proposal_boxes.tensor.tolist() == [[12.0, 10.0, 32.0, 30.0]]


def proposals_at(boxes):
    proposals = Instances((64, 64))
    proposals.proposal_boxes = Boxes(torch.tensor(boxes))
    proposals.objectness_logits = torch.zeros(len(boxes))
    return proposals


def test_text_embeddings_stay_frozen_over_a_training_step():
    model = make_model("vild_ensemble")
    before = model.roi_heads.box_predictor.classifier.text_embeddings.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(training_losses(model, tiny_input()).values()).backward()
    optimizer.step()
    assert torch.equal(model.roi_heads.box_predictor.classifier.text_embeddings, before)


def score_parts(model):
    heads = model.roi_heads.eval()
    pooled = torch.randn(5, 16, 6, 6, generator=torch.Generator().manual_seed(1))
    region = heads.box_head(pooled)
    logits, _ = heads.box_predictor(region)
    return heads, pooled, region, logits


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_scores_by_variant(variant):
    model = make_model(variant)
    heads, pooled, region, logits = score_parts(model)
    classifier = heads.box_predictor.classifier
    embeddings = heads.image_head(pooled) if heads.image_head else heads.box_predictor.embed(region)
    text = text_probabilities(logits)
    image = image_probabilities(embeddings, classifier.text_embeddings, 0.025)
    expected = {
        "text": text,
        "image": image,
        "ensemble": vild_ensemble(text, image, classifier.novel, 2 / 3),
    }[VARIANTS[variant].scores]
    found = heads._scores(
        heads.box_predictor, classifier.words, logits, region, Regions({}, [], pooled)
    )
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_text_branch_of_an_ensemble_alone():
    heads = make_model("vild_ensemble").roi_heads.eval()
    proposals = [proposals_at([[4.0, 4.0, 36.0, 40.0], [0.0, 0.0, 9.0, 9.0]])]
    features = {f"p{k}": torch.rand(1, 16, 64 >> k, 64 >> k) for k in (2, 3)}
    probs, boxes = heads._classify_by_text(features, proposals, heads.classifier.words)
    logits, deltas = heads.box_predictor(heads.box_head(heads._pool(features, proposals)))
    torch.testing.assert_close(probs, text_probabilities(logits))
    (expected,) = heads.box_predictor.predict_boxes((logits, deltas), proposals)
    torch.testing.assert_close(boxes[0], expected)


@torch.no_grad()
def test_a_vocabulary_of_one_name_detects_and_segments():
    model = make_model("vild_ensemble", tiny_vocabulary(["dog"])).eval()
    found = model([tiny_input()])[0]["instances"]
    assert set(found.pred_classes.tolist()) <= {0}
    assert found.pred_masks.shape[1:] == (64, 64)


@torch.no_grad()
def test_a_thousand_names():
    names = [f"thing {k}" for k in range(1000)]
    model = make_model("vild_ensemble", tiny_vocabulary(names)).eval()
    assert len(model([tiny_input()])[0]["instances"]) <= 100


@torch.no_grad()
def test_state_dict_round_trip_with_a_swapped_vocabulary():
    first = make_model("vild_ensemble", tiny_vocabulary(["dog", "cow"], seed=4)).eval()
    second = build_model(tiny_config("vild_ensemble")).eval()  # no vocabulary yet
    second.load_state_dict(first.state_dict())
    assert second.roi_heads.num_classes == second.roi_heads.box_predictor.num_classes == 2
    one, other = (model([tiny_input()])[0]["instances"] for model in (first, second))
    torch.testing.assert_close(one.scores, other.scores)
    assert torch.equal(one.pred_classes, other.pred_classes)


@torch.no_grad()
def test_objectness_lowers_scores_where_it_is_mixed_in():
    plain = make_model("vild_image").eval()
    plain.roi_heads.box_predictor.test_score_thresh = 0.0
    mixed = make_model("vild_image").eval()
    mixed.roi_heads.box_predictor.test_score_thresh = 0.0
    mixed.roi_heads.objectness_weight = 0.5
    top = [model([tiny_input()])[0]["instances"].scores[0] for model in (plain, mixed)]
    # At random weights every objectness is about one half.
    assert top[1].item() == pytest.approx((top[0] * 0.5).sqrt().item(), rel=0.05)


def test_unknown_variant_is_refused():
    with pytest.raises(KeyError, match="vild_ensemble"):
        build_model(tiny_config("vild_text_and_more"))


@pytest.mark.parametrize("stored", [torch.float16, torch.int8])
def test_teacher_rows_may_come_as_stored_also_under_autocast(stored):
    model, losses = make_model("vild"), []
    for kind in (torch.float32, stored):
        records = [tiny_input(seed=seed) for seed in (0, 1)]
        for proposals in (cached_proposals_of(record["instances"]) for record in records):
            rows = proposals.teacher_embeddings
            proposals.teacher_embeddings = (100 * rows).to(kind)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(training_losses(model, *records)["loss_distillation"].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_student_matches_teacher_after_some_steps():
    model = make_model("vild_ensemble")
    optimizer = torch.optim.Adam(model.roi_heads.image_head.parameters(), lr=1e-2)
    record = tiny_input(cached=4)
    cached_proposals_of(record["instances"]).teacher_embeddings = random_units(4, seed=9)
    history = []
    for _ in range(15):
        loss = training_losses(model, record)["loss_distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("variant", ["vild", "vild_ensemble", "vild_image"])
def test_scores_do_not_depend_on_the_blocks_they_are_made_in(variant, monkeypatch):
    model = make_model(variant).eval()
    with torch.no_grad():
        whole = model([tiny_input(cached=None)])[0]["instances"]
        monkeypatch.setattr(scoring, "BLOCK", 3 * 4)  # three regions of four names
        blocks = model([tiny_input(cached=None)])[0]["instances"]
    assert len(whole) > 3
    torch.testing.assert_close(blocks.scores, whole.scores)
    torch.testing.assert_close(blocks.pred_boxes.tensor, whole.pred_boxes.tensor)


@pytest.mark.parametrize("images", [1, 2])
def test_a_box_under_several_names_passes_the_mask_head_once(images, monkeypatch):
    heads = make_model("vild_text").eval().roi_heads
    features = {f: torch.rand(images, 16, 16, 16) for f in heads.mask_in_features}
    found = [_detections(places) for places in ([2, 0, 2, 1, 0], [1, 1])[:images]]
    seen = []
    layers = heads.mask_head.layers
    monkeypatch.setattr(heads.mask_head, "layers", lambda x: seen.append(len(x)) or layers(x))
    with torch.no_grad():
        once = [one.pred_masks for one in heads.forward_with_given_boxes(features, found)]
        each = [one.pred_masks for one in StandardROIHeads._forward_mask(heads, features, found)]
    assert seen == {1: [3, 5], 2: [4, 7]}[images]
    for mask, other in zip(once, each, strict=True):
        torch.testing.assert_close(mask, other)


def test_masks_by_category_are_those_of_each_detection():
    heads = make_model("vild_text").eval().roi_heads
    heads.mask_head.predictor = torch.nn.Conv2d(heads.mask_head.predictor.in_channels, 4, 1)
    features = {f: torch.rand(1, 16, 16, 16) for f in heads.mask_in_features}
    with torch.no_grad():
        (found,) = heads.forward_with_given_boxes(features, [_detections([0, 0, 0])])
    assert not torch.equal(found.pred_masks[0], found.pred_masks[1])


def _detections(places):
    boxes = torch.tensor([[4.0, 4, 30, 40], [8, 2, 50, 60], [4, 4, 30, 40.5]])[places]
    classes = torch.arange(len(places)) % 4
    return Instances((64, 64), pred_boxes=Boxes(boxes), pred_classes=classes)
