from functools import partial

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.engine.build import classify_crops
from ovd_d2.errors import SetupError
from ovd_d2.modeling.image_branches import CropBranch, Regions
from ovd_d2.scoring import image_probabilities
from ovd_d2.structures import PerImage
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def teacher():
    return CLIPTeacher.from_open_clip("Pictogram-RN", "shipped")


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8))
    return {
        "image": image.permute(2, 0, 1),
        "original_image": image,
        "height": 64,
        "width": 96,
    }


def make_model(teacher, objectness_weight=0.5, text_branch=False, heads="ViLDROIHeads"):
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.OVD.EMBEDDING_DIM = teacher.embedding_dim
    detector = build_model(cfg).eval()
    names = ["anchor", "bell", "cat", "dog"]
    embeddings = teacher.encode_text(names)
    detector.set_vocabulary(Vocabulary(names, embeddings, torch.tensor([False] * 3 + [True])))
    heads = detector.roi_heads
    branch = CropBranch(partial(embed_proposals, teacher=teacher))
    heads.set_image_branch(branch, scores="ensemble" if text_branch else "image")
    heads.objectness_weight = objectness_weight
    for predictor in heads.predictors:
        predictor.test_nms_thresh, predictor.test_topk_per_image = 0.6, 7
        predictor.test_score_thresh = 0.0
    return detector


def crop_probabilities(model, record):
    """(K, C): the teacher's word alone on the crops of the first stage's proposals."""
    features, proposals = model.encode(record)
    proposals.original_image = PerImage(record["original_image"], len(proposals))
    regions = Regions(features, [proposals], torch.empty(0))
    classifier = model.roi_heads.classifier
    embeddings = model.roi_heads.image_head.embed(regions)
    return image_probabilities(embeddings, classifier.text_embeddings, classifier.temperature)


def test_detections_have_boxes_masks_and_at_most_the_cap(teacher, record):
    instances = make_model(teacher)([record])[0]["instances"]
    assert 0 < len(instances) <= 7
    assert instances.pred_masks.shape[1:] == (64, 96)
    assert instances.scores.diff().le(0).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2, 3}


@torch.no_grad()
def test_masks_stay_in_their_boxes_where_the_detector_s_do(teacher, record):
    model = make_model(teacher)
    expected = model([record])[0]["instances"].pred_masks
    model.full_masks = False
    masks = model([record])[0]["instances"].pred_masks
    assert torch.equal(masks.to_bitmasks().tensor, expected)


@torch.no_grad()
def test_scores_are_the_teachers_on_the_original_pixels(teacher, record):
    model = make_model(teacher, objectness_weight=0.0)
    probs = crop_probabilities(model, record)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(probs)))
    best = model([record])[0]["instances"]
    assert best.scores[0] == probs.max()
    _, proposals = model.encode(record)  # the boxes are the proposals'
    winner = proposals.proposal_boxes.tensor[probs.max(dim=1).values.argmax()]
    torch.testing.assert_close(best.pred_boxes.tensor[0], winner)


@torch.no_grad()
@pytest.mark.parametrize("heads", ["ViLDROIHeads", "ViLDCascadeROIHeads"])
def test_the_text_branch_gets_the_weight_of_the_ensemble(teacher, record, heads):
    model = make_model(teacher, objectness_weight=0.0, text_branch=True, heads=heads)
    heads = model.roi_heads
    crops = crop_probabilities(model, record)
    features, proposals = model.encode(record)
    proposals.original_image = PerImage(record["original_image"], len(proposals))
    text, regressed = heads._classify_by_text(features, [proposals], heads.classifier.words)
    probs, boxes = heads._classify_proposals(
        heads.image_head, features, [proposals], heads.classifier.words
    )
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
    model.proposal_generator.post_nms_topk = {True: 0, False: 0}
    for scores in ("image", "ensemble"):
        model.roi_heads.scores = scores
        assert len(model([record])[0]["instances"]) == 0


@pytest.mark.parametrize("text_branch", [False, True])
def test_what_an_image_gives_does_not_depend_on_its_neighbours(teacher, record, text_branch):
    model = make_model(teacher, text_branch=text_branch)
    larger = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (3, 130, 170), np.uint8))
    other = {**record, "image": larger}  # the crops are of the same image
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


def test_inputs_without_the_original_image_are_told_how_to_get_it(teacher, record):
    del record["original_image"]
    with pytest.raises(ValueError, match="OriginalImage"):
        make_model(teacher)([record])


def test_a_detector_without_vocabulary_is_refused():
    cfg = tiny_config()
    cfg.MODEL.OVD.CLASSIFY_WITH = "clip_crops"
    with pytest.raises(SetupError, match="takes no image branch"):
        classify_crops(cfg, nn.Identity())
