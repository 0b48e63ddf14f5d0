"""What must be true before training or evaluation starts, all of it looked at in one go."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ovd_d2.clip.loading import configured_teacher, teacher_problems
from ovd_d2.data.augmentation import RESIZES, SIZE_RULES, smallest_resize
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper, mapping_problems
from ovd_d2.engine.build import (
    CLASSIFY_WITH,
    DETECTOR,
    load_training_dicts,
    repeat_factor_problems,
)
from ovd_d2.engine.data_checks import CheckedData, DataNeeds, category_problems, check_data
from ovd_d2.engine.optimization import optimizer_problems, plateau_problems
from ovd_d2.engine.validation import (
    missing_annotation_problems,
    selection_notices,
    selection_of,
    selection_problems,
)
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.evaluation.builder import evaluator_factories
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.protocols import fixed_ap_problems, lvis_protocol
from ovd_d2.losses import NOVEL_LOGIT_MODES
from ovd_d2.modeling.classifier import BACKGROUNDS
from ovd_d2.modeling.open_vocabulary import (
    architecture_problems,
    heads_take_vocabulary,
    open_vocabulary_heads,
    takes_image_branch,
    takes_vocabulary,
)
from ovd_d2.systems import SetupContext, system_of
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary


def check_setup(cfg: CfgNode, *, training: bool, progress: bool = True) -> list[str]:
    """Looks at everything a run needs: config, data sets, images, vocabulary, stores, weights.

    Args:
        cfg: the complete config.
        training: False for an evaluation, where neither training set nor cache is needed.
        progress: show bars where it takes more than a few seconds.

    Returns:
        What is odd, but can be meant.

    Raises:
        SetupError: lists every problem.
    """
    problems = list(config_problems(cfg, training))
    vocabulary = None
    if takes_vocabulary(cfg):
        vocabulary, found = _load_vocabulary(cfg, training)
        problems += found
    data = check_data(_data_needs(cfg, training), decode=not problems, progress=progress)
    problems += data.problems
    problems += _category_problems(cfg, vocabulary, data)
    problems += _system_problems(cfg, vocabulary, data, training)
    if not training and cfg.MODEL.OVD.CLASSIFY_WITH != DETECTOR:
        problems += _crop_teacher_problems(cfg, vocabulary)
    if training and not problems:
        mapper = OpenVocabularyDatasetMapper(cfg, is_train=True)
        problems += mapping_problems(mapper, _images_to_map(cfg, data)[:1])
        problems += missing_annotation_problems(cfg)
    if problems:
        raise SetupError(problems)
    return data.notices + (selection_notices(selection_of(cfg)) if training else [])


def check_images(cfg: CfgNode, dataset: str, *, progress: bool = True) -> None:
    """Looks at what a run over the images of a data set needs; their objects are not used.

    Args:
        cfg: the complete config.
        dataset: its name, given as --dataset.
        progress: show bars where it takes more than a few seconds.

    Raises:
        SetupError: lists every problem.
    """
    problems = list(config_problems(cfg, training=False))
    needs = DataNeeds(
        train=(),
        test=(dataset,),
        masks=False,
        test_resize=smallest_resize(cfg, is_train=False),
        test_key="--dataset",
        objects=False,
    )
    problems += check_data(needs, decode=not problems, progress=progress).problems
    if problems:
        raise SetupError(problems)


def config_problems(cfg: CfgNode, training: bool) -> Iterable[str]:
    """Keys whose values cannot be meant, alone or together; no data set is opened."""
    yield from architecture_problems(cfg)
    if takes_vocabulary(cfg):
        yield from _choice_problems(cfg)
    if system := system_of(cfg):
        yield from system.key_problems(cfg)
    yield from optimizer_problems(cfg)
    if cfg.DATASETS.OWN and not Path(cfg.DATASETS.OWN).expanduser().is_file():
        yield f"DATASETS.OWN: no file at '{cfg.DATASETS.OWN}'"
    yield from evaluation_problems(cfg)
    if training:
        yield from selection_problems(selection_of(cfg))
        yield from plateau_problems(cfg)
        yield from precision_problems(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE, "SOLVER.AMP")
        yield from process_problems(cfg.MODEL.DEVICE)
        yield from repeat_factor_problems(cfg)
    yield from output_problems(cfg.OUTPUT_DIR)
    yield from classify_with_problems(cfg)
    yield from augmentation_problems(cfg)
    if cfg.INPUT.RESIZE not in RESIZES:
        yield f"INPUT.RESIZE: '{cfg.INPUT.RESIZE}' is not one of {', '.join(RESIZES)}"
    if cfg.INPUT.SIZE_RULE not in SIZE_RULES:
        yield f"INPUT.SIZE_RULE: '{cfg.INPUT.SIZE_RULE}' is not one of {', '.join(SIZE_RULES)}"
    yield from weights_problems(cfg.MODEL.WEIGHTS)


def evaluation_problems(cfg: CfgNode) -> list[str]:
    """A mistake here would come out when the training is over."""
    problems = []
    for build, name in (
        (build_engine, cfg.TEST.OVD.ENGINE),
        (lvis_protocol, cfg.TEST.OVD.PROTOCOL),
    ):
        try:
            build(name)
        except (ValueError, ImportError) as error:
            problems.append(str(error))
    return problems + fixed_ap_problems(cfg.TEST.OVD.PROTOCOL, cfg.TEST.DETECTIONS_PER_IMAGE)


def precision_problems(enabled: bool, device: str, key: str) -> list[str]:
    """Detectron2's AMPTrainer trains on GPUs alone.

    Args:
        enabled: mixed precision is wanted.
        device: to train on.
        key: of the config, for the message.
    """
    if not enabled or device.startswith("cuda"):
        return []
    return [
        f"{key}: Detectron2 trains with mixed precision on cuda only, and the device is "
        f"'{device}': switch it off (on processors bfloat16 is slower, docs/results.md)"
    ]


def process_problems(device: str) -> list[str]:
    """Detectron2's DefaultTrainer gives every process a GPU."""
    count = comm.get_world_size()
    if count == 1 or device.startswith("cuda"):
        return []
    return [
        f"MODEL.DEVICE is '{device}' and there are {count} processes: Detectron2 trains in several "
        "with a GPU for each; start one (--num-gpus 1), or train a LazyConfig"
    ]


def output_problems(folder: str, key: str = "OUTPUT_DIR") -> list[str]:
    """A folder that can be neither made nor written to. Remote ones are not looked at."""
    if "://" in folder:
        return []
    path = Path(folder).absolute()
    there = next(one for one in (path, *path.parents) if one.exists())
    if not there.is_dir():
        return [f"{key} is '{folder}', but {there} is a file: name a folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"{key} is '{folder}', but {there} may not be written to: name another folder"]
    return []


def classify_with_problems(cfg: CfgNode) -> list[str]:
    """Models that the teacher on crops cannot take the place of."""
    key = f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}"
    if cfg.MODEL.OVD.CLASSIFY_WITH == DETECTOR:
        return []
    if not takes_image_branch(cfg):
        return [
            f"{key} needs MODEL.META_ARCHITECTURE OpenVocabularyRCNN, it is "
            f"{cfg.MODEL.META_ARCHITECTURE}, with one of the heads "
            f"{', '.join(open_vocabulary_heads())}, it has {cfg.MODEL.ROI_HEADS.NAME}"
        ]
    return []


def augmentation_problems(cfg: CfgNode) -> list[str]:
    """What Detectron2's test-time augmentation, which runs after training, would stop at."""
    refused = {
        f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}": (
            cfg.MODEL.OVD.CLASSIFY_WITH != DETECTOR
        ),
        "MODEL.KEYPOINT_ON True": cfg.MODEL.KEYPOINT_ON,
        "MODEL.LOAD_PROPOSALS True": cfg.MODEL.LOAD_PROPOSALS,
    }
    if not cfg.TEST.AUG.ENABLED:
        return []
    return [
        f"{key} does not work with TEST.AUG.ENABLED True: switch the augmentation off"
        for key, there in refused.items()
        if there
    ]


def _data_needs(cfg: CfgNode, training: bool) -> DataNeeds:
    return DataNeeds(
        train=cfg.DATASETS.TRAIN if training else (),
        test=cfg.DATASETS.TEST,
        masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
        train_resize=smallest_resize(cfg, is_train=True),
        test_resize=smallest_resize(cfg, is_train=False),
        evaluator_types=evaluator_factories(cfg),
    )


def _load_vocabulary(cfg: CfgNode, training: bool) -> tuple[Vocabulary | None, list[str]]:
    try:
        vocabulary = configured_vocabulary(cfg)
    except SetupError as error:
        return None, error.problems
    if vocabulary is None:
        empty = "MODEL.OVD.VOCABULARY is empty: make one with tools/build_vocabulary.py"
        return None, [empty] if training and not _has_free_categories(cfg) else []
    return vocabulary, list(_vocabulary_problems(cfg, vocabulary))


def _category_problems(
    cfg: CfgNode, vocabulary: Vocabulary | None, data: CheckedData
) -> Iterable[str]:
    system = system_of(cfg)
    if system is not None and (system.free_categories or not system.detects):
        return
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    counts = {name: len(one.categories) for name, one in data.train.items() if one.categories}
    if vocabulary is not None and data.train:
        counts = {cfg.MODEL.OVD.VOCABULARY: len(vocabulary)}
    for name, count in counts.items():
        if count != expected:
            yield (
                f"MODEL.ROI_HEADS.NUM_CLASSES is {expected}, but '{name}' has {count} "
                f"categories: set it to {count}"
            )
    if vocabulary is not None or not takes_vocabulary(cfg):
        yield from category_problems(vocabulary, cfg.MODEL.OVD.VOCABULARY, data)


def _crop_teacher_problems(cfg: CfgNode, vocabulary: Vocabulary | None) -> list[str]:
    """Whether the teacher on crops can be had, and is the one that embedded the vocabulary."""
    try:
        teacher = configured_teacher(cfg, device="cpu")
    except SetupError as error:
        return error.problems
    key = f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}"
    found = teacher_problems(teacher, vocabulary, cfg.MODEL.OVD.VOCABULARY)
    return [f"{key}: {problem}" for problem in found]


def _system_problems(
    cfg: CfgNode, vocabulary: Vocabulary | None, data: CheckedData, training: bool
) -> Iterable[str]:
    system = system_of(cfg)
    if system is None:
        return
    context = SetupContext(
        training=training,
        embedding_dim=cfg.MODEL.OVD.EMBEDDING_DIM,
        teacher=None if vocabulary is None else vocabulary.teacher,
        training_images=_training_images(cfg, data) if training else (),
        notices=data.notices,
    )
    yield from system.problems(cfg, context)


def _training_images(cfg: CfgNode, data: CheckedData) -> list[dict[str, Any]]:
    return data.training_images(filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def _images_to_map(cfg: CfgNode, data: CheckedData) -> list[dict[str, Any]]:
    """As the mapper will get them; what texts there are is known to the data set's loader alone."""
    return load_training_dicts(cfg) if _has_free_categories(cfg) else _training_images(cfg, data)


def _has_free_categories(cfg: CfgNode) -> bool:
    system = system_of(cfg)
    return system is not None and system.free_categories


def _choice_problems(cfg: CfgNode) -> Iterable[str]:
    ovd = cfg.MODEL.OVD
    choices = {
        "NOVEL_TRAINING_LOGITS": NOVEL_LOGIT_MODES,
        "BACKGROUND": BACKGROUNDS,
        "CLASSIFY_WITH": tuple(CLASSIFY_WITH),
    }
    for key, known in choices.items():
        if ovd[key] not in known:
            yield f"MODEL.OVD.{key}: '{ovd[key]}' is not one of {', '.join(known)}"
    for key in ("BASE_WEIGHT", "NOVEL_WEIGHT", "OBJECTNESS_WEIGHT"):
        if not 0 <= ovd[key] <= 1:
            yield f"MODEL.OVD.{key}: {ovd[key]} is not between 0 and 1"
    if ovd.TEMPERATURE <= 0 or ovd.TEST_TEMPERATURE < 0:
        yield (
            f"MODEL.OVD.TEMPERATURE {ovd.TEMPERATURE} must be positive, TEST_TEMPERATURE "
            f"{ovd.TEST_TEMPERATURE} positive or 0 (the same); CLIP's is 0.01"
        )
    if not cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS and not _has_free_categories(cfg):
        yield "DATALOADER.FILTER_NOVEL_ANNOTATIONS must be True: novel boxes are not for training"
    if heads_take_vocabulary(cfg):
        yield from _class_agnostic_problems(cfg)


def _class_agnostic_problems(cfg: CfgNode) -> Iterable[str]:
    reason = "must be True: novel names have no weights of their own"
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        yield f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG {reason}"
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        yield f"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {reason}"
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead":
        yield (
            "MODEL.ROI_MASK_HEAD.NAME: PointRendMaskHead has a mask for each of NUM_CLASSES "
            "categories; use ClassAgnosticPointRendMaskHead"
        )


def _vocabulary_problems(cfg: CfgNode, vocabulary: Vocabulary) -> Iterable[str]:
    path = cfg.MODEL.OVD.VOCABULARY
    if vocabulary.embedding_dim != cfg.MODEL.OVD.EMBEDDING_DIM:
        yield (
            f"MODEL.OVD.EMBEDDING_DIM is {cfg.MODEL.OVD.EMBEDDING_DIM}, but the embeddings in "
            f"{path} are {vocabulary.embedding_dim} wide: use one teacher for both"
        )
    if cfg.MODEL.OVD.BACKGROUND == "text" and vocabulary.background is None:
        yield (
            f'MODEL.OVD.BACKGROUND is "text", but {path} has no embedding of "background": '
            "build it again with tools/build_vocabulary.py"
        )
