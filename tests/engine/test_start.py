"""What a run writes before its first iteration."""

import argparse
import logging

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, get_cfg
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn

from ovd_d2.engine.start import LOGGERS, describe_model, start, start_lazy

TRAINING = argparse.Namespace(eval_only=False)


@pytest.fixture(autouse=True)
def afterwards(monkeypatch):
    """Benchmark and handlers are as before."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(one.propagate, one.level, one.handlers[:]) for one in loggers]
    yield
    for one, (propagate, level, handlers) in zip(loggers, before, strict=True):
        one.propagate, one.level, one.handlers = propagate, level, handlers


def config(folder, **values):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), 3
    for key, value in values.items():
        cfg[key] = value
    return cfg


def log_lines(folder):
    return (folder / "log.txt").read_text().splitlines()


def test_the_log_opens_with_ten_lines_at_most_and_the_rest_is_in_files(tmp_path):
    folder = tmp_path / "output"
    cfg = config(folder)
    start(cfg, TRAINING)
    describe_model(nn.Linear(1000, 2000, bias=False).requires_grad_(False), str(folder))
    assert cfg.is_frozen()
    again = config("another")
    again.merge_from_file(str(folder / "config.yaml"))
    assert again.SEED == 3 and str(folder) == again.OUTPUT_DIR
    assert "PyTorch" in (folder / "environment.txt").read_text()
    assert (folder / "model.txt").read_text().startswith("Linear(in_features=1000")
    lines = log_lines(folder)
    assert len(lines) <= 10
    assert "Model: Linear, 2.0 million parameters, 0.0 million of them trained" in lines[-1]
    assert any(f"Folder: {folder} (config.yaml" in line for line in lines)


def test_a_lazy_config(tmp_path):
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path / "output"), "seed": 3}})
    start_lazy(cfg, TRAINING)
    assert LazyConfig.load(str(tmp_path / "output" / "config.yaml")) == cfg
    assert len(log_lines(tmp_path / "output")) <= 10


def test_the_seed_is_the_configs_and_another_one_in_each_process(tmp_path, monkeypatch):
    def numbers():
        start(config(tmp_path), TRAINING)
        return torch.rand(3).tolist(), np.random.rand(3).tolist()

    first = numbers()
    assert numbers() == first
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert numbers() != first


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    start(config(tmp_path), TRAINING)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt.rank1"]


@pytest.mark.parametrize("eval_only", [False, True])
def test_benchmarks_of_convolutions_are_for_training(tmp_path, eval_only):
    start(config(tmp_path, CUDNN_BENCHMARK=True), argparse.Namespace(eval_only=eval_only))
    assert torch.backends.cudnn.benchmark is not eval_only
