"""Detectron2's DefaultTrainer for open-vocabulary detectors."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ovd_d2.data.online import is_resumable
from ovd_d2.engine import build, optimization
from ovd_d2.engine.checkpoint import SafeCheckpointer
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.hooks import (
    BestCheckpoint,
    Plateau,
    ProgressBar,
    SeedIterations,
    StopLoading,
    StoppedEarly,
    WeightAveraging,
    WeightDecaySteps,
)
from ovd_d2.engine.launching import on_main_process
from ovd_d2.engine.scalars import defined
from ovd_d2.engine.validation import validate
from ovd_d2.evaluation import build_evaluator, masks_in_boxes
from ovd_d2.files import atomic_write_json
from ovd_d2.modeling import OpenVocabularyRCNNWithTTA
from ovd_d2.seeding import kept_generators
from ovd_d2.systems import system_of

logger = logging.getLogger(__name__)

FINAL = "model_final"  # what Detectron2 calls the last checkpoint
INFERENCE, INFERENCE_TTA = "inference", "inference_TTA"  # folders below OUTPUT_DIR


def results_path(output_dir: str | os.PathLike[str], folder: str = INFERENCE) -> Path:
    """Where the numbers of the last evaluation are."""
    return Path(output_dir) / folder / "results.json"


def evaluation_is_lost(output_dir: str | os.PathLike[str]) -> bool:
    """Whether a finished run has no numbers that are younger than its last checkpoint; the same on
    all processes."""

    def lost() -> bool:
        results, last = results_path(output_dir), Path(output_dir) / f"{FINAL}.pth"
        if results.is_file() and last.is_file():
            return results.stat().st_mtime_ns < last.stat().st_mtime_ns
        return not results.is_file()

    if found := on_main_process(lost):
        logger.info("Its last evaluation was not finished: it is made now")
    return found


def write_results(
    results: dict[str, Any], output_dir: str | os.PathLike[str], folder: str = INFERENCE
) -> None:
    """The main process writes the numbers to :func:`results_path`."""
    if comm.is_main_process():
        atomic_write_json(results_path(output_dir, folder), without_nan(results))


def without_nan(value: Any) -> Any:
    """JSON has no NaN: the AP of a group without ground truth is null."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def loader_states(loader: Any) -> dict[str, Any]:
    """What a checkpointer is to hold of a training loader: nothing, where that is not resumable."""
    return {"loader": loader} if is_resumable(loader) else {}


def finish(checkpointer: SafeCheckpointer, start: int, key: str, max_iter: int) -> None:
    """Of a run that is resumed after its last iteration: says so, and sees to its last checkpoint.

    One that was killed just before it wrote `model_final.pth` writes it now.

    Args:
        checkpointer: has resumed.
        start: iterations done.
        key: of `max_iter` in the config.
    """
    logger.info(
        "This training has finished: %d of %d iterations are done, nothing is left to resume. "
        "Raise %s to go on, or evaluate it with --eval-only",
        *(start, max_iter, key),
    )
    resumed = checkpointer.resumed_from
    if start == max_iter and resumed is not None and resumed.name != f"{FINAL}.pth":
        checkpointer.save_resumed_as(FINAL)


class OpenVocabularyTrainer(DefaultTrainer):
    """Base-only labels, stored proposals, the configured vocabulary, base / novel evaluators.

    A run that is resumed goes on as if it had never stopped: same images, same random numbers.
    Everything else (optimiser, schedule, writers, AMP, DDP) is Detectron2's.
    """

    checkpointer: SafeCheckpointer
    _averaging: WeightAveraging | None = None

    def __init__(self, cfg: CfgNode, *, check: bool = True) -> None:
        """
        Args:
            cfg: the complete config.
            check: look at the whole set-up first (:func:`ovd_d2.engine.checks.check_setup`); False
                where that has been done.

        Raises:
            SetupError: lists everything that does not fit.
        """
        if check:
            with kept_generators():
                notices = on_main_process(partial(check_setup, cfg, training=True))
            for notice in notices:
                logger.warning("%s", notice)
        super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)  # Detectron2's trainer logs every module of it
        optimization.freeze(model, cfg.MODEL.OVD.FREEZE)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return optimization.build_optimizer(cfg, model)

    def train(self) -> dict[str, Any] | None:
        """As Detectron2's; a run that was resumed after its last iteration has nothing to do.

        One that was killed in its last evaluation is evaluated now.
        """
        if self.start_iter >= self.max_iter:
            finish(self.checkpointer, self.start_iter, "SOLVER.MAX_ITER", self.max_iter)
            if not self.cfg.DATASETS.TEST or not evaluation_is_lost(self.cfg.OUTPUT_DIR):
                return None
            if self._averaging is not None:
                self._averaging.before_train()  # takes up the average of the checkpoint
            return self.test(self.cfg, self.evaluated_model)
        try:
            return super().train()
        except StoppedEarly as reason:
            logger.info("The training ends after iteration %d: %s", self.iter, reason)
            self.checkpointer.save(FINAL, iteration=self.iter)
            if self._averaging is not None:
                self._averaging.write()
            return None

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """See :func:`ovd_d2.engine.build.build_train_loader`: a project's mapper goes in there."""
        return build.build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build.build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, INFERENCE, dataset_name)
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict[str, Any]:
        """Detectron2's evaluation, of the configured vocabulary whatever the checkpoint brought.

        The numbers also go to `OUTPUT_DIR/inference/results.json`, and beside them, under
        "evaluation", data set, protocol and engine of each test set, and what else its numbers
        depend on; but not where `evaluators` are given, as by the `test_with_TTA` of Detectron2's
        train_net.py: whoever gives them says where the numbers go.
        """
        if evaluators is not None:
            return cls._test_each(cfg, model, evaluators)
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = cls._test_each(cfg, model, evaluators)
        cls._write(results, cfg, evaluators, INFERENCE)
        return results

    @classmethod
    def _test_each(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator],
        wrap: Callable[[CfgNode, nn.Module], nn.Module] = lambda cfg, model: model,
    ) -> dict[str, Any]:
        """Each test set with the vocabulary in its order.

        Args:
            cfg, model, evaluators: as of `test`.
            wrap: what is evaluated in place of the model, made anew for every vocabulary.
        """
        results: dict[str, Any] = {}
        for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            one_set = cfg.clone()
            one_set.defrost()
            one_set.DATASETS.TEST = (name,)
            with build.vocabulary_of(name, model), masks_in_boxes(model, evaluator):
                results[name] = super().test(one_set, wrap(cfg, model), [evaluator])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The same with Detectron2's test-time augmentation (the keys `TEST.AUG`).

        Returns:
            The numbers, under "bbox_TTA" and so on. They go to
            `OUTPUT_DIR/inference_TTA/results.json`.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, INFERENCE_TTA)
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(folder, name)) for name in cfg.DATASETS.TEST
        ]
        plain = cls._test_each(cfg, model, evaluators, wrap=OpenVocabularyRCNNWithTTA)
        results = {f"{k}_TTA": v for k, v in plain.items()}
        cls._write(results, cfg, evaluators, INFERENCE_TTA)
        return results

    @staticmethod
    def _write(
        results: dict[str, Any], cfg: CfgNode, evaluators: list[DatasetEvaluator], folder: str
    ) -> None:
        if not cfg.DATASETS.TEST:
            return
        what = {
            name: evaluator.description
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True)
            if hasattr(evaluator, "description")
        }
        write_results({**results, "evaluation": what}, cfg.OUTPUT_DIR, folder)

    @property
    def evaluated_model(self) -> nn.Module:
        """What evaluations in training are of: the averaged weights, where there are any."""
        return self.model if self._averaging is None else self._averaging.model

    def _evaluate_for_storage(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.evaluated_model)
        return defined(self._last_eval_results) if comm.is_main_process() else {}

    def _evaluate_with_tta_for_storage(self) -> dict[str, Any]:
        results = self.test_with_tta(self.cfg, self.evaluated_model)
        return defined(results) if comm.is_main_process() else {}

    def _validate_for_storage(self) -> dict[str, Any]:
        losses = validate(self.cfg, self.evaluated_model)
        return defined(losses) if comm.is_main_process() else {}

    def build_hooks(self) -> list[HookBase | None]:
        # The last thing that Detectron2's __init__ does; some hooks keep the checkpointer.
        self.checkpointer = SafeCheckpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            **self.checkpointer.checkpointables,
            **loader_states(self.data_loader),
        )
        if self.cfg.SOLVER.EMA.ENABLED:
            self._averaging = WeightAveraging(
                self.model, decay=self.cfg.SOLVER.EMA.DECAY, folder=Path(self.cfg.OUTPUT_DIR)
            )
        seed = SeedIterations(comm.shared_random_seed())
        hooks: list[HookBase | None] = [seed, StopLoading(), self._averaging]
        solver = self.cfg.SOLVER
        if part := solver.WEIGHT_DECAY_STEPS:
            steps = [part * step for step in solver.STEPS]
            hooks.append(WeightDecaySteps(self.optimizer, steps=steps, gamma=solver.GAMMA))
        if (system := system_of(self.cfg)) is not None:
            hooks += system.hooks(self.cfg, self.model)
        for hook in super().build_hooks():
            if not isinstance(hook, EvalHook):
                hooks.append(hook)
                continue
            hooks += self._build_evaluation_hooks()
        if comm.is_main_process():
            hooks.append(ProgressBar(os.path.basename(self.cfg.OUTPUT_DIR) or "training"))
        plateau, test = solver.PLATEAU, self.cfg.TEST
        if plateau.FACTOR < 1 or plateau.STOP:
            options = {key.lower(): value for key, value in plateau.items()}
            hooks.append(Plateau(test.OVD.BEST_CHECKPOINT, period=test.EVAL_PERIOD, **options))
        return hooks

    def _build_evaluation_hooks(self) -> list[HookBase]:
        test, folder = self.cfg.TEST, Path(self.cfg.OUTPUT_DIR)
        # Detectron2's own would put nan into the event storage
        hooks: list[HookBase] = [EvalHook(test.EVAL_PERIOD, self._evaluate_for_storage)]
        # After training alone: it takes many passes per image. A project that has a
        # `test_with_TTA`, as Detectron2's train_net.py, registers a hook for it itself.
        if test.AUG.ENABLED and not hasattr(self, "test_with_TTA"):
            hooks.append(EvalHook(0, self._evaluate_with_tta_for_storage))
        if test.OVD.VALIDATION_LOSS:
            hooks.append(EvalHook(test.EVAL_PERIOD, self._validate_for_storage))
        if test.OVD.BEST_CHECKPOINT and comm.is_main_process():
            best, model = test.OVD.BEST_CHECKPOINT, lambda: self.evaluated_model
            hooks.append(BestCheckpoint(best, period=test.EVAL_PERIOD, folder=folder, model=model))
        return hooks
