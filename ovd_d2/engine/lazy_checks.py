"""What must be true before a LazyConfig trains or is evaluated, all of it looked at in one go."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from ovd_d2.cache import CacheError
from ovd_d2.data.augmentation import Resize, smallest_of
from ovd_d2.data.mapper import mapping_problems
from ovd_d2.data.passengers import Passenger, ProposalsToEmbed
from ovd_d2.engine.checks import output_problems, precision_problems
from ovd_d2.engine.data_checks import CheckedData, DataNeeds, category_problems, check_data
from ovd_d2.engine.optimization import decay_problems, name_problems
from ovd_d2.engine.validation import (
    Selection,
    annotation_problems,
    selection_notices,
    selection_problems,
)
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.builder import EVALUATORS
from ovd_d2.evaluation.protocols import fixed_ap_problems
from ovd_d2.systems import SetupContext, systems
from ovd_d2.vocabulary import Vocabulary

WEIGHTS_KEY, FREEZE_KEY = "train.init_checkpoint", "train.freeze"

NO_VOCABULARY = (
    'the config has no vocabulary: add vocabulary = L(Vocabulary.load)(path="...") and '
    'model.roi_heads.box_predictor.classifier.vocabulary = "${vocabulary}"'
)
_NO_TEACHER = (
    "dataloader.train.mapper brings proposals to embed, but the config has no wrap_loader that "
    "embeds them: add wrap_loader = L(OnlineTeacher)(teacher=L(load_teacher)(...))"
)


def check_lazy_setup(cfg: DictConfig, *, training: bool, progress: bool = True) -> list[str]:
    """The same for a LazyConfig as :func:`ovd_d2.engine.checks.check_setup` for a yaml one.

    Args:
        cfg: with `model`, `train`, `dataloader` and `vocabulary`.
        training: False for an evaluation.
        progress: show bars where it takes more than a few seconds.

    Returns:
        What is odd, but can be meant.

    Raises:
        SetupError: lists every problem.
    """
    problems = list(_evaluator_problems(cfg))
    problems += output_problems(cfg.train.output_dir, key="train.output_dir")
    problems += weights_problems(cfg.train.init_checkpoint, key=WEIGHTS_KEY)
    vocabulary, found = _load_vocabulary(cfg)
    problems += found
    data = check_data(_data_needs(cfg, training), decode=not problems, progress=progress)
    problems += data.problems
    if vocabulary is not None:
        problems += category_problems(vocabulary, "the vocabulary", data, in_order=True)
    if training:
        amp = cfg.train.amp.enabled
        problems += precision_problems(amp, cfg.train.device, "train.amp.enabled")
        problems += _mapper_problems(cfg, vocabulary, data)
        problems += decay_problems(cfg.train.get("model_ema") or {}, "train.model_ema.decay")
        problems += name_problems(cfg.train.get("freeze") or (), FREEZE_KEY)
        problems += _selection_problems(cfg, data)
    if problems:
        raise SetupError(problems)
    return data.notices + (selection_notices(_selection(cfg)) if training else [])


def build_validation_loader(cfg: DictConfig) -> DataLoader:
    """As :func:`ovd_d2.engine.validation.build_validation_loader`, of a LazyConfig.

    Passengers are those of `dataloader.validation_passengers`, where the config has it.
    """
    cfg = copy.deepcopy(cfg)
    mapper, test = cfg.dataloader.train.mapper, cfg.dataloader.test
    mapper.augmentations = test.mapper.get("augmentations", [])
    passengers = cfg.dataloader.get("validation_passengers", [])
    changes = {"recompute_boxes": False, "passengers": passengers}
    mapper.update({key: value for key, value in changes.items() if key in mapper})
    return build_detection_test_loader(
        _validation_dicts(cfg), mapper=instantiate(mapper), num_workers=test.get("num_workers", 0)
    )


def _validation_dicts(cfg: DictConfig) -> list[dict[str, Any]]:
    """The test images, with the annotations that training would keep."""
    names = cfg.dataloader.test.dataset.names
    return instantiate({**cfg.dataloader.train.dataset, "names": names, "filter_empty": False})


def _selection(cfg: DictConfig) -> Selection:
    return Selection(
        loss=bool(cfg.train.get("validation_loss")),
        best=cfg.train.get("best_checkpoint") or "",
        period=cfg.train.eval_period,
        test=data_set_names(cfg.dataloader.test),
        masks=bool(cfg.dataloader.train.mapper.get("use_instance_mask", False)),
        loss_key="train.validation_loss",
        best_key="train.best_checkpoint",
        period_key="train.eval_period",
        test_key="dataloader.test.dataset.names",
    )


def _selection_problems(cfg: DictConfig, data: CheckedData) -> Iterable[str]:
    wanted = _selection(cfg)
    yield from selection_problems(wanted)
    if wanted.loss and not data.problems:
        yield from annotation_problems(wanted.test[0], _validation_dicts(cfg), wanted)


def _data_needs(cfg: DictConfig, training: bool) -> DataNeeds:
    mapper = cfg.dataloader.train.mapper
    return DataNeeds(
        train=data_set_names(cfg.dataloader.train) if training else (),
        test=data_set_names(cfg.dataloader.test),
        masks=bool(mapper.get("use_instance_mask", False)),
        mask_format=mapper.get("instance_mask_format", "polygon"),
        train_resize=_resize(mapper) if training else None,
        test_resize=_resize(cfg.dataloader.test.mapper),
        train_key="dataloader.train.dataset.names",
        test_key="dataloader.test.dataset.names",
        masks_key="dataloader.train.mapper.use_instance_mask",
        format_key="dataloader.train.mapper.instance_mask_format",
    )


def data_set_names(part: DictConfig) -> list[str]:
    """The data sets of `dataloader.train` or `dataloader.test`."""
    names = part.dataset.names
    return [names] if isinstance(names, str) else list(names)


def _resize(mapper: DictConfig) -> Resize | None:
    return smallest_of([instantiate(one) for one in mapper.get("augmentations", ())])


def _evaluator_problems(cfg: DictConfig) -> Iterable[str]:
    """Of its options only, for it reads the ground truth when it is made."""
    names = data_set_names(cfg.dataloader.test)
    if len(names) != 1:
        yield (
            f"dataloader.test.dataset.names: {len(names)} data sets, but dataloader.evaluator is "
            "of one: evaluate them one after the other with --eval-only"
        )
        return
    yield from _rules_problems(cfg, names[0])
    yield from _argument_problems(cfg)
    for part in ("protocol", "engine"):
        try:
            instantiate(cfg.dataloader.evaluator.get(part))
        except (ValueError, ImportError) as error:
            yield f"dataloader.evaluator.{part}: {error}"
    limit = cfg.dataloader.evaluator.get("model_limit", 0)
    protocol = cfg.dataloader.evaluator.get("protocol", None) or {}
    yield from fixed_ap_problems(protocol.get("name", ""), limit)


def _argument_problems(cfg: DictConfig) -> Iterable[str]:
    """Arguments that are missing or unknown, which would come out when training is over."""
    evaluator = cfg.dataloader.evaluator
    target = evaluator.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    try:
        inspect.signature(target).bind(**{key: None for key in evaluator if key != "_target_"})
    except TypeError as error:
        name = getattr(target, "__name__", target)
        yield f"dataloader.evaluator: {error} of {name}; it takes {inspect.signature(target)}"


def _rules_problems(cfg: DictConfig, name: str) -> Iterable[str]:
    """LVIS's evaluator needs what only LVIS's files have."""
    target = cfg.dataloader.evaluator.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    kind = MetadataCatalog.get(name).get("evaluator_type", None) if name in DatasetCatalog else None
    is_lvis = isinstance(target, type) and issubclass(target, OpenVocabularyLVISEvaluator)
    if is_lvis and kind in EVALUATORS and kind != "lvis":
        fitting = EVALUATORS[kind].__name__
        yield (
            f"dataloader.evaluator is a {target.__name__}, but '{name}' is of the evaluator_type "
            f"'{kind}': write dataloader.evaluator = L({fitting})(...) in the config, without "
            "protocol"
        )


def _load_vocabulary(cfg: DictConfig) -> tuple[Vocabulary | None, list[str]]:
    if "vocabulary" not in cfg:
        return None, [NO_VOCABULARY]
    try:
        return instantiate(cfg.vocabulary), []
    except (OSError, ValueError) as error:
        return None, [f"vocabulary: {error}"]


def _mapper_problems(
    cfg: DictConfig, vocabulary: Vocabulary | None, data: CheckedData
) -> Iterable[str]:
    """What rides with the images, and what happens to the batches on their way to the model."""
    try:
        mapper = instantiate(cfg.dataloader.train.mapper)
    except (OSError, KeyError, ValueError, CacheError) as error:
        yield f"dataloader.train.mapper: {error}"
        return
    filtered = bool(cfg.dataloader.train.dataset.get("filter_empty", False))
    images = data.training_images(filter_empty=filtered)
    passengers = getattr(mapper, "passengers", ())
    for system in systems():
        yield from system.lazy_problems(cfg, passengers)
    if vocabulary is not None:
        context = SetupContext(
            training=True,
            embedding_dim=vocabulary.embedding_dim,
            teacher=vocabulary.teacher,
            training_images=images,
        )
        for passenger in passengers:
            yield from passenger.problems(context)
        yield from _wrapper_problems(cfg, context, passengers)
    if not data.problems:
        yield from mapping_problems(mapper, images[:1])


def _wrapper_problems(
    cfg: DictConfig, context: SetupContext, passengers: Sequence[Passenger]
) -> Iterable[str]:
    if "wrap_loader" not in cfg:
        if any(isinstance(one, ProposalsToEmbed) for one in passengers):
            yield _NO_TEACHER
        return
    try:
        wrap = instantiate(cfg.wrap_loader)
    except SetupError as error:
        yield from (f"wrap_loader: {problem}" for problem in error.problems)
        return
    except (OSError, ValueError, ImportError) as error:
        yield f"wrap_loader: {error}"
        return
    if hasattr(wrap, "problems"):
        yield from wrap.problems(context)
