import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from ovd_d2.modeling import EmbeddingProjection, OpenVocabularyOutputLayers, ViLDBoxHead
from tests.processes import run_ranks
from tests.tiny import tiny_config, tiny_vocabulary


def make_predictor(mode="exclude"):
    torch.manual_seed(0)
    cfg = tiny_config()
    cfg.MODEL.OVD.NOVEL_TRAINING_LOGITS = mode
    predictor = OpenVocabularyOutputLayers(cfg, ShapeSpec(channels=32))
    predictor.classifier.set_vocabulary(tiny_vocabulary())
    return predictor


def test_projection_gives_unit_float32_rows_also_from_maps():
    projection = EmbeddingProjection(ShapeSpec(channels=2, height=3, width=3), 5)
    rows = projection(torch.randn(4, 2, 3, 3))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert projection(torch.randn(4, 2, 3, 3)).dtype == torch.float32


def test_vild_trunk_has_four_normed_convs_and_two_normed_fcs():
    head = ViLDBoxHead(
        ShapeSpec(channels=8, height=7, width=7),
        conv_dims=[8] * 4,
        fc_dims=[16] * 2,
        conv_norm="BN",
        fc_norm="BN",
    )
    assert sum(isinstance(m, nn.BatchNorm2d) for m in head.modules()) == 6
    out = head(torch.randn(3, 8, 7, 7))
    assert out.shape == (3, 16)
    assert (out >= 0).all()  # ends in a ReLU, as the official head
    assert head(torch.randn(0, 8, 7, 7)).shape == (0, 16)


def test_one_row_alone_is_normalised_with_the_running_statistics():
    shape = ShapeSpec(channels=4, height=3, width=3)
    head = ViLDBoxHead(shape, conv_dims=[], fc_dims=[6], conv_norm="", fc_norm="BN")
    head(torch.randn(8, 4, 3, 3))  # moves the running statistics
    before = head.fc1.norm.running_mean.clone()
    row = torch.randn(1, 4, 3, 3)
    trained = head(row)
    trained.sum().backward()
    assert head.fc1.weight.grad.abs().sum() > 0
    torch.testing.assert_close(head.fc1.norm.running_mean, before)
    torch.testing.assert_close(trained, head.eval()(row))


@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN"])
def test_one_row_alone_in_one_process_with_a_norm_of_all_ranks(norm):
    shape = ShapeSpec(channels=4, height=3, width=3)
    head = ViLDBoxHead(shape, conv_dims=[], fc_dims=[6], conv_norm="", fc_norm=norm)
    row = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(head(row), head.eval()(row))


def train_fc_on_two_ranks(rank):
    """Rank 0 has 1 row, rank 1 has 5."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ShapeSpec(channels=4, height=1, width=1)
    head = ViLDBoxHead(shape, conv_dims=[], fc_dims=[6], conv_norm="", fc_norm="naiveSyncBN")
    rows = [torch.randn(count, 4, 1, 1) for count in (1, 5)]
    out = head(rows[rank])
    out.sum().backward()
    fc = [part.flatten(1) @ head.fc1.weight.T for part in rows]
    mean = sum(part.mean(dim=0) for part in fc) / 2  # every rank has the same weight
    squares = sum((part**2).mean(dim=0) for part in fc) / 2
    expected = (fc[rank] - mean) / (squares - mean**2 + head.fc1.norm.eps).sqrt()
    torch.testing.assert_close(out, expected.relu(), atol=1e-4, rtol=1e-4)
    assert torch.isfinite(head.fc1.weight.grad).all()
    torch.testing.assert_close(head.fc1.norm.running_mean, 0.1 * mean)


def test_a_rank_with_one_row_takes_part_in_the_norm_of_all_ranks():
    assert run_ranks(2, train_fc_on_two_ranks) == [0, 0]


def test_novel_logits_are_suppressed_in_training_alone():
    predictor = make_predictor()
    features = torch.randn(2, 32)
    training_logits, deltas = predictor.train()(features)
    test_logits, _ = predictor.eval()(features)
    assert deltas.shape == (2, 4)
    assert torch.isinf(training_logits[:, 3]).all()
    assert torch.isfinite(test_logits).all()
    torch.testing.assert_close(training_logits[:, [0, 1, 2, 4]], test_logits[:, [0, 1, 2, 4]])


@pytest.mark.parametrize("mode", ["zero", "exclude"])
def test_the_names_of_novel_categories_do_not_reach_the_training_loss(mode):
    predictor = make_predictor(mode).train()
    features = torch.randn(4, 32)
    labels = torch.tensor([0, 1, 2, 4])

    def loss():
        return nn.functional.cross_entropy(predictor(features)[0], labels)

    before = loss()
    with torch.no_grad():
        predictor.classifier.text_embeddings[3] *= -1.0
    torch.testing.assert_close(loss(), before)


def test_class_specific_boxes_are_refused():
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_BBOX_REG"):
        OpenVocabularyOutputLayers(cfg, ShapeSpec(channels=32))


@pytest.mark.parametrize("key", ["USE_SIGMOID_CE", "USE_FED_LOSS"])
def test_losses_that_are_not_scored_by_softmax_are_refused(key):
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD[key] = True  # as in Detic's base yaml
    with pytest.raises(ValueError, match=f"ROI_BOX_HEAD.{key} False"):
        OpenVocabularyOutputLayers(cfg, ShapeSpec(channels=32))
    with pytest.raises(ValueError, match=f"ROI_BOX_HEAD.{key} False"):
        build_model(cfg)


def test_detections_are_split_by_image_and_suppressed_by_class():
    predictor = make_predictor().eval()
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5]])
    proposals, images = [], (boxes, boxes[:1], boxes[:0])
    for rows in images:
        instances = Instances((20, 20))
        instances.proposal_boxes = Boxes(rows)
        proposals.append(instances)
    probs = torch.tensor([[0.9, 0, 0, 0], [0.8, 0, 0, 0.7], [0, 0.6, 0, 0]])
    found = predictor.select_detections(probs, images, proposals)
    assert found[0].pred_classes.tolist() == [0, 3]  # the 0.8 duplicate is gone, the 0.7 is not
    assert found[0].scores.tolist() == pytest.approx([0.9, 0.7])
    assert found[1].pred_classes.tolist() == [1]
    assert len(found[2]) == 0
