"""What tools/lazyconfig_train_net.py runs in each process: Detectron2's LazyConfigs with words.

A config has what Detectron2's `new_baselines` have (`model`, `optimizer`, `lr_multiplier`, `train`,
`dataloader`), and `vocabulary`: a LazyCall that gives a :class:`ovd_d2.vocabulary.Vocabulary`.
Where the mapper has `proposals` in place of a cache, `teacher` gives the
:class:`ovd_d2.clip.teacher.CLIPTeacher` that embeds them inside training.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ovd_d2.cache import CacheError, check_compatible
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.categories import get_categories, missing_file_problem
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.online import OnlineTeacherLoader
from ovd_d2.engine.checkpoint import WHOLE_MODEL, SafeCheckpointer
from ovd_d2.engine.checks import precision_problems
from ovd_d2.engine.hooks import ProgressBar, SeedIterations
from ovd_d2.engine.online import embedder, online_problems
from ovd_d2.engine.scalars import defined, write_scalars
from ovd_d2.engine.trainer import finished, loader_states, write_results
from ovd_d2.errors import SetupError
from ovd_d2.modeling import OpenVocabularyRCNN
from ovd_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

WEIGHTS_KEY = "train.init_checkpoint"

_NO_CACHE = (
    "dataloader.train.mapper has no cache, but this variant distils: add "
    'cache=L(EmbeddingCache)(path="...")'
)
_NO_TEACHER = (
    "dataloader.train.mapper has proposals in place of a cache, but the config has no teacher to "
    'embed them: add teacher = L(CLIPTeacher.from_open_clip)(architecture="...", pretrained="...", '
    'device="...")'
)


def train(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Checks the set-up, then trains (`args.resume`: from the last checkpoint) and evaluates."""
    if problems := precision_problems(cfg.train.amp.enabled, cfg.train.device, "train.amp.enabled"):
        raise SetupError(problems)
    _check_evaluator(cfg)
    vocabulary = _load_vocabulary(cfg)
    dataset_dicts, mapper, teacher = _load_training_data(cfg, vocabulary)
    default_setup(cfg, args)  # seeds: everything random comes after it
    model = _build_model(cfg, vocabulary)
    if model.roi_heads.variant.distils and mapper.cache is None and mapper.proposals is None:
        raise SetupError([_NO_CACHE])
    loader = instantiate({**cfg.dataloader.train, "dataset": dataset_dicts, "mapper": mapper})
    if teacher is not None:
        loader = OnlineTeacherLoader(loader, embedder(teacher))
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
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
    trainer.register_hooks(_build_hooks(cfg, model, checkpointer))
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    start = trainer.iter + 1 if checkpointer.resumed_from else 0
    if start >= cfg.train.max_iter:
        logger.info(*finished(start, "train.max_iter", cfg.train.max_iter))
        return
    model.set_vocabulary(vocabulary)  # after loading: it wins over the checkpoint's
    trainer.train(start, cfg.train.max_iter)


def evaluate(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates `train.init_checkpoint` (`args.resume`: the last checkpoint)."""
    _check_evaluator(cfg)
    vocabulary = _load_vocabulary(cfg)
    default_setup(cfg, args)
    model = _build_model(cfg, vocabulary)
    checkpoint = SafeCheckpointer(
        model, cfg.train.output_dir, required=WHOLE_MODEL, key=WEIGHTS_KEY
    ).resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    model.set_vocabulary(vocabulary)
    results = _test(cfg, model)
    if comm.is_main_process():
        write_scalars(results, cfg.train.output_dir, iteration=checkpoint.get("iteration", 0))
    return results


def _test(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    what = {evaluator.description["dataset"]: evaluator.description}
    write_results({**results, "evaluation": what}, cfg.train.output_dir)
    return results


def _build_hooks(
    cfg: DictConfig, model: nn.Module, checkpointer: SafeCheckpointer
) -> list[HookBase]:
    built = [
        SeedIterations(comm.shared_random_seed()),
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    if comm.is_main_process():
        built.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    # undefined numbers have no place in the event storage
    built.append(hooks.EvalHook(cfg.train.eval_period, lambda: defined(_test(cfg, model))))
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        built.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
        built.append(ProgressBar(os.path.basename(cfg.train.output_dir) or "training"))
    return built


def _build_model(cfg: DictConfig, vocabulary: Vocabulary) -> OpenVocabularyRCNN:
    model = instantiate(cfg.model).to(cfg.train.device)
    wanted = model.roi_heads.classifier.embedding_dim
    if vocabulary.embedding_dim != wanted:
        raise SetupError(
            [
                f"model.roi_heads.box_predictor.classifier.embedding_dim is {wanted}, but the "
                f"vocabulary's embeddings are {vocabulary.embedding_dim} wide: use one teacher "
                "for both"
            ]
        )
    model.set_vocabulary(vocabulary)
    return model


def _check_evaluator(cfg: DictConfig) -> None:
    """Its options only, for it reads the ground truth: before training, not after it."""
    evaluator = cfg.dataloader.evaluator
    problems = []
    for part in ("protocol", "engine"):
        try:
            instantiate(evaluator.get(part))
        except (ValueError, ImportError) as error:
            problems.append(f"dataloader.evaluator.{part}: {error}")
    if problems:
        raise SetupError(problems)


def _load_vocabulary(cfg: DictConfig) -> Vocabulary:
    if "vocabulary" not in cfg:
        raise SetupError(
            ['the config has no vocabulary: add vocabulary = L(Vocabulary.load)(path="...")']
        )
    try:
        return instantiate(cfg.vocabulary)
    except (OSError, ValueError) as error:
        raise SetupError([f"vocabulary: {error}"]) from error


def _load_training_data(
    cfg: DictConfig, vocabulary: Vocabulary
) -> tuple[list[dict[str, Any]], OpenVocabularyDatasetMapper, CLIPTeacher | None]:
    """Images, mapper and online teacher, if any, once they and the vocabulary fit each other."""
    part = cfg.dataloader.train
    if problems := _missing_files(cfg):
        raise SetupError(problems)
    try:
        dataset_dicts = instantiate(part.dataset)
        mapper = instantiate(part.mapper)
    except (OSError, KeyError, ValueError, CacheError) as error:
        raise SetupError([f"dataloader.train: {error}"]) from error
    problems = list(_vocabulary_problems(_names(part), vocabulary))
    needs: dict[str, Any] = {
        "teacher_fingerprint": vocabulary.teacher,
        "embedding_dim": vocabulary.embedding_dim,
        "image_ids": [record["image_id"] for record in dataset_dicts],
    }
    teacher = None
    if mapper.cache is not None:
        problems += check_compatible(mapper.cache, **needs)
    if mapper.proposals is not None:
        teacher = _load_teacher(cfg)
        problems += online_problems(mapper.proposals, teacher, **needs)
    if problems:
        raise SetupError(problems)
    return dataset_dicts, mapper, teacher


def _load_teacher(cfg: DictConfig) -> CLIPTeacher:
    if "teacher" not in cfg:
        raise SetupError([_NO_TEACHER])
    try:
        return instantiate(cfg.teacher)
    except (OSError, ValueError, RuntimeError) as error:
        raise SetupError([f"teacher: {error}"]) from error


def _missing_files(cfg: DictConfig) -> list[str]:
    names = [*_names(cfg.dataloader.train), *_names(cfg.dataloader.test)]
    found = [missing_file_problem(name) for name in names if name in DatasetCatalog]
    return [problem for problem in found if problem]


def _names(part: DictConfig) -> list[str]:
    """The data sets of `dataloader.train` or `dataloader.test`."""
    names = part.dataset.names
    return [names] if isinstance(names, str) else list(names)


def _vocabulary_problems(names: Iterable[str], vocabulary: Vocabulary) -> Iterable[str]:
    for name in names:
        table = get_categories(name)
        if list(vocabulary.names) != table.names or vocabulary.novel.tolist() != table.is_novel:
            yield (
                f"the vocabulary ({len(vocabulary)} names, {int(vocabulary.novel.sum())} novel) "
                f"does not list the categories of '{name}' ({len(table)}, {sum(table.is_novel)} "
                f"novel) in their order: build it with tools/build_vocabulary.py --dataset {name}"
            )
