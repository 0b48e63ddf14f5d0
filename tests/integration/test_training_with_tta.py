"""Detectron2's test-time augmentation (TEST.AUG), after training and with --eval-only."""

import argparse
import json
import math

import pytest

from ovd_d2.engine.run import evaluate, train
from ovd_d2.engine.trainer import INFERENCE_TTA, results_path
from tests.integration.conftest import TRAIN, VAL
from tests.integration.test_plugging_in_yaml import mini_config

AUGMENTATION = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96), "TEST.AUG.MAX_SIZE", 320)


@pytest.fixture(scope="module")
def trained(mini, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    arguments = argparse.Namespace(config_file="", resume=False, eval_only=False, opts=[])
    options = ("MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2, *AUGMENTATION)
    train(mini_config("vild_ensemble", output, *options), arguments)
    return output


def test_training_ends_with_both_evaluations(trained):
    last = json.loads((trained / "metrics.json").read_text().splitlines()[-1])
    assert {"bbox/AP", "segm/APr", "bbox_TTA/AP", "segm_TTA/APr"} <= last.keys()
    document = json.loads(results_path(trained, INFERENCE_TTA).read_text())
    assert {"bbox_TTA", "segm_TTA"} <= document.keys()
    assert document["evaluation"][VAL]["protocol"].startswith("LVIS")
    assert (trained / INFERENCE_TTA / VAL / "per_category.csv").is_file()


def test_evaluation_alone_gives_the_same_numbers(trained, tmp_path, arguments):
    options = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), *AUGMENTATION)
    results = evaluate(mini_config("vild_ensemble", tmp_path, *options), arguments)
    assert {"bbox", "segm", "bbox_TTA", "segm_TTA"} <= results.keys()
    document = json.loads(results_path(trained, INFERENCE_TTA).read_text())
    assert results["bbox_TTA"]["AP50"] == pytest.approx(document["bbox_TTA"]["AP50"], abs=1e-6)
    assert results["bbox_TTA"] != results["bbox"]


def test_images_without_objects_and_crowds_are_evaluated(trained, tmp_path, arguments):
    """The training images as a test set: the last ones have nothing but what is not annotated."""
    weights = ("MODEL.WEIGHTS", str(trained / "model_final.pth"), "DATASETS.TEST", (TRAIN,))
    cfg = mini_config("vild_ensemble", tmp_path, *weights, *AUGMENTATION)
    results = evaluate(cfg, arguments)
    assert all(0 <= results[task]["AP"] <= 100 for task in ("bbox", "segm", "bbox_TTA"))
    assert math.isnan(results["bbox"]["APr"])
    assert list((tmp_path / "inference").rglob("failures*"))
