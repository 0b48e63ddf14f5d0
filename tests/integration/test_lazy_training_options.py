"""train.freeze, train.validation_loss and train.best_checkpoint of a LazyConfig."""

import json

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from ovd_d2.engine.lazy_checks import build_validation_loader
from ovd_d2.engine.validation import build_validation_loader as build_yaml_loader
from ovd_d2.engine.validation import validation_losses
from tests.integration.conftest import LAZY_ON_MINI, VAL
from tests.integration.test_plugging_in_lazy import CONFIGS, run
from tests.integration.test_plugging_in_yaml import mini_config

FROZEN = "backbone.bottom_up."


@pytest.fixture(scope="module")
def start(mini, tmp_path_factory):
    """Weights to start from."""
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load(str(CONFIGS / "lazy_vild.py")).model)
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


def lazy_config(*options):
    cfg = LazyConfig.load(str(CONFIGS / "lazy_vild.py"))
    return LazyConfig.apply_overrides(cfg, [*LAZY_ON_MINI, *options])


def test_what_is_frozen_stays_and_the_best_weights_are_kept(start, tmp_path):
    run(
        "lazy_vild",
        tmp_path,
        f"train.init_checkpoint={start}",
        f"train.freeze=[{FROZEN}]",
        "train.eval_period=1",
        "train.validation_loss=True",
        "train.best_checkpoint=val_loss/total_loss",
        "train.log_period=1",
        "dataloader.evaluator.failures=0",
        "optimizer.params.lr_multipliers=[]",
    )
    before = torch.load(start, weights_only=True)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith(FROZEN) for name in moved)

    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    measured = [one["val_loss/total_loss"] for one in lines if "val_loss/total_loss" in one]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best"]["val_loss/total_loss"] == pytest.approx(min(measured))
    cfg = lazy_config()
    model = instantiate(cfg.model)
    model.load_state_dict(best["model"])
    again = validation_losses(model, build_validation_loader(cfg))
    assert again["total_loss"] == pytest.approx(min(measured), rel=1e-6)
    assert "loss_distillation" not in again


def test_the_loss_is_that_of_the_yaml_config(start, mini, tmp_path):
    cfg = lazy_config()
    model = instantiate(cfg.model)
    model.load_state_dict(torch.load(start, weights_only=True)["model"])
    sizes = ("INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 200)
    yaml_loader = build_yaml_loader(mini_config("vild", tmp_path, *sizes), VAL)
    expected = validation_losses(model, yaml_loader)
    assert validation_losses(model, build_validation_loader(cfg)) == expected
