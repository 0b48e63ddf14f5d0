"""Masks that stay in their boxes count as full-size ones do, and evaluation asks for them."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import build_model
from evaluation_scenes import NAMES, feed, make_dataset, noisy_detections
from torch import nn

from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.evaluation import (
    OpenVocabularyCOCOEvaluator,
    OpenVocabularyLVISEvaluator,
    masks_in_boxes,
)
from ovd_d2.evaluation.protocols import FEDERATED, FIXED
from ovd_d2.modeling import BoxMasks
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary

IDS = list(range(1, len(NAMES) + 1))


def in_boxes(pairs):
    """The same detections with masks in their boxes; rounded discs, which are no rectangles."""
    line = torch.linspace(-1, 1, 28)
    disc = (2 - line[:, None] ** 2 - line**2).clamp(0, 1)
    boxed = copy.deepcopy(pairs)
    for _, output in boxed:
        found = output["instances"]
        soft = disc.expand(len(found), 28, 28)
        found.pred_masks = BoxMasks(soft, found.pred_boxes.tensor, found.image_size)
    return boxed


def full_size(pairs):
    full = copy.deepcopy(pairs)
    for _, output in full:
        output["instances"].pred_masks = output["instances"].pred_masks.to_bitmasks().tensor
    return full


@pytest.mark.parametrize(
    ("evaluator_class", "protocol"),
    [
        (OpenVocabularyCOCOEvaluator, None),
        (OpenVocabularyLVISEvaluator, FEDERATED),
        (OpenVocabularyLVISEvaluator, dataclasses.replace(FIXED, per_category=4)),
    ],
)
def test_detections_and_numbers_are_those_of_full_size_masks(
    evaluator_class, protocol, register, tmp_path
):
    options = {} if protocol is None else {"protocol": protocol}
    kind = "coco" if protocol is None else "lvis"
    mapping = {"thing_dataset_id_to_contiguous_id": {one: k for k, one in enumerate(IDS)}}
    register("ov_boxed", make_dataset(IDS), kind, thing_classes=NAMES, **mapping)
    boxed = in_boxes(noisy_detections(make_dataset(IDS), IDS))
    results, files = [], []
    for name, pairs in (("boxed", boxed), ("full", full_size(boxed))):
        out = tmp_path / name
        evaluator = evaluator_class("ov_boxed", ("bbox", "segm"), False, str(out), **options)
        results.append(feed(evaluator, pairs))
        files.append(json.loads((out / evaluator.results_file).read_text()))
    assert files[0] == files[1] and len(files[0]) > 20
    assert results[0]["segm"] == pytest.approx(results[1]["segm"], nan_ok=True)
    assert results[0]["segm"]["AP"] > 5
    assert isinstance(boxed[0][1]["instances"].pred_masks, BoxMasks)  # outputs are not changed


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = build_model(tiny_config("vild")).eval()
    built.set_vocabulary(tiny_vocabulary())
    return built


@pytest.fixture
def evaluator(register):
    register("ov_boxed", make_dataset(IDS), "lvis", thing_classes=NAMES)
    return OpenVocabularyLVISEvaluator("ov_boxed")


class Holder(nn.Module):
    """As DistributedDataParallel and test-time augmentation hold a detector."""

    def __init__(self, model):
        super().__init__()
        self.inner = model


def masks_of(model):
    with torch.no_grad():
        return model.eval()([tiny_input(cached=None)])[0]["instances"].pred_masks


def test_the_model_leaves_them_there_for_an_evaluator_that_reads_them(model, evaluator):
    full = masks_of(model)
    with masks_in_boxes(Holder(model), evaluator):
        boxed = masks_of(model)
        assert isinstance(boxed, BoxMasks)
        assert torch.equal(boxed.to_bitmasks().tensor, full)
    assert torch.equal(masks_of(model), full)
    with pytest.raises(KeyError), masks_in_boxes(model, evaluator):
        raise KeyError
    assert isinstance(masks_of(model), torch.Tensor)
    with masks_in_boxes(nn.Linear(2, 2), evaluator):
        pass  # no detector of ours: nothing to do


@pytest.mark.parametrize("other", [DatasetEvaluator, lambda: DatasetEvaluators([])])
def test_other_evaluators_get_full_size_masks(model, other):
    with masks_in_boxes(model, other()):
        assert isinstance(masks_of(model), torch.Tensor)


class Recorder:
    """What an evaluator was given."""

    def process(self, inputs, outputs):
        self.seen = getattr(self, "seen", []) + [one["instances"].pred_masks for one in outputs]
        super().process(inputs, outputs)


class Ours(Recorder, OpenVocabularyLVISEvaluator):
    pass


class Detectron2s(Recorder, COCOEvaluator):
    pass


@pytest.mark.parametrize("tta", [False, True])
def test_the_trainer_evaluates_without_full_size_masks(model, register, tmp_path, monkeypatch, tta):
    register("ov_boxed", make_dataset(IDS), "lvis", thing_classes=NAMES)
    cfg = tiny_config("vild")
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("ov_boxed",), str(tmp_path)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (48,), 100
    model.set_vocabulary(tiny_vocabulary(NAMES))
    ours = Ours("ov_boxed", ("bbox", "segm"), False)
    inputs = [[{**tiny_input(cached=None), "image_id": 1}]]
    monkeypatch.setattr(OpenVocabularyTrainer, "build_test_loader", lambda *_: inputs)
    monkeypatch.setattr(OpenVocabularyTrainer, "build_evaluator", lambda *_: ours)
    if tta:
        OpenVocabularyTrainer.test_with_tta(cfg, model)
    else:
        OpenVocabularyTrainer.test(cfg, model)
    assert len(ours.seen) == 1 and isinstance(ours.seen[0], BoxMasks) and len(ours.seen[0]) > 0
    assert isinstance(masks_of(model), torch.Tensor)


def test_detectron2s_evaluator_works_with_the_trainer(model, register, tmp_path, monkeypatch):
    mapping = {"thing_dataset_id_to_contiguous_id": {one: k for k, one in enumerate(IDS)}}
    register("ov_boxed", make_dataset(IDS), "coco", thing_classes=NAMES, **mapping)
    cfg = tiny_config("vild")
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = ("ov_boxed",), str(tmp_path)
    model.set_vocabulary(tiny_vocabulary(NAMES))
    theirs = Detectron2s("ov_boxed", ("bbox", "segm"), False, output_dir=str(tmp_path))
    inputs = [[{**tiny_input(cached=None), "image_id": 1}]]
    monkeypatch.setattr(OpenVocabularyTrainer, "build_test_loader", lambda *_: inputs)
    results = OpenVocabularyTrainer.test(cfg, model, [theirs])
    assert set(results) == {"bbox", "segm"}
    assert isinstance(theirs.seen[0], torch.Tensor) and theirs.seen[0].shape[1:] == (64, 64)
