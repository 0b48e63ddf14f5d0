from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import pytest
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import EventStorage
from fvcore.common.checkpoint import Checkpointer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ovd_d2.engine import run
from ovd_d2.engine.scalars import defined, write_scalars
from ovd_d2.engine.trainer import OpenVocabularyTrainer, results_path

RESULTS = {"bbox": {"AP": 1.5, "APl": math.nan}, "segm": {"APr": 0.0}}


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(one.step, one.value) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_undefined_numbers_are_left_out():
    assert defined(RESULTS) == {"bbox": {"AP": 1.5}, "segm": {"APr": 0.0}}
    assert defined({"my_val": RESULTS})["my_val"]["bbox"] == {"AP": 1.5}
    assert defined({}) == {}


def test_scalars_of_a_checkpoint(tmp_path):
    write_scalars(RESULTS, str(tmp_path), iteration=399)
    assert scalars(tmp_path) == {"bbox/AP": [(399, 1.5)], "segm/APr": [(399, 0.0)]}


def test_a_second_evaluation_adds_to_the_first(tmp_path):
    write_scalars(RESULTS, str(tmp_path), iteration=1)
    write_scalars({"bbox": {"AP": 2.0}}, str(tmp_path), iteration=2)
    assert scalars(tmp_path)["bbox/AP"] == [(1, 1.5), (2, 2.0)]


def test_two_test_sets(tmp_path):
    write_scalars({"one": RESULTS, "two": RESULTS}, str(tmp_path), iteration=0)
    assert "two/segm/APr" in scalars(tmp_path)


class Evaluator(DatasetEvaluator):
    description = {"dataset": "my_val", "protocol": "LVIS", "engine": "none"}

    def reset(self): ...

    def process(self, inputs, outputs): ...

    def evaluate(self):
        return RESULTS


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    from tests.tiny import tiny_config

    cfg = tiny_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TEST = ("my_val",)
    monkeypatch.setattr(
        OpenVocabularyTrainer, "build_evaluator", classmethod(lambda *_: Evaluator())
    )
    monkeypatch.setattr(OpenVocabularyTrainer, "build_test_loader", classmethod(lambda *_: []))
    return cfg


def test_results_say_what_they_are(cfg):
    assert OpenVocabularyTrainer.test(cfg, nn.Identity()) is not None
    document = json.loads(results_path(cfg.OUTPUT_DIR).read_text())
    assert document == {
        "bbox": {"AP": 1.5, "APl": None},
        "segm": {"APr": 0.0},
        "evaluation": {"my_val": Evaluator.description},
    }


class Untrained(OpenVocabularyTrainer):
    """The trainer's hooks without its training."""

    def __init__(self, cfg):
        self._trainer = SimpleNamespace(model=nn.Identity(), optimizer=None, data_loader=None)
        self.cfg = cfg
        self.checkpointer = Checkpointer(nn.Identity(), cfg.OUTPUT_DIR)
        self.iter, self.max_iter = 9, 10


def test_training_stores_the_defined_numbers(cfg):
    trainer = Untrained(cfg)
    (hook,) = [one for one in trainer.build_hooks() if isinstance(one, EvalHook)]
    hook.trainer = trainer
    with EventStorage(9) as trainer.storage:
        hook.after_train()
        latest = trainer.storage.latest()
    assert latest == {"bbox/AP": (1.5, 9), "segm/APr": (0.0, 9)}
    assert math.isnan(trainer._last_eval_results["bbox"]["APl"])  # verify_results sees all


class Fork(Untrained):
    """`test_with_TTA` as in Detectron2's train_net.py, without the augmentation."""

    @classmethod
    def test_with_TTA(cls, cfg, model):
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, model, evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}


def test_the_augmented_test_of_a_project_is_not_run_twice(cfg):
    cfg.TEST.AUG.ENABLED = True
    # A project's main registers a hook for its own.
    assert sum(isinstance(one, EvalHook) for one in Fork(cfg).build_hooks()) == 1
    assert sum(isinstance(one, EvalHook) for one in Untrained(cfg).build_hooks()) == 2


def test_the_augmented_test_of_a_project_leaves_the_results_alone(cfg):
    Fork.test(cfg, None)
    before = results_path(cfg.OUTPUT_DIR).read_bytes()
    assert Fork.test_with_TTA(cfg, None).keys() == {"bbox_TTA", "segm_TTA"}
    assert results_path(cfg.OUTPUT_DIR).read_bytes() == before


def test_eval_only_writes_events_at_the_iteration_of_the_checkpoint(cfg, tmp_path, monkeypatch):
    class Loaded:
        def __init__(self, *_, **__): ...

        def resume_or_load(self, *_, **__):
            return {"iteration": 41}

    monkeypatch.setattr(run, "check_and_set_up", lambda *_, **__: None)
    monkeypatch.setattr(OpenVocabularyTrainer, "build_model", classmethod(lambda *_: None))
    monkeypatch.setattr(run, "SafeCheckpointer", Loaded)

    class Arguments:
        resume = False

    run.evaluate(cfg, Arguments)
    assert scalars(tmp_path)["bbox/AP"] == [(41, 1.5)]
