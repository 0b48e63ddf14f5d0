"""Rates fall, and a training ends, once evaluations bring no new best."""

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn

from ovd_d2.engine.config_keys import default_config
from ovd_d2.engine.hooks import Plateau, StoppedEarly
from ovd_d2.engine.optimization import plateau_problems
from ovd_d2.engine.trainer import OpenVocabularyTrainer

METRIC = "bbox/AP"


class Evaluation(HookBase):
    """One value every second iteration."""

    def __init__(self, values, metric):
        self.values, self.metric = values, metric

    def after_step(self):
        value = self.values.get(self.trainer.iter + 1)
        if value is not None:
            self.trainer.storage.put_scalar(self.metric, value)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, data):
        return (self.weight + self.bias).sum()


def training(values, metric=METRIC, max_iter=100, **options):
    """`values` of the evaluations after iterations 2, 4, ...; rates 1 and 2."""
    model = Loss()
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 2.0}]
    trainer = SimpleTrainer(model, [None] * max_iter, torch.optim.SGD(groups, lr=1.0))
    constant = ConstantParamScheduler(1.0)
    trainer.scheduler = LRMultiplier(trainer.optimizer, constant, max_iter)
    settings = {"factor": 0.1, "patience": 1, "floor": 0.05, "stop": 0, **options}
    hook = Plateau(metric, period=2, **settings)
    evaluation = Evaluation({2 * k + 2: value for k, value in enumerate(values)}, metric)
    trainer.register_hooks([evaluation, hook])
    return trainer


def rates_after(trainer, iterations):
    trainer.train(0, iterations)
    trainer.scheduler.step()  # goes on from the lowered rates
    return [group["lr"] for group in trainer.optimizer.param_groups]


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ([1, 2, 2], [1.0, 2.0]),  # one without a new best: patience is 1
        ([1, 2, 2, 1], [0.1, 0.2]),
        ([1, 2, 2, 1, 3, 2], [0.1, 0.2]),
        ([1, 2, 2, 1, 2], [0.1, 0.2]),
        ([1, 2, 2, 1, 2, 2], [0.05, 0.05]),  # the floor
        ([3, None, None], [0.1, 0.2]),  # an evaluation that gives no number is no new best
    ],
)
def test_rates_fall(values, rates):
    found = rates_after(training(values), 2 * len(values) + 1)
    assert found == pytest.approx(rates)


def test_of_a_loss_the_lowest_is_the_best():
    assert rates_after(training([3, 2, 1], "val_loss/total_loss"), 7) == [1.0, 2.0]
    assert rates_after(training([1, 2, 3], "val_loss/total_loss"), 7) == pytest.approx([0.1, 0.2])


def test_a_training_ends_early_and_stays_ended():
    first = training([1, 2, 1, 1, 5], stop=2)
    with pytest.raises(StoppedEarly, match="not improved in 2 evaluations, its best is 2"):
        first.train(0, 100)
    assert first.iter == 7  # of 0 to 99
    again = training([9] * 20, stop=2)
    again.load_state_dict(first.state_dict())
    with pytest.raises(StoppedEarly):
        again.train(8, 100)
    assert again.iter == 8


def test_the_last_evaluation_ends_nothing():
    trainer = training([2, 1], stop=1, max_iter=4)
    trainer.train(0, 4)
    assert trainer.iter == 4


def test_the_trainer_writes_the_last_checkpoint(tmp_path):
    saved = []
    trainer = object.__new__(OpenVocabularyTrainer)
    trainer.start_iter, trainer.max_iter, trainer.iter = 0, 100, 7
    trainer._hooks = [Stop(trainer)]
    trainer.checkpointer = type("C", (), {"save": lambda _, *a, **k: saved.append((a, k))})()
    assert trainer.train() is None
    assert saved == [(("model_final",), {"iteration": 0})]


class Stop(HookBase):
    def __init__(self, trainer):
        self.trainer = trainer

    def before_train(self):
        raise StoppedEarly("enough")


def test_what_cannot_be_meant():
    cfg = default_config()
    assert list(plateau_problems(cfg)) == []
    cfg.SOLVER.PLATEAU.STOP = 2
    (problem,) = plateau_problems(cfg)
    assert "TEST.OVD.BEST_CHECKPOINT is empty" in problem
    cfg.TEST.OVD.BEST_CHECKPOINT = METRIC
    cfg.merge_from_list(["SOLVER.PLATEAU.FACTOR", 1.5, "SOLVER.PLATEAU.PATIENCE", -1])
    first, second = plateau_problems(cfg)
    assert "FACTOR: 1.5, expected above 0" in first and "PATIENCE: -1" in second
