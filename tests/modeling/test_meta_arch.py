"""The meta-architecture's own option: a compiled backbone under unchanged names."""

import pytest
import torch
from detectron2.modeling import build_model

from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


def test_the_compiled_backbone_is_run_and_the_state_dict_keeps_its_keys(monkeypatch):
    cfg = tiny_config("vild")
    plain = build_model(cfg)
    runs = []

    def compile_by_counting(function):  # the real compiler takes a minute
        return lambda *args: runs.append(function) or function(*args)

    monkeypatch.setattr(torch, "compile", compile_by_counting)
    cfg.MODEL.OVD.COMPILE_BACKBONE = True
    model = build_model(cfg)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    for one in (plain, model):
        one.eval().set_vocabulary(tiny_vocabulary())
    with torch.no_grad():
        expected, found = (one([tiny_input()])[0]["instances"] for one in (plain, model))
    assert torch.equal(found.scores, expected.scores)
    assert len(runs) == 1


@pytest.mark.parametrize("variant", ["vild_text", "vild_ensemble"])
@pytest.mark.parametrize("heads", ["ViLDROIHeads", "ViLDCascadeROIHeads"])
@torch.no_grad()
def test_a_vocabulary_for_one_call_changes_nothing_in_the_model(heads, variant):
    cfg = tiny_config(variant)
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    own, other = tiny_vocabulary(), tiny_vocabulary(["dog", "cow", "hen", "rat", "fox"], seed=5)
    model.set_vocabulary(own)
    before = model([tiny_input()])[0]["instances"]
    called = model([tiny_input()], vocabulary=other)[0]["instances"]
    assert called.pred_classes.max() == 4
    again = model([tiny_input()])[0]["instances"]
    assert model.vocabulary is own
    assert torch.equal(again.scores, before.scores)
    model.set_vocabulary(other)
    held = model([tiny_input()])[0]["instances"]
    assert torch.equal(held.scores, called.scores)
    assert torch.equal(held.pred_classes, called.pred_classes)
    assert torch.equal(held.pred_masks, called.pred_masks)


@pytest.mark.parametrize("architecture", ["OpenVocabularyRCNN", "BatchInvariantRCNN"])
@torch.no_grad()
def test_channels_last_on_a_cpu_at_test_time_alone(architecture):
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.roi_heads.set_vocabulary(tiny_vocabulary())
    formats = []
    model.backbone.register_forward_pre_hook(
        lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    fast = model([tiny_input()])[0]["instances"]
    model.channels_last = False
    plain = model([tiny_input()])[0]["instances"]
    assert formats == [True, False]
    assert torch.allclose(fast.scores, plain.scores, atol=1e-5)
    assert torch.allclose(fast.pred_boxes.tensor, plain.pred_boxes.tensor, atol=1e-3)
    model.train().channels_last = True
    assert model.preprocess_image([tiny_input()]).tensor.is_contiguous()


def test_training_takes_no_vocabulary_by_the_way():
    model = build_model(tiny_config()).train()
    with pytest.raises(ValueError, match="set_vocabulary"):
        model([tiny_input()], vocabulary=tiny_vocabulary())
