import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ovd_d2.clip import CLIPTeacher
from ovd_d2.evaluation.clip_crops import CropClassifier, with_crop_classifier
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def teacher():
    return CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")


@pytest.fixture
def record(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    path = tmp_path / "scene.png"
    cv2.imwrite(str(path), image[:, :, ::-1])
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {"file_name": str(path), "image": pixels, "height": 64, "width": 96}


def make_model(teacher, objectness_weight=0.5, text_branch=False, heads="ViLDROIHeads"):
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.OVD.EMBEDDING_DIM = teacher.embedding_dim
    detector = build_model(cfg).eval()
    names = ["anchor", "bell", "cat", "dog"]
    embeddings = teacher.encode_text(names)
    detector.set_vocabulary(Vocabulary(names, embeddings, torch.tensor([False] * 3 + [True])))
    return CropClassifier(
        detector=detector,
        teacher=teacher,
        text_branch=text_branch,
        objectness_weight=objectness_weight,
        objectness="logit",
        score_threshold=0.0,
        nms_threshold=0.6,
        detections_per_image=7,
    ).eval()


def test_detections_have_boxes_masks_and_at_most_the_cap(teacher, record):
    instances = make_model(teacher)([record])[0]["instances"]
    assert 0 < len(instances) <= 7
    assert instances.pred_masks.shape[1:] == (64, 96)
    assert instances.scores.diff().le(0).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2, 3}


def test_scores_are_the_teachers_on_the_original_pixels(teacher, record):
    model = make_model(teacher, objectness_weight=0.0)
    proposals = model.detector.predict_proposals([record])[0]
    probs = model._crop_probabilities(record, proposals)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(proposals)))
    shifted = {**record, "image": torch.zeros_like(record["image"])}
    torch.testing.assert_close(model._crop_probabilities(shifted, proposals), probs)


@pytest.mark.parametrize("heads", ["ViLDROIHeads", "ViLDCascadeROIHeads"])
def test_the_text_branch_gets_the_weight_of_the_ensemble(teacher, record, heads):
    model = make_model(teacher, objectness_weight=0.0, text_branch=True, heads=heads)
    heads = model.detector.roi_heads
    features, proposals = model.detector.propose([record])
    crops = model._crop_probabilities(record, proposals[0])
    text, regressed = heads.predict_text(features, proposals)
    probs, boxes = model._with_text_branch(crops, features, proposals)
    expected = text[:, :3] ** (2 / 3) * crops[:, :3] ** (1 / 3)
    torch.testing.assert_close(probs[:, :3], expected)
    torch.testing.assert_close(probs[:, 3], text[:, 3] ** (1 / 3) * crops[:, 3] ** (2 / 3))
    assert torch.equal(boxes[0], regressed[0])
    assert len(model([record])[0]["instances"]) > 0


def test_several_images_and_none_without_proposals(teacher, record):
    model = make_model(teacher)
    one = model([record])[0]["instances"]
    both = model([record, record])
    torch.testing.assert_close(both[1]["instances"].scores, one.scores)
    model.detector.proposal_generator.post_nms_topk = {True: 0, False: 0}
    for text_branch in (False, True):
        model.text_branch = text_branch
        assert len(model([record])[0]["instances"]) == 0


@pytest.mark.parametrize("text_branch", [False, True])
def test_what_an_image_gives_does_not_depend_on_its_neighbours(teacher, record, text_branch):
    model = make_model(teacher, text_branch=text_branch)
    larger = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (3, 130, 170), np.uint8))
    other = {**record, "image": larger}  # the crops are of the same file
    alone = [model([one])[0]["instances"] for one in (record, other)]
    for order in ([0, 1], [1, 0]):
        together = model([(record, other)[k] for k in order])
        for k, found in zip(order, together, strict=True):
            expected = alone[k]
            assert len(found["instances"]) == len(expected) > 0
            torch.testing.assert_close(found["instances"].scores, expected.scores)
            boxes = found["instances"].pred_boxes.tensor
            torch.testing.assert_close(boxes, expected.pred_boxes.tensor)
            assert torch.equal(found["instances"].pred_masks, expected.pred_masks)


def test_a_detector_without_vocabulary_is_refused():
    with pytest.raises(TypeError, match="OpenVocabularyRCNN"):
        with_crop_classifier(tiny_config(), nn.Identity())
