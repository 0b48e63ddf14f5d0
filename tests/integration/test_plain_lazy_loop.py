"""Our LazyConfigs in the loop of Detectron2's own tools/lazyconfig_train_net.py.

A small stand-in of it, with Detectron2's parts alone: of ovd_d2 there is what the config names.
"""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset

from ovd_d2.vocabulary import Vocabulary
from tests.integration.conftest import LAZY_QUICK

CONFIGS = Path(__file__).parents[2] / "configs" / "pictograms"


def load(name, output, *options):
    plain = [
        f"train.output_dir={output}",
        "train.max_iter=1",
        "train.checkpointer.period=1",
        "train.log_period=1",
        "dataloader.evaluator.failures=0",
    ]
    cfg = LazyConfig.load(str(CONFIGS / f"{name}.py"))
    return LazyConfig.apply_overrides(cfg, [*LAZY_QUICK, *plain, *options])


def evaluate(cfg, model):
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    return inference_on_dataset(model, loader, evaluator)


def train(cfg, *, resume=False):
    """Trains as far as `train.max_iter`; returns the trainer and the last evaluation's numbers."""
    output = Path(cfg.train.output_dir)
    output.mkdir(exist_ok=True)
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    wrapped = create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(wrapped, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(wrapped, str(output), trainer=trainer)
    writers = default_writers(str(output), cfg.train.max_iter)
    results = {}

    def evaluate_now():
        results.update(evaluate(cfg, wrapped))
        return results

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, evaluate_now),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return trainer, results


@pytest.mark.parametrize("name", ["lazy_vild_ensemble", "lazy_vitdet"])
def test_it_trains_resumes_and_evaluates_with_the_names_of_the_config(name, mini, tmp_path):
    trainer, _ = train(load(name, tmp_path))
    losses = set(trainer.storage.latest())
    assert {"loss_cls", "loss_mask", "loss_distillation", "loss_rpn_cls"} <= losses

    trainer, results = train(load(name, tmp_path, "train.max_iter=2"), resume=True)
    assert trainer.start_iter == 1 and trainer.iter == 2
    for task in ("bbox", "segm"):
        assert {"AP", "APr", "AP50_base", "AP50_novel"} <= results[task].keys()
    vocabulary = Vocabulary.load(str(mini.vocabulary))
    model = trainer.model
    assert list(model.vocabulary.names) == list(vocabulary.names)
    assert torch.equal(model.vocabulary.embeddings, vocabulary.embeddings)

    # As with --eval-only: another model, whose weights come from the checkpoint.
    cfg = load(name, tmp_path)
    again = instantiate(cfg.model)
    DetectionCheckpointer(again).load(str(tmp_path / "model_final.pth"))
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )
    numbers = evaluate(cfg, again)
    for task in ("bbox", "segm"):
        assert numbers[task] == pytest.approx(results[task], nan_ok=True)
