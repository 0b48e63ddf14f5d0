"""docs/plugging-in.md: the LazyConfigs train, resume and evaluate on the mini Pictograms."""

import argparse
import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ovd_d2.engine.lazy import evaluate, train
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary
from tests.integration.conftest import LAZY_QUICK, TRAIN, VAL, read_results
from tests.integration.test_plugging_in_project import with_three_names

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "pictograms"


def run(name, output, *options, resume=False, eval_only=False):
    """tools/lazyconfig_train_net.py in this process."""
    short = [f"train.output_dir={output}", "train.max_iter=2", "train.seed=1"]
    args = argparse.Namespace(
        config_file=str(CONFIGS / f"{name}.py"),
        opts=[*LAZY_QUICK, *short, *options],
        resume=resume,
        eval_only=eval_only,
    )
    runpy.run_path(str(ROOT / "tools" / "lazyconfig_train_net.py"))["main"](args)


def saved(output):
    return torch.load(output / "model_final.pth", weights_only=True)


def metrics_of(output):
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.parametrize("name", ["lazy_vild", "lazy_vitdet"])
def test_example_trains_and_evaluates(name, mini, tmp_path):
    torch.manual_seed(0)
    start = instantiate(LazyConfig.load(str(CONFIGS / f"{name}.py")).model)
    torch.save({"model": start.state_dict()}, tmp_path / "start.pth")
    run(name, tmp_path, f"train.init_checkpoint={tmp_path / 'start.pth'}")
    metrics = metrics_of(tmp_path)
    assert {"loss_cls", "loss_mask", "loss_distillation"} <= set(metrics)
    assert all(math.isfinite(value) for key, value in metrics.items() if "loss" in key)
    final = saved(tmp_path)["model"]
    trained = [(name, p) for name, p in start.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if torch.equal(p, final[name])] == []
    results = read_results(tmp_path)
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "AP50_base", "AP50_novel"} <= set(results[task])


def test_resume_goes_on_and_eval_only_evaluates_the_configured_names(mini, tmp_path):
    run("lazy_vild", tmp_path)
    run("lazy_vild", tmp_path, "train.max_iter=3", resume=True)
    assert saved(tmp_path)["iteration"] == 2
    torch.save({"model": with_three_names(saved(tmp_path)["model"])}, tmp_path / "three.pth")
    found = tmp_path / "inference" / VAL / "lvis_instances_results.json"
    before = json.loads(found.read_text())
    run("lazy_vild", tmp_path, f"train.init_checkpoint={tmp_path / 'three.pth'}", eval_only=True)
    assert json.loads(found.read_text()) == before
    assert len(before) > 0


def test_the_evaluator_takes_protocol_engine_and_failures_from_the_config(mini, tmp_path):
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load(str(CONFIGS / "lazy_vild.py")).model)
    torch.save({"model": model.state_dict(), "iteration": 7}, tmp_path / "model.pth")
    weights = f"train.init_checkpoint={tmp_path / 'model.pth'}"
    chosen = [
        "dataloader.evaluator.protocol.name=fixed",
        "dataloader.evaluator.engine.name=hotcoco",
        "dataloader.evaluator.failures=0",
    ]
    numbers = {}
    for output, options in ((tmp_path / "default", []), (tmp_path / "chosen", chosen)):
        run("lazy_vild", output, weights, *options, eval_only=True)
        numbers[output.name] = read_results(output)
        failures = output / "inference" / VAL / "failures"
        assert failures.exists() == (not options)
        assert list(output.glob("events.out.tfevents*"))
    assert numbers["default"]["evaluation"][VAL] == {
        "dataset": VAL,
        "protocol": "LVIS federated (best 300 detections per image)",
        "engine": "reference (lvis 0.5.3)",
    }
    assert numbers["chosen"]["evaluation"][VAL] == {
        "dataset": VAL,
        "protocol": "LVIS fixed AP (best 10,000 detections per category)",
        "engine": "hotcoco 1.3.0",
    }
    # Five detections per image reach neither limit: the numbers are the same.
    assert numbers["chosen"]["segm"] == pytest.approx(numbers["default"]["segm"], abs=1e-4)


def test_the_lazy_model_is_the_yaml_model(mini):
    cfg = load_config(str(CONFIGS / "vild.yaml"))
    yaml_model = build_model(cfg)
    lazy = LazyConfig.load(str(CONFIGS / "lazy_vild.py"))
    lazy_model = instantiate(lazy.model)
    lazy_model.load_state_dict(yaml_model.state_dict())
    vocabulary = instantiate(lazy.vocabulary)
    record = instantiate(lazy.dataloader.train.mapper)(
        instantiate({**lazy.dataloader.train.dataset, "names": TRAIN})[0]
    )
    outcomes = []
    for model in (yaml_model, lazy_model):
        model.set_vocabulary(vocabulary)
        torch.manual_seed(0)
        with EventStorage():
            losses = model.train()([record])
        with torch.no_grad():
            found = model.eval()([record])[0]["instances"]
        outcomes.append((losses, found))
    (losses, found), (lazy_losses, lazy_found) = outcomes
    assert losses.keys() == lazy_losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(lazy_losses[name], loss)
    torch.testing.assert_close(lazy_found.scores, found.scores)
    torch.testing.assert_close(lazy_found.pred_boxes.tensor, found.pred_boxes.tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["vocabulary.path=nothing.safetensors"], "vocabulary: "),
        (["dataloader.train.mapper.passengers.0.store.path=nowhere"], "dataloader.train.mapper: "),
        (["dataloader.train.dataset.names=unknown_train"], "unknown_train"),
        (["dataloader.test.dataset.names=objects365_v2_val"], "zhiyuan_objv2_val.json (set DETEC"),
        (["dataloader.evaluator.engine.name=warm"], "dataloader.evaluator.engine: "),
        (["dataloader.evaluator.protocol.name=free"], "dataloader.evaluator.protocol: "),
        (["train.freeze=backbone."], "train.freeze: 'backbone.' is not a list of names"),
        (["train.validation_loss=True"], "but train.eval_period is 0: set it"),
        (
            ["train.eval_period=1", "train.best_checkpoint=bbox/AP50_bass"],
            "train.best_checkpoint: 'bbox/AP50_bass' is no metric of these evaluations",
        ),
        (["train.amp.enabled=True"], "train.amp.enabled: Detectron2 trains with mixed precision"),
    ],
)
def test_a_wrong_setup_is_refused_before_anything_is_written(options, message, mini, tmp_path):
    with pytest.raises(SystemExit, match="problem.* found before starting") as caught:
        run("lazy_vild", tmp_path / "out", *options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dataloader.train.mapper.passengers=[]", "has no passengers, but this variant distils"),
        ("model.roi_heads.box_predictor.classifier.embedding_dim=32", "use one teacher for both"),
        ("train.freeze=[backbone.top_up.]", "train.freeze: no parameter's name begins with"),
    ],
)
def test_a_model_that_does_not_fit_is_not_trained(option, message, mini, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run("lazy_vild", tmp_path, option)
    assert not (tmp_path / "metrics.json").exists()


def test_a_config_without_vocabulary_is_refused(tmp_path, arguments):
    cfg = LazyConfig.load(str(CONFIGS / "lazy_vild.py"))
    del cfg.vocabulary
    for run_config in (train, evaluate):
        with pytest.raises(SetupError, match="has no vocabulary: add"):
            run_config(cfg, arguments)


def test_a_missing_argument_of_the_evaluator_is_found_before_training(mini, tmp_path, arguments):
    cfg = LazyConfig.load(str(CONFIGS / "lazy_vild.py"))
    cfg.train.update(output_dir=str(tmp_path / "out"), init_checkpoint="")
    cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = TRAIN, VAL
    del cfg.dataloader.evaluator.dataset_name
    with pytest.raises(
        SetupError, match="dataloader.evaluator: missing a required.*'dataset_name'"
    ):
        train(cfg, arguments)


def test_names_in_another_order_are_refused(mini, tmp_path):
    vocabulary = Vocabulary.load(str(mini.vocabulary))
    turned = Vocabulary(
        list(vocabulary.names)[::-1],
        vocabulary.embeddings.flip(0),
        vocabulary.novel.flip(0),
        teacher=vocabulary.teacher,
    )
    turned.save(tmp_path / "turned.safetensors")
    with pytest.raises(SystemExit, match="in their order, first difference"):
        run("lazy_vild", tmp_path / "out", f"vocabulary.path={tmp_path / 'turned.safetensors'}")
