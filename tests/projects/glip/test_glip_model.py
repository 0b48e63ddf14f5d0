"""GLIP trains on whatever a loader brings, and detects what words name."""

import pytest
import torch
from torch import nn

from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.projects.glip.anchors import grid_anchors
from ovd_d2.projects.glip.head import GLIPHead, HeadOutputs, TowerSizes
from ovd_d2.projects.glip.losses import LossSettings, glip_losses
from ovd_d2.projects.glip.model import GLIP
from ovd_d2.projects.glip.prompts.detection import Phrase
from ovd_d2.vocabulary import Categories, Vocabulary
from tests.tiny_glip import image, tiny_glip, training_image

NAMES = ["red anchor", "blue cup", "dog"]


def vocabulary(names):
    embeddings = nn.functional.normalize(torch.ones(len(names), 4), dim=1)
    return Vocabulary(names, embeddings, torch.zeros(len(names), dtype=torch.bool))


def gradients(model, batch):
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, {name: one.grad for name, one in model.named_parameters()}


@pytest.mark.parametrize("fused", [True, False])
def test_every_parameter_learns(fused):
    model = tiny_glip(fused=fused).train()
    batch = [training_image(0, boxes=2), training_image(1, tokens=9, height=96, width=64)]
    losses, grads = gradients(model, batch)
    assert set(losses) == {"loss_tokens", "loss_box", "loss_centerness"}
    assert all(one.isfinite() and one > 0 for one in losses.values())
    assert [name for name, one in grads.items() if one is None] == []


@pytest.mark.parametrize("boxes", [(0, 2), (0, 0)], ids=["one image", "the whole batch"])
def test_images_without_boxes_train(boxes):
    model = tiny_glip().train()
    batch = [training_image(k, boxes=count) for k, count in enumerate(boxes)]
    losses, grads = gradients(model, batch)
    assert all(one.isfinite() for one in losses.values())
    assert losses["loss_tokens"] > 0
    assert (losses["loss_box"] == 0) == (losses["loss_centerness"] == 0) == (boxes == (0, 0))
    # all ranks of DistributedDataParallel wait for every gradient
    assert all(one is not None and one.isfinite().all() for one in grads.values())


def test_a_caption_of_256_tokens_is_one_as_any_other():
    losses, grads = gradients(tiny_glip().train(), [training_image(0, tokens=256)])
    assert all(one.isfinite() for one in losses.values())
    assert all(one.isfinite().all() for one in grads.values())
    # the public code takes the last token of a full caption for a mark of the background
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    counts = [height * width for height, width in sizes]
    nothing = HeadOutputs(
        logits=[torch.full((1, count, 256), -20.0) for count in counts],
        deltas=[torch.zeros(1, count, 4) for count in counts],
        centerness=[torch.zeros(1, count) for count in counts],
        sizes=sizes,
    )
    no_boxes, no_tokens = [torch.zeros(0, 4)], [torch.zeros(0, 256) > 0]
    found = glip_losses(nothing, grid_anchors(sizes), no_boxes, no_tokens, torch.ones(1, 256) > 0)
    assert found["loss_tokens"] < 1e-6


def test_the_loss_of_boxes_has_the_weight_it_is_given():
    model = tiny_glip().train()
    images = [training_image(2)]
    plain = model.losses(images)
    model.loss_settings = LossSettings(box_weight=6.0)
    weighted = model.losses(images)
    assert weighted["loss_box"].item() == pytest.approx(3 * plain["loss_box"].item(), rel=1e-6)
    assert weighted["loss_tokens"] == plain["loss_tokens"]


def test_losses_of_a_batch_do_not_depend_on_the_padding_of_captions():
    model = tiny_glip().train()
    short = model([training_image(0, tokens=5)])
    pair = [training_image(0, tokens=5), training_image(0, tokens=5)]
    pair[1]["tokens"] = torch.cat([pair[1]["tokens"], torch.tensor([7, 8, 3])])
    model.eval()
    alone = model.losses([pair[0]])
    for name, one in short.items():
        assert one.item() == pytest.approx(alone[name].item(), rel=1e-5)
    both, other = model.losses(pair), model.losses([pair[1]])
    mean = (alone["loss_tokens"] + other["loss_tokens"]) / 2  # as many positives in each
    assert both["loss_tokens"].item() == pytest.approx(mean.item(), rel=1e-5)


def test_gradient_checkpointing_changes_nothing():
    batch = [training_image(0), training_image(1)]
    _, plain = gradients(tiny_glip().train(), batch)
    _, saved = gradients(tiny_glip(checkpointing=True).train(), batch)
    for name, one in plain.items():
        torch.testing.assert_close(saved[name], one, rtol=1e-4, atol=1e-6)


def test_half_precision_is_near():
    batch = [training_image(0), training_image(1)]
    exact = tiny_glip().train()(batch)
    model = tiny_glip().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    for name, one in losses.items():
        assert one.dtype == torch.float32
        assert one.item() == pytest.approx(exact[name].item(), rel=0.05)
    assert all(one.grad.isfinite().all() for one in model.parameters())


def test_random_layers_are_in_training_only():
    torch.manual_seed(0)
    model, batch = tiny_glip(still=False), [training_image(0)]
    first, second = (model.train()(batch)["loss_tokens"] for _ in range(2))
    assert first != second
    first, second = (model.eval().losses(batch)["loss_tokens"] for _ in range(2))
    assert first == second


@torch.no_grad()
def test_it_detects_what_the_vocabulary_names():
    model = tiny_glip(vocabulary=vocabulary(NAMES)).eval()
    (found,) = model([image(0)])
    instances = found["instances"]
    assert instances.image_size == (64, 96) and 0 < len(instances) <= 20
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2}
    assert (instances.scores.diff() <= 0).all()
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, ::2] <= 96).all() and (boxes[:, 1::2] <= 64).all()
    assert open_vocabulary_part(model) is model


@torch.no_grad()
def test_a_vocabulary_of_one_call_is_not_kept():
    model = tiny_glip(vocabulary=vocabulary(NAMES)).eval()
    before = model([image(0)])[0]["instances"]
    (one,) = model([image(0)], vocabulary=vocabulary(["dog"]))
    assert set(one["instances"].pred_classes.tolist()) == {0}
    after = model([image(0)])[0]["instances"]
    assert torch.equal(before.scores, after.scores) and model.vocabulary.names == NAMES


@torch.no_grad()
def test_an_image_may_bring_its_own_question():
    model = tiny_glip(vocabulary=vocabulary(NAMES)).eval()
    (question,) = model.questions_of(vocabulary(["blue cup"]))
    asked = {**image(0), "tokens": question.ids, "positive_map": question.positives}
    (own,), (named,) = model([asked]), model([image(0)], vocabulary=vocabulary(["blue cup"]))
    assert torch.equal(own["instances"].scores, named["instances"].scores)


@torch.no_grad()
def test_detections_do_not_depend_on_the_batch():
    model = tiny_glip(vocabulary=vocabulary(NAMES)).eval()
    batch = [image(0), image(1, 96, 128)]
    for one, alone in zip(model(batch), [model([single])[0] for single in batch], strict=True):
        assert torch.equal(one["instances"].scores, alone["instances"].scores)


@torch.no_grad()
def test_boxes_are_of_the_original_image():
    model = tiny_glip(vocabulary=vocabulary(NAMES)).eval()
    (small,) = model([image(0)])
    (large,) = model([{**image(0), "height": 128, "width": 192}])
    small, large = small["instances"].pred_boxes.tensor, large["instances"].pred_boxes.tensor
    inside = (small[:, 2] < 96) & (small[:, 3] < 64)
    end = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close((large - end)[inside], 2 * (small - end)[inside])


def test_what_cannot_be_asked():
    model = tiny_glip()
    with pytest.raises(RuntimeError, match="GLIP is asked for nothing: set MODEL.OVD.VOCABULARY"):
        model.eval()([image(0)])
    with pytest.raises(ValueError, match="give no vocabulary"):
        model.train()([training_image(0)], vocabulary=vocabulary(NAMES))
    model._tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer for the names: set MODEL.GLIP.TOKENIZER"):
        model.set_vocabulary(vocabulary(NAMES))
    with pytest.raises(ValueError, match="257 tokens, but MODEL.GLIP.BERT has 256 positions"):
        model.text_encoder(torch.zeros(1, 257, dtype=torch.int64), torch.ones(1, 257) > 0)
    parts = {name: getattr(model, name) for name in ("text_encoder", "head", "selection")}
    with pytest.raises(SetupError, match="IN_FEATURES names p2, p9; the backbone has p3, p4, p5"):
        GLIP(
            backbone=model.backbone,
            **parts,
            **dict.fromkeys(("pixel_mean", "pixel_std"), (0, 0, 0)),
            in_features=("p2", "p3", "p9"),
        )
    with pytest.raises(ValueError, match="'near' is none of resized, flat"):
        GLIPHead(TowerSizes(channels=16, blocks=1, fused=False, across_levels="near"))
    with pytest.raises(ValueError, match="FUSION_DIM 30 is no multiple of 8 heads"):
        GLIPHead(TowerSizes(channels=16, blocks=1, fusion_width=30))


def test_names_travel_with_the_weights():
    names = Vocabulary.of_names(Categories(["red anchor", "dog"], [False, True]))
    source, model = tiny_glip(vocabulary=names).eval(), tiny_glip(seed=1).eval()
    model.load_state_dict(source.state_dict())
    assert model.vocabulary.names == names.names and model.vocabulary.novel.tolist() == [0, 1]
    found, expected = (one([image(0)])[0]["instances"] for one in (model, source))
    assert torch.equal(found.scores, expected.scores) and set(found.pred_classes.tolist()) == {0, 1}
    own = tiny_glip(vocabulary=Vocabulary.of_names(Categories(["cup"], [False])))
    own.load_state_dict(source.state_dict())  # what was asked for stays
    assert own.vocabulary.names == ["cup"]
    model.forget_loaded_vocabulary()
    own.forget_loaded_vocabulary()
    assert model.vocabulary is None and own.vocabulary is not None
    assert "vocabulary" not in model.state_dict()


def test_a_phrase_in_place_of_a_name():
    names = Vocabulary.of_names(Categories(["dog", "anchor"], [False, False]))
    model = tiny_glip(vocabulary=names).eval()
    plain = model([image(0)])[0]["instances"]
    model.set_phrases({"dog": Phrase("cup", "red ", " bow")})
    (question,) = model.questions_of(names)
    assert question.ids.tolist() == [2, 5, 8, 10, 4, 7, 3]  # [CLS] red cup bow . anchor [SEP]
    assert question.positives.argmax(dim=1).tolist() == [2, 5]
    assert not torch.equal(model([image(0)])[0]["instances"].scores, plain.scores)
    model.names_per_caption = 1
    assert [len(one.labels) for one in model.questions_of(names)] == [1, 1]
