"""Memory and disk estimates."""

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.engine.build import build_optimizer
from ovd_d2.engine.estimates import (
    checkpoint_bytes,
    estimate_training_memory,
    training_pixels,
)
from tests.tiny import tiny_config


def test_weights_gradients_and_moments_are_those_of_the_model():
    cfg = tiny_config("vild_ensemble")
    estimate = estimate_training_memory(cfg, 1)
    model = build_model(cfg)
    trained = sum(p.numel() for p in model.parameters())
    held = trained * 4 + sum(b.numel() * b.element_size() for b in model.buffers())
    assert (estimate.weights, estimate.gradients) == (held, 4 * trained)
    assert estimate.optimizer == 8 * trained  # AdamW


def test_activations_grow_with_images_and_pixels():
    cfg = tiny_config("vild")
    one = estimate_training_memory(cfg, 1).activations
    assert estimate_training_memory(cfg, 4).activations == pytest.approx(4 * one, rel=1e-6)
    cfg.INPUT.LSJ.ENABLED, cfg.INPUT.LSJ.SIZE = True, 512
    small = estimate_training_memory(cfg, 1).activations
    cfg.INPUT.LSJ.SIZE = 1024
    assert training_pixels(cfg) == 1024**2
    assert 2 < estimate_training_memory(cfg, 1).activations / small <= 4


def test_checkpoints_are_as_large_as_torch_writes_them(tmp_path):
    cfg = tiny_config()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 1000, 400
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    path = tmp_path / "one.pth"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    assert checkpoint_bytes(cfg) == pytest.approx(4 * path.stat().st_size, rel=0.1)
