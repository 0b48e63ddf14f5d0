"""Tuning changes what it names and leaves everything else as it was, to the last bit."""

import pytest
import torch
from torch import nn

from ovd_d2.engine.validation import validation_losses
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.official_weights import convert_weights
from ovd_d2.projects.glip.prompts import token_batch
from ovd_d2.vocabulary import Vocabulary
from tests.tiny_glip import image, tiny_glip, training_image

LINEAR = {
    "head.log_scale",
    "head.text_bias",
    "head.bias",
    *(
        f"head.{layer}.{part}"
        for layer in ("bbox_pred", "centerness", "text_projection")
        for part in ("weight", "bias")
    ),
}


def tuned(mode, steps=1, still=True):
    """A model after steps with weight decay, and its state dict before them."""
    model = tiny_glip(tuning=mode, still=still).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.25)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model([training_image(0), training_image(1, tokens=9)]).values()).backward()
        optimizer.step()
    return model, before


@pytest.mark.parametrize(("mode", "names"), [("linear", LINEAR), ("prompt", {"prompt_offset"})])
def test_everything_else_stays(mode, names):
    model, before = tuned(mode)
    after = model.state_dict()
    assert {name for name, one in before.items() if not torch.equal(one, after[name])} == names


def test_full_tuning_changes_every_parameter():
    model, before = tuned("full")
    assert all(not torch.equal(one, before[name]) for name, one in model.named_parameters())


@pytest.mark.parametrize("mode", ["linear", "prompt"])
def test_random_layers_of_what_is_frozen(mode):
    model = tiny_glip(tuning=mode, still=False).train()
    assert model.training and not model.backbone.training and not model.text_encoder.training
    # linear probing keeps the tower's dropout, as the public code
    assert model.head.tower[0].fusion.training == (mode == "linear")
    torch.manual_seed(0)
    first, second = (model([training_image(0)])["loss_tokens"] for _ in range(2))
    assert (first == second) == (mode == "prompt")
    assert not any(one.training for one in model.eval().modules())


def test_the_offset_begins_with_the_pretrained_model():
    model, plain = tiny_glip(tuning="prompt"), tiny_glip()
    assert model.prompt_offset.shape == (256, 24) and not model.prompt_offset.any()
    for name, one in plain.train()([training_image(0)]).items():
        assert model.train()([training_image(0)])[name] == one


def test_the_offset_is_of_places_in_the_caption():
    model, _ = tuned("prompt")
    longest = 9
    assert model.prompt_offset[:longest].abs().min() > 0
    assert not model.prompt_offset[longest:].any()


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_detections_see_the_offset(fused):
    names = Vocabulary(["red cup"], torch.eye(1), torch.tensor([False]))
    model = tiny_glip(tuning="prompt", fused=fused, vocabulary=names).eval()
    before = model([image(0)])[0]["instances"].scores.max()
    nn.init.normal_(model.prompt_offset)
    after = model([image(0)])[0]["instances"].scores.max()
    assert (after - before).abs() > 1e-3
    (question,) = model._questions
    images, tokens = model.preprocess([image(0)]).tensor, token_batch([question.ids])
    text, _ = model.captions([question.ids])
    expected = (
        model.text_encoder(tokens.ids, tokens.mask) + model.prompt_offset[: len(question.ids)]
    )
    torch.testing.assert_close(text, expected)
    outputs = model.network(images, tokens)
    levels = [model.backbone(images)[f"p{level}"] for level in range(3, 8)]
    torch.testing.assert_close(outputs.logits, model.head(levels, expected, tokens.mask).logits)


def test_official_offsets_have_more_rows_than_a_caption_has_tokens():
    weights = torch.randn(1000, 24)
    found = convert_weights({"module.rpn.tunable_linear.weight": weights}).weights
    assert torch.equal(found["prompt_offset"], weights[:256])
    assert found["prompt_offset"].shape == tiny_glip(tuning="prompt").prompt_offset.shape


def test_there_is_no_other_mode():
    with pytest.raises(ValueError, match="'few' is none of full, linear, prompt"):
        tiny_glip(tuning="few")


def test_an_offset_is_not_lost_in_silence():
    # the untuned model's numbers stood under the tuned file's name
    model, _ = tuned("prompt")
    for mode in ("full", "linear"):
        with pytest.raises(SetupError, match="offset of prompt tuning .* MODEL.GLIP.TUNING pro"):
            tiny_glip(tuning=mode).load_state_dict(model.state_dict(), strict=False)
    tiny_glip(tuning="prompt").load_state_dict(model.state_dict())
    without = {**model.state_dict(), "prompt_offset": torch.zeros(256, 24)}
    tiny_glip().load_state_dict(without, strict=False)


@pytest.mark.parametrize("mode", ["linear", "prompt"])
def test_what_is_frozen_has_to_be_loaded(mode):
    state = tiny_glip().state_dict()
    tiny_glip(tuning=mode).load_state_dict(state, strict=False)
    tower = {name: one for name, one in state.items() if not name.startswith("head.tower.1")}
    with pytest.raises(SetupError, match=rf"TUNING {mode} keeps .* \(first: head.tower.1"):
        tiny_glip(tuning=mode).load_state_dict(tower, strict=False)
    tiny_glip().load_state_dict(tower, strict=False)  # it can be learned


def test_validation_losses_are_those_of_the_model_in_evaluation():
    # attention of the text encoder and DropBlock went on to drop
    model = tiny_glip(still=False).train()
    found = [validation_losses(model, [[training_image(0)]]) for _ in range(2)]
    assert found[0] == found[1] and model.training and model.head.training
    expected = model.eval().losses([training_image(0)])
    assert {name: one.item() for name, one in expected.items()} == {
        name: one for name, one in found[0].items() if name != "total_loss"
    }
    torch.manual_seed(0)
    dropped = model.train().losses([training_image(0)])
    assert dropped["loss_tokens"] != expected["loss_tokens"]
