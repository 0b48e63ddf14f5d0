"""TEST.OVD.VALIDATION_LOSS and BEST_CHECKPOINT in a training."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog

from ovd_d2.data.categories import get_categories
from ovd_d2.engine import validation
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.run import train
from ovd_d2.engine.validation import (
    build_validation_loader,
    missing_annotation_problems,
    validation_losses,
)
from tests.integration.conftest import TRAIN, VAL
from tests.integration.test_plugging_in_yaml import mini_config
from tests.integration.test_resuming import FINAL, assert_same

OPTIONS = ("MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 4, "TEST.OVD.FAILURES", 0)
VALIDATION = ("TEST.EVAL_PERIOD", 2, "TEST.OVD.VALIDATION_LOSS", True)
BEST = ("TEST.OVD.BEST_CHECKPOINT", "val_loss/total_loss")


def losses_of(output):
    """iteration -> name -> value."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    found = {
        one["iteration"]: {k: v for k, v in one.items() if k.startswith("val_loss/")}
        for one in lines
    }
    return {iteration: losses for iteration, losses in found.items() if losses}


def test_training_is_as_without_and_the_best_is_kept(mini, tmp_path, arguments):
    name = "vild_ensemble"
    plain, validated = tmp_path / "plain", tmp_path / "validated"
    train(mini_config(name, plain, *OPTIONS, "DATASETS.TEST", ()), arguments)
    cfg = mini_config(name, validated, *OPTIONS, *VALIDATION, *BEST)
    train(cfg, arguments)
    first, second = (torch.load(one / FINAL, weights_only=True) for one in (plain, validated))
    assert_same(second["model"], first["model"])
    best = torch.load(validated / "model_best.pth", weights_only=True)
    total = best["best"]["val_loss/total_loss"]
    found = losses_of(validated)[max(losses_of(validated))]
    assert {"val_loss/loss_cls", "val_loss/loss_mask", "val_loss/loss_rpn_cls"} < found.keys()
    assert "val_loss/loss_distillation" not in found
    assert total <= found["val_loss/total_loss"]
    # What was kept is what was measured.
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(validated / "model_best.pth")
    model = build_open_vocabulary_model(cfg)
    again = validation_losses(model, build_validation_loader(cfg, VAL))
    assert again["total_loss"] == pytest.approx(total, rel=1e-6)


def test_a_cascade_and_two_test_sets_of_the_averaged_weights(mini, tmp_path, arguments):
    average = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5)
    options = (*OPTIONS, *VALIDATION, *average, "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 1)
    sets = ("DATASETS.TEST", (VAL, TRAIN))
    best = ("TEST.OVD.BEST_CHECKPOINT", f"{VAL}/bbox/AP50_base")
    train(mini_config("cascade", tmp_path, *options, *sets, *best), arguments)
    metrics = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    for name in (VAL, TRAIN):
        losses = {key for key in metrics if key.startswith(f"{name}/val_loss/")}
        assert f"{name}/val_loss/loss_cls_stage2" in losses
        assert not any("distillation" in key for key in losses)
    best, average = (
        torch.load(tmp_path / f"model_{one}.pth", weights_only=True) for one in ("best", "ema")
    )
    assert_same(best["model"], average["model"])


def test_images_are_as_in_evaluation_and_annotations_as_in_training(mini, tmp_path):
    cfg = mini_config("vild", tmp_path, "INPUT.LSJ.ENABLED", True)
    novel = get_categories(VAL).novel
    records = {one["image_id"]: one for one in DatasetCatalog.get(VAL)}
    loader = build_validation_loader(cfg, VAL)
    for (one,) in loader:
        record = records.pop(one["image_id"])
        assert min(one["image"].shape[1:]) == cfg.INPUT.MIN_SIZE_TEST
        base = [a["category_id"] for a in record["annotations"] if not novel[a["category_id"]]]
        assert one["instances"].gt_classes.tolist() == base
    assert records == {} and any(novel)


def test_test_sets_without_what_losses_need(mini, tmp_path, monkeypatch):
    cfg = mini_config("vild", tmp_path, *VALIDATION)
    assert list(missing_annotation_problems(cfg)) == []
    records = DatasetCatalog.get(VAL)
    for record in records:
        for one in record["annotations"]:
            del one["segmentation"]
    monkeypatch.setattr(validation, "get_base_dataset_dicts", lambda *_, **__: records)
    (problem,) = missing_annotation_problems(cfg)
    assert f"objects of '{VAL}' have no 'segmentation'" in problem
    cfg.MODEL.MASK_ON = False
    assert list(missing_annotation_problems(cfg)) == []
    for record in records:
        record["annotations"] = []
    (problem,) = missing_annotation_problems(cfg)
    assert "has no annotation" in problem
    cfg.TEST.OVD.VALIDATION_LOSS = False
    assert list(missing_annotation_problems(cfg)) == []
