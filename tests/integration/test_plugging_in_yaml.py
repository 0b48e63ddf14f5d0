"""docs/plugging-in.md: the yaml examples train, evaluate and save on the mini Pictograms."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.engine.run import evaluate, load_config, train
from tests.integration.conftest import TRAIN, VAL, read_results

ROOT = Path(__file__).parents[2]


def mini_config(name, output, *options):
    quick = {
        "DATASETS.TRAIN": (TRAIN,),
        "DATASETS.TEST": (VAL,),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "INPUT.MIN_SIZE_TEST": 96,
        "SEED": 1,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 5,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.STEPS": (),
        "SOLVER.WARMUP_ITERS": 0,
        "OUTPUT_DIR": str(output),
    }
    pairs = [item for pair in quick.items() for item in pair]
    return load_config(str(ROOT / "configs/pictograms" / f"{name}.yaml"), [*pairs, *options])


def save_start(cfg, path):
    """Random weights in a file, so that a test knows where training started."""
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)


def unchanged_parameters(start, final, cfg):
    first = torch.load(start, weights_only=True)["model"]
    last = torch.load(final, weights_only=True)["model"]
    trained = [name for name, p in build_model(cfg).named_parameters() if p.requires_grad]
    return [name for name in trained if torch.equal(first[name], last[name])]


EXAMPLES = {
    "cascade": {"loss_cls_stage0", "loss_cls_stage2", "loss_mask", "loss_distillation"},
    "pointrend": {"loss_cls", "loss_mask", "loss_mask_point", "loss_distillation"},
    "vitdet": {"loss_cls", "loss_mask", "loss_distillation"},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_trains_and_evaluates(name, mini, tmp_path, arguments):
    cfg = mini_config(name, tmp_path / "out")
    save_start(cfg, tmp_path / "start.pth")
    train(cfg, arguments)
    written = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in written for key, value in json.loads(line).items()}
    assert set(metrics) >= EXAMPLES[name]
    assert all(math.isfinite(value) for key, value in metrics.items() if "loss" in key)
    final = tmp_path / "out" / "model_final.pth"
    assert unchanged_parameters(tmp_path / "start.pth", final, cfg) == []
    results = read_results(tmp_path / "out")
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "AP50_base", "AP50_novel"} <= set(results[task])


def test_an_example_is_evaluated_alone(mini, tmp_path, arguments):
    cfg = mini_config("pointrend", tmp_path / "out")
    save_start(cfg, tmp_path / "start.pth")
    assert {"AP50_base", "AP50_novel"} <= set(evaluate(cfg, arguments)["segm"])
    with pytest.raises(SystemExit):
        wrong = (
            "MODEL.WEIGHTS",
            cfg.MODEL.WEIGHTS,
            "TEST.EXPECTED_RESULTS",
            (("segm", "AP", 99, 1),),
        )
        evaluate(mini_config("pointrend", tmp_path / "out", *wrong), arguments)
    found = tmp_path / "out" / "inference" / VAL / "lvis_instances_results.json"
    assert {"bbox", "segmentation", "score"} <= set(json.loads(found.read_text())[0])


@pytest.mark.parametrize("name", ["clip_crops", "text_and_clip_crops"])
def test_the_teacher_on_crops_is_evaluated(name, mini, tmp_path, arguments):
    cfg = mini_config(name, tmp_path / "out", "MODEL.OVD.TEACHER.PROMPTS", "single")
    save_start(cfg, tmp_path / "start.pth")
    assert {"AP50_base", "AP50_novel"} <= set(evaluate(cfg, arguments)["segm"])
