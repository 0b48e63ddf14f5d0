"""SOLVER.EMA and train.model_ema: the average is evaluated, written, and resumed bit by bit."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model

import ovd_d2.engine.lazy
from ovd_d2.engine.hooks import WeightAveraging
from ovd_d2.engine.run import evaluate, train
from tests.integration.conftest import VAL
from tests.integration.test_plugging_in_lazy import run as run_lazy
from tests.integration.test_plugging_in_yaml import mini_config
from tests.integration.test_resuming import (
    END,
    FINAL,
    LAZY,
    YAML,
    assert_same,
    assert_same_end,
    start_again_from_the_middle,
)
from tests.tiny import tiny_config, tiny_vocabulary

DECAY = 0.75
AVERAGE = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", DECAY)
LAZY_AVERAGE = ("+train.model_ema.enabled=True", f"+train.model_ema.decay={DECAY}")
NAME = "roi_heads.box_predictor.projection.weight"


@pytest.fixture
def weights(monkeypatch):
    """One parameter after each iteration."""
    found, step = [], SimpleTrainer.run_step

    def recording(self):
        step(self)
        found.append(self.model.state_dict()[NAME].clone())

    monkeypatch.setattr(SimpleTrainer, "run_step", recording)
    return found


def load(path):
    return torch.load(path, weights_only=True)


def detections(output):
    return (output / "inference" / VAL / "lvis_instances_results.json").read_text()


def average_of(weights):
    expected = weights[0]
    for one in weights[1:]:
        expected = DECAY * expected + (1 - DECAY) * one
    return expected


def test_the_average_is_of_all_steps_and_the_rest_of_the_training_as_without(
    mini, tmp_path, arguments, weights
):
    options = ("MODEL.WEIGHTS", "", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 4)
    train(mini_config("vild_text", tmp_path / "plain", *options), arguments)
    plain = weights[:]
    weights.clear()
    train(mini_config("vild_text", tmp_path / "average", *options, *AVERAGE), arguments)
    assert torch.equal(torch.stack(weights), torch.stack(plain))
    torch.testing.assert_close(
        load(tmp_path / "average" / "model_ema.pth")["model"][NAME], average_of(weights)
    )
    raw, same = (load(tmp_path / name / FINAL) for name in ("average", "plain"))
    assert_same(raw["model"], same["model"])
    assert (tmp_path / "average" / "last_checkpoint").read_text() == FINAL
    assert not (tmp_path / "plain" / "model_ema.pth").exists()
    statistics = "roi_heads.box_head.conv1.norm.running_mean"
    averaged = load(tmp_path / "average" / "model_ema.pth")
    assert not torch.equal(averaged["model"][statistics], raw["model"][statistics])
    vocabulary = "roi_heads.box_predictor.classifier.vocabulary"
    assert torch.equal(averaged["model"][vocabulary], raw["model"][vocabulary])


def test_the_average_is_what_is_evaluated_and_can_be_again(mini, tmp_path, arguments):
    options = ("MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 3, "TEST.OVD.FAILURES", 0)
    train(mini_config("vild_text", tmp_path / "training", *options, *AVERAGE), arguments)
    trained = detections(tmp_path / "training")
    again = {}
    for name in ("model_ema.pth", FINAL):
        start = ("MODEL.WEIGHTS", str(tmp_path / "training" / name), "TEST.OVD.FAILURES", 0)
        evaluate(mini_config("vild_text", tmp_path / name, *start), arguments)
        again[name] = detections(tmp_path / name)
    assert trained and again["model_ema.pth"] == trained
    assert again[FINAL] != trained


def test_resumed_bit_by_bit(mini, tmp_path, arguments):
    def training(output, resume):
        arguments.resume = resume
        train(mini_config("vild", output, *YAML, *AVERAGE), arguments)

    check_resumed(tmp_path / "whole", tmp_path / "part", training)


def test_a_lazy_config_resumed_bit_by_bit(mini, tmp_path, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        ovd_d2.engine.lazy, "_test", lambda _, model: evaluated.append(model.state_dict()) or {}
    )

    def training(output, resume):
        run_lazy("lazy_vild", output, *LAZY, *LAZY_AVERAGE, resume=resume)
        assert_same(dict(evaluated[-1]), dict(load(output / "model_ema.pth")["model"]))

    check_resumed(tmp_path / "whole", tmp_path / "part", training)


def check_resumed(whole, part, training):
    training(whole, resume=False)
    start_again_from_the_middle(whole, part)
    training(part, resume=True)
    assert_same_end(part, whole)
    first, second = (load(folder / "model_ema.pth") for folder in (part, whole))
    assert second["iteration"] == END - 1
    assert_same(first, second)
    assert not torch.equal(second["model"][NAME], load(whole / FINAL)["model"][NAME])


def test_a_lazy_average_without_decay_is_a_problem(mini, tmp_path):
    with pytest.raises(SystemExit, match=r"train\.model_ema\.decay: None is not a number"):
        run_lazy("lazy_vild", tmp_path, *LAZY, "+train.model_ema.enabled=True")


class Trainer:
    start_iter, iter, max_iter = 5, 5, 9


def test_resumed_with_another_vocabulary(tmp_path):
    first = build_model(tiny_config())
    first.set_vocabulary(tiny_vocabulary())
    hook = WeightAveraging(first, decay=DECAY, folder=tmp_path)
    hook.trainer = Trainer()
    assert hook.state_dict() == {}
    with pytest.raises(RuntimeError, match="before training"):
        _ = hook.model
    hook.before_train()
    hook.after_step()
    second = build_model(tiny_config())
    wanted = tiny_vocabulary(["dog", "cow"], seed=3)
    second.set_vocabulary(wanted)
    resumed = WeightAveraging(second, decay=DECAY, folder=tmp_path)
    resumed.trainer = Trainer()
    resumed.load_state_dict(hook.state_dict())
    resumed.before_train()
    assert torch.equal(resumed.model.state_dict()[NAME], first.state_dict()[NAME])
    classifier = resumed.model.roi_heads.classifier
    assert torch.equal(classifier.text_embeddings, wanted.embeddings)
    assert list(resumed.model.vocabulary.names) == ["dog", "cow"]
    resumed.after_step()
    assert torch.equal(classifier.text_embeddings, wanted.embeddings)
    assert classifier.novel.tolist() == [True, False]


def test_it_begins_late_where_the_checkpoint_has_none(tmp_path, caplog):
    model = build_model(tiny_config())
    hook = WeightAveraging(model, decay=DECAY, folder=tmp_path)
    hook.trainer = Trainer()
    hook.before_train()
    assert "it begins at iteration 5" in caplog.text
    weight, steps = model.state_dict()[NAME], []
    for k in range(3):
        weight.add_(k)
        steps.append(weight.clone())
        hook.after_step()
    torch.testing.assert_close(hook.model.state_dict()[NAME], average_of(steps))
    assert not (tmp_path / "model_ema.pth").exists()  # the last iteration is yet to come
