"""The weight decay falls at a part of each step of the rates."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from torch import nn

from ovd_d2.engine.config_keys import default_config
from ovd_d2.engine.hooks import WeightDecaySteps
from ovd_d2.engine.optimization import optimizer_problems

STEPS = (4.5, 7)  # of SOLVER.STEPS (6.75, 10.5), say, at two thirds


class Seen(HookBase):
    """The decays that each step is taken with."""

    def __init__(self):
        self.decays = []

    def before_step(self):
        groups = self.trainer.optimizer.param_groups
        self.decays.append(tuple(group["weight_decay"] for group in groups))


def training():
    model = nn.Linear(1, 1)
    model.forward = lambda data: model.weight.sum() + model.bias.sum()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    trainer = SimpleTrainer(model, [None] * 100, optimizer)
    seen = Seen()
    trainer.register_hooks([WeightDecaySteps(optimizer, steps=STEPS, gamma=0.1), seen])
    return trainer, seen


def test_it_falls_at_its_steps():
    trainer, seen = training()
    trainer.train(0, 9)
    expected = [0.01] * 5 + [0.001] * 2 + [0.0001] * 2  # of iterations 0-4, 5-6, 7-8
    assert [one for one, _ in seen.decays] == pytest.approx(expected)
    assert {bias for _, bias in seen.decays} == {0.0}


def test_a_resumed_training_has_the_decay_of_its_place():
    first, _ = training()
    first.train(0, 6)
    again, seen = training()
    again.load_state_dict(first.state_dict())
    again.train(6, 9)
    assert [one for one, _ in seen.decays] == pytest.approx([0.001, 0.0001, 0.0001])


def test_what_cannot_be_meant():
    cfg = default_config()
    assert cfg.SOLVER.WEIGHT_DECAY_STEPS == 0 and list(optimizer_problems(cfg)) == []
    cfg.SOLVER.WEIGHT_DECAY_STEPS = 1.5
    (problem,) = optimizer_problems(cfg)
    assert "SOLVER.WEIGHT_DECAY_STEPS: 1.5, expected a part of SOLVER.STEPS" in problem
