"""The training losses over test images, and what may choose the best checkpoint."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader

from ovd_d2.data.augmentation import build_augmentations
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper, objects_of
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.build import get_base_dataset_dicts, vocabulary_of
from ovd_d2.evaluation.tables import ALL_COLUMNS
from ovd_d2.modeling.open_vocabulary import unwrapped
from ovd_d2.seeding import seed_generators
from ovd_d2.systems import system_of

VALIDATION_KEY, BEST_KEY = "TEST.OVD.VALIDATION_LOSS", "TEST.OVD.BEST_CHECKPOINT"
GROUP = "val_loss"  # the losses are called val_loss/loss_cls and so on
TASKS = ("bbox", "segm")
_SEED = 5  # sets these random numbers apart from those of training
# What else than the losses depends on the mode (training or evaluation) of a model.
_AS_IN_EVALUATION = (_NormBase, _DropoutNd, DropPath)


@dataclass(frozen=True)
class Selection:
    """What a config wants of the evaluations during training, and what its keys are called.

    Attributes:
        loss: the validation loss is computed.
        best: metric of the best checkpoint; empty: none is kept.
        period: iterations between two evaluations.
        test: the data sets that are evaluated.
        masks: the model learns masks.
        metrics: test set -> names of its numbers, of those that are not evaluated by detections.
    """

    loss: bool
    best: str
    period: int
    test: Sequence[str]
    masks: bool
    metrics: Mapping[str, Sequence[str]] = field(default_factory=dict)
    loss_key: str = VALIDATION_KEY
    best_key: str = BEST_KEY
    period_key: str = "TEST.EVAL_PERIOD"
    test_key: str = "DATASETS.TEST"


def selection_of(cfg: CfgNode) -> Selection:
    """That of a yaml config."""
    test, options = cfg.TEST, cfg.TEST.OVD
    return Selection(
        loss=options.VALIDATION_LOSS,
        best=options.BEST_CHECKPOINT,
        period=test.EVAL_PERIOD,
        test=cfg.DATASETS.TEST,
        masks=cfg.MODEL.MASK_ON,
        metrics=_own_metrics(cfg),
    )


def _own_metrics(cfg: CfgNode) -> dict[str, Sequence[str]]:
    """Of the test sets whose evaluators are the system's."""
    system = system_of(cfg)
    if system is None or not system.metrics:
        return {}
    register_data_sets(cfg.DATASETS.TEST)
    kinds = {
        name: MetadataCatalog.get(name).get("evaluator_type", None) for name in cfg.DATASETS.TEST
    }
    return {name: system.metrics[kind] for name, kind in kinds.items() if kind in system.metrics}


def validate(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """:func:`validation_losses` over `DATASETS.TEST`.

    Returns:
        `{"val_loss": {"total_loss": ..., ...}}`; with several test sets that of each by name.
    """
    detector = unwrapped(model)
    found: dict[str, Any] = {}
    for name in cfg.DATASETS.TEST:
        with vocabulary_of(name, detector):
            losses = validation_losses(detector, build_validation_loader(cfg, name))
        found[name] = {GROUP: losses}
    return next(iter(found.values())) if len(found) == 1 else found


def build_validation_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """The images of a test set as training sees images, but resized as in evaluation.

    Novel annotations are dropped where training drops them. Of a system's passengers those for
    validation ride along: stored proposals are of training images.
    """
    system = system_of(cfg)
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    options["augmentations"] = build_augmentations(cfg, is_train=False)
    options.update(
        recompute_boxes=False,
        passengers=() if system is None else system.validation_passengers(cfg, dataset_name),
    )
    return build_detection_test_loader(
        _validation_dicts(cfg, dataset_name),
        mapper=OpenVocabularyDatasetMapper(**options),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _validation_dicts(cfg: CfgNode, dataset_name: str) -> list[dict[str, Any]]:
    files = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=False))
    return get_base_dataset_dicts(
        dataset_name,
        drop_novel=cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS,
        proposal_files=[files[dataset_name]] if cfg.MODEL.LOAD_PROPOSALS else None,
    )


def validation_losses(
    model: nn.Module, batches: Iterable[list[dict[str, Any]]]
) -> dict[str, float]:
    """What the model returns in training, without gradient and without a trace in the model.

    Norms use their statistics, nothing is dropped out, and proposals are sampled with the same
    random numbers in every call.

    Args:
        model: not inside `DistributedDataParallel`.
        batches: training inputs; each rank has its own.

    Returns:
        Mean of each loss over the images of all ranks, and `total_loss`, their sum.
    """
    seed_generators(comm.get_rank(), _SEED, devices=True)
    sums: defaultdict[str, float] = defaultdict(float)
    # A storage of its own: what heads log of their batches is not of training
    with _computing_losses(model) as losses_of, torch.no_grad(), EventStorage(1):
        for batch in batches:
            sums["images"] += len(batch)
            for name, loss in losses_of(batch).items():
                sums[name] += float(loss) * len(batch)
    ranks = comm.all_gather(sums)
    total = {
        name: sum(one.get(name, 0.0) for one in ranks) for name in dict.fromkeys(chain(*ranks))
    }
    images = total.pop("images")
    losses = {name: value / images for name, value in total.items()}
    return {**losses, "total_loss": sum(losses.values())}


@contextmanager
def _computing_losses(model: nn.Module) -> Iterator[Callable[..., Any]]:
    """What computes its losses, in training mode but for norms and dropout; afterwards as before.

    A model with a method `losses_in_eval_mode` needs no training mode, in which it may draw random
    numbers elsewhere than in a module of dropout.
    """
    modes = {module: module.training for module in model.modules()}
    in_eval_mode: Callable[..., Any] | None = getattr(model, "losses_in_eval_mode", None)
    model.train(in_eval_mode is None)
    for module in modes:
        if isinstance(module, _AS_IN_EVALUATION):
            module.eval()
    try:
        yield in_eval_mode or model
    finally:
        for module, mode in modes.items():
            module.training = mode


def lower_is_better(metric: str) -> bool:
    """Whether a name of the event storage is that of a loss."""
    return GROUP in metric.split("/")


def selection_problems(wanted: Selection) -> Iterable[str]:
    """What is seen before any data set is opened."""
    keys = {
        f"{wanted.loss_key} True": wanted.loss,
        f"{wanted.best_key} '{wanted.best}'": wanted.best,
    }
    for key in (key for key, value in keys.items() if value):
        if wanted.period <= 0:
            yield (
                f"{key} needs evaluations during training, but {wanted.period_key} is "
                f"{wanted.period}: set it to a number of iterations"
            )
        if not wanted.test:
            yield f"{key} needs a data set to evaluate, but {wanted.test_key} is empty"
    if wanted.best and wanted.test:
        yield from _metric_problems(wanted)


def _metric_problems(wanted: Selection) -> Iterable[str]:
    alone = len(wanted.test) == 1
    prefixes = {name: "" if alone else f"{name}/" for name in wanted.test}
    if any(wanted.best.startswith(f"{prefix}{GROUP}/") for prefix in prefixes.values()):
        if not wanted.loss:
            yield (
                f"{wanted.best_key} '{wanted.best}' is only there with {wanted.loss_key} True: "
                "set it"
            )
        return
    tasks = TASKS if wanted.masks else TASKS[:1]
    of_detections = [f"{task}/{column}" for task in tasks for column in ALL_COLUMNS]
    known = [
        f"{prefix}{metric}"
        for name, prefix in prefixes.items()
        for metric in wanted.metrics.get(name, of_detections)
    ]
    if wanted.best not in known:
        near = difflib.get_close_matches(wanted.best, known, n=3, cutoff=0.3)
        yield (
            f"{wanted.best_key}: '{wanted.best}' is no metric of these evaluations; expected one "
            f"as {', '.join(near or known[:3])}"
        )


def selection_notices(wanted: Selection) -> list[str]:
    """A checkpoint that is chosen by what a zero-shot comparison must not look at."""
    if "novel" not in wanted.best and not wanted.best.endswith("/APr"):
        return []
    return [
        f"{wanted.best_key} '{wanted.best}' selects by boxes of novel categories, which an "
        "open-vocabulary detector must not have seen: choose AP50_base or a validation loss "
        "(docs/training.md)"
    ]


def missing_annotation_problems(cfg: CfgNode) -> Iterable[str]:
    """Test sets that losses cannot be computed over. Loads them."""
    wanted = selection_of(cfg)
    for name in wanted.test if wanted.loss else ():
        yield from annotation_problems(name, _validation_dicts(cfg, name), wanted)


def annotation_problems(
    name: str, records: Sequence[dict[str, Any]], wanted: Selection
) -> Iterable[str]:
    """Of a test set, whose images with the annotations that training would keep are `records`."""
    objects = [one for record in records for one in objects_of(record)]
    if not objects:
        yield f"{wanted.loss_key}: '{name}' has no annotation to compute losses of: set it False"
    without = sum(not len(one.get("segmentation") or ()) for one in objects)
    if without and wanted.masks:
        yield (
            f"{wanted.loss_key}: {without} of the {len(objects)} objects of '{name}' have no "
            "'segmentation', but the model learns masks: add masks, or set the key False"
        )
