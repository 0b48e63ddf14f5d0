"""Memory and disk estimates."""

import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.engine.build import build_optimizer
from ovd_d2.engine.estimates import (
    checkpoint_bytes,
    estimate_training_memory,
    teacher_bytes,
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


def test_an_online_teacher_counts_and_a_cached_one_does_not():
    cfg = tiny_config("vild")
    cached = estimate_training_memory(cfg, 1)
    cfg.MODEL.OVD.TEACHER.ARCHITECTURE = "RN50"
    cfg.MODEL.OVD.DISTILLATION.ONLINE.PROPOSALS = "not/opened"
    cfg.MODEL.OVD.DISTILLATION.ONLINE.BATCH_SIZE = 4
    online = estimate_training_memory(cfg, 1)
    assert cached.teacher == 0
    assert online.teacher == teacher_bytes("RN50", 4)
    assert online.total - cached.total == online.teacher
    cfg.MODEL.OVD.VARIANT = "vild_text"
    assert estimate_training_memory(cfg, 1).teacher == 0


def test_teacher_by_hand():
    # ViT-B-32: 151,277,313 weights, 77 x 77 mask of the text tower; widest: the MLP's GELU, 50
    # tokens of 3,072 channels in and as many out.
    weights = 4 * (151_277_313 + 77 * 77)
    for crops in (1, 256):
        assert teacher_bytes("ViT-B-32", crops) == weights + 4 * 2 * crops * 50 * 3072


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
