import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

from ovd_d2.modeling import OpenVocabularyRCNNWithTTA
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary

NAMES = ["anchor", "bell", "cat", "dog", "elephant", "fork", "ghost", "hat", "ink"]


def make(names, cls=OpenVocabularyRCNNWithTTA):
    torch.manual_seed(0)
    cfg = tiny_config("vild")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (48, 80), 100
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.freeze()
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 4
    model = build_model(cfg).eval()
    model.roi_heads.mask_head.predictor.weight.data *= 1000  # else all probabilities are ties
    model.set_vocabulary(tiny_vocabulary(names))
    return cls(cfg, model).eval()


def detect(augmented):
    with torch.no_grad():
        return augmented([tiny_input()])[0]["instances"]


@pytest.mark.parametrize("count", [2, 4, 9])
def test_any_number_of_names(count):
    found = detect(make(NAMES[:count]))
    assert len(found) > 0
    assert set(found.pred_classes.tolist()) <= set(range(count))
    assert found.pred_masks.shape[1:] == (64, 64)
    if count == 9:
        assert found.pred_classes.max() >= 4  # a name that NUM_CLASSES does not know


def test_the_vocabulary_may_change_between_calls():
    augmented = make(NAMES[:2])
    detect(augmented)
    augmented.model.set_vocabulary(tiny_vocabulary(NAMES))
    found, expected = detect(augmented), detect(make(NAMES))
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_merging_is_detectron2s():
    found, expected = (
        detect(make(NAMES[:4], cls)) for cls in (OpenVocabularyRCNNWithTTA, GeneralizedRCNNWithTTA)
    )
    for name, value in expected.get_fields().items():
        other = found.get(name)
        assert torch.equal(getattr(other, "tensor", other), getattr(value, "tensor", value)), name


def test_masks_stay_in_their_boxes_where_the_model_s_do():
    augmented = make(NAMES[:4])
    expected = detect(augmented).pred_masks
    augmented.model.full_masks = False
    assert torch.equal(detect(augmented).pred_masks.to_bitmasks().tensor, expected)


def test_the_config_of_the_caller_stays():
    augmented = make(NAMES)
    before = augmented.cfg.clone()
    cfg = tiny_config("vild")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (48,), 100
    cfg.freeze()
    other = OpenVocabularyRCNNWithTTA(cfg, augmented.model)
    detect(other)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == before.MODEL.ROI_HEADS.NUM_CLASSES == 4
