"""What tools/lazyconfig_train_net.py runs in each process: Detectron2's LazyConfigs with words.

A config has what Detectron2's `new_baselines` have (`model`, `optimizer`, `lr_multiplier`, `train`,
`dataloader`), and `vocabulary`: a LazyCall that gives a :class:`ovd_d2.vocabulary.Vocabulary`, to
which the model's classifier refers ("${vocabulary}").
Where it has `wrap_loader`, a LazyCall that gives a function of the training loader, batches go
through that on their way to the model (configs/pictograms/lazy_vild_online.py).
`train.model_ema = dict(enabled=True, decay=0.9998)` averages the weights
(:class:`ovd_d2.engine.hooks.WeightAveraging`); `train.freeze`, `train.validation_loss` and
`train.best_checkpoint` are what docs/training.md says of the yaml keys.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ovd_d2.engine.build import vocabulary_of
from ovd_d2.engine.checkpoint import WHOLE_MODEL, SafeCheckpointer
from ovd_d2.engine.hooks import (
    BestCheckpoint,
    ProgressBar,
    SeedIterations,
    StopLoading,
    WeightAveraging,
)
from ovd_d2.engine.launching import available_device, on_main_process
from ovd_d2.engine.lazy_checks import (
    FREEZE_KEY,
    NO_VOCABULARY,
    WEIGHTS_KEY,
    build_validation_loader,
    check_lazy_setup,
    data_set_names,
)
from ovd_d2.engine.optimization import freeze
from ovd_d2.engine.scalars import defined, write_scalars
from ovd_d2.engine.start import describe_model, start_lazy
from ovd_d2.engine.trainer import evaluation_is_lost, finish, loader_states, write_results
from ovd_d2.engine.validation import GROUP, validation_losses
from ovd_d2.errors import SetupError
from ovd_d2.evaluation import masks_in_boxes
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part

logger = logging.getLogger(__name__)


def train(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Checks the set-up, then trains (`args.resume`: from the last checkpoint) and evaluates."""
    _check(cfg, args, training=True)
    if not cfg.train.device.startswith("cuda"):
        cfg.train.ddp.device_ids = None  # else Detectron2 asks for a GPU for each process
    model = _build_model(cfg)
    freeze(model, cfg.train.get("freeze") or (), FREEZE_KEY)
    loader = instantiate(cfg.dataloader.train)
    if "wrap_loader" in cfg:
        loader = instantiate(cfg.wrap_loader)(loader)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    describe_model(model, cfg.train.output_dir)
    wrapped = create_ddp_model(model, **cfg.train.ddp)
    trainer_class = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = trainer_class(wrapped, loader, optimizer)
    checkpointer = SafeCheckpointer(
        wrapped,
        cfg.train.output_dir,
        key=WEIGHTS_KEY,
        trainer=trainer,
        **loader_states(loader),
    )
    averaging = _build_averaging(cfg, model)
    trainer.register_hooks(_build_hooks(cfg, model, checkpointer, averaging))
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    start = trainer.iter + 1 if checkpointer.resumed_from else 0
    if start >= cfg.train.max_iter:
        finish(checkpointer, start, "train.max_iter", cfg.train.max_iter)
        if evaluation_is_lost(cfg.train.output_dir):
            if averaging is not None:
                averaging.before_train()  # takes up the average of the checkpoint
            _test(cfg, model if averaging is None else averaging.model)
        return
    trainer.train(start, cfg.train.max_iter)


def evaluate(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates `train.init_checkpoint` (`args.resume`: the last checkpoint)."""
    _check(cfg, args, training=False)
    model = _build_model(cfg)
    checkpoint = SafeCheckpointer(
        model, cfg.train.output_dir, required=WHOLE_MODEL, key=WEIGHTS_KEY
    ).resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    results = _test(cfg, model)
    if comm.is_main_process():
        write_scalars(results, cfg.train.output_dir, iteration=checkpoint.get("iteration", 0))
    return results


def _check(cfg: DictConfig, args: argparse.Namespace, *, training: bool) -> None:
    """Rank 0 looks at everything; then the run starts: what comes after is seeded."""
    cfg.train.device = available_device(cfg.train.device, key="train.device")
    notices = on_main_process(partial(check_lazy_setup, cfg, training=training))
    start_lazy(cfg, args)
    for notice in notices:
        logger.warning("%s", notice)


def _test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """With the vocabulary in the order of the test set."""
    evaluator = instantiate(cfg.dataloader.evaluator)
    dataset = evaluator.description["dataset"]
    with vocabulary_of(dataset, model), masks_in_boxes(model, evaluator):
        results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    write_results({**results, "evaluation": {dataset: evaluator.description}}, cfg.train.output_dir)
    return results


def _build_hooks(
    cfg: DictConfig,
    model: nn.Module,
    checkpointer: SafeCheckpointer,
    averaging: WeightAveraging | None,
) -> list[HookBase | None]:
    built: list[HookBase | None] = [
        SeedIterations(comm.shared_random_seed()),
        StopLoading(),
        averaging,
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    if comm.is_main_process():
        built.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))

    built += _build_evaluation(cfg, lambda: model if averaging is None else averaging.model)
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        built.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
        built.append(ProgressBar(os.path.basename(cfg.train.output_dir) or "training"))
    return built


def _build_evaluation(cfg: DictConfig, evaluated: Callable[[], nn.Module]) -> list[HookBase]:
    """What follows every `train.eval_period` iterations; undefined numbers are not stored."""
    period = cfg.train.eval_period
    built: list[HookBase] = [hooks.EvalHook(period, lambda: defined(_test(cfg, evaluated())))]
    if cfg.train.get("validation_loss"):
        built.append(hooks.EvalHook(period, lambda: defined(_validate(cfg, evaluated()))))
    best = cfg.train.get("best_checkpoint")
    if best and comm.is_main_process():
        folder = Path(cfg.train.output_dir)
        built.append(BestCheckpoint(best, period=period, folder=folder, model=evaluated))
    return built


def _validate(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """The training losses over the test set."""
    (name,) = data_set_names(cfg.dataloader.test)
    with vocabulary_of(name, model):
        return {GROUP: validation_losses(model, build_validation_loader(cfg))}


def _build_averaging(cfg: DictConfig, model: nn.Module) -> WeightAveraging | None:
    average = cfg.train.get("model_ema")
    if not average or not average.get("enabled"):
        return None
    return WeightAveraging(model, decay=average.decay, folder=Path(cfg.train.output_dir))


def _build_model(cfg: DictConfig) -> nn.Module:
    """With the config's vocabulary, which the config gives to the classifier."""
    try:
        model = instantiate(cfg.model)
    except ValueError as error:
        raise SetupError([f"model: {error}"]) from error
    part = open_vocabulary_part(model)
    if part is None or part.vocabulary is None:
        raise SetupError([NO_VOCABULARY])
    return model.to(cfg.train.device)
