"""What must be true before training or evaluation starts, all of it looked at in one go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ovd_d2.cache import CacheError, EmbeddingCache, ProposalStore, check_compatible
from ovd_d2.clip.crops import RESIZE_CHOICES
from ovd_d2.data.categories import get_categories, missing_file_problem
from ovd_d2.data.consistency import annotation_problems, picture_problems, split_problems
from ovd_d2.engine.online import load_teacher, online_problems
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.evaluation.clip_crops import CLASSIFY_WITH
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.protocols import lvis_protocol
from ovd_d2.losses import NOVEL_LOGIT_MODES
from ovd_d2.modeling.classifier import BACKGROUNDS
from ovd_d2.modeling.roi_heads import VARIANTS
from ovd_d2.vocabulary import Vocabulary


def check_setup(cfg: CfgNode, training_dicts: list[dict[str, Any]] | None = None) -> None:
    """Raises one :class:`SetupError` that lists every problem of the configuration.

    Args:
        cfg: the complete config.
        training_dicts: the images that will be trained on; None for evaluation, where neither
            the training set nor the cache is needed.
    """
    problems = list(_dataset_problems(cfg, training=training_dicts is not None))
    if cfg.MODEL.META_ARCHITECTURE == "OpenVocabularyRCNN":
        problems += _open_vocabulary_problems(cfg, training_dicts)
    if cfg.SOLVER.OPTIMIZER not in ("SGD", "ADAMW"):
        problems.append(f"SOLVER.OPTIMIZER: '{cfg.SOLVER.OPTIMIZER}' is neither SGD nor ADAMW")
    problems += evaluation_problems(cfg)
    if training_dicts is not None:
        problems += precision_problems(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE, "SOLVER.AMP")
    problems += classify_with_problems(cfg)
    problems += augmentation_problems(cfg)
    problems += weights_problems(cfg.MODEL.WEIGHTS)
    if training_dicts and not problems:
        problems += data_problems(cfg, training_dicts)
    if problems:
        raise SetupError(problems)


def data_problems(cfg: CfgNode, training_dicts: list[dict[str, Any]]) -> list[str]:
    """Pictures, annotations and split of the training images."""
    name = ", ".join(cfg.DATASETS.TRAIN)
    problems = picture_problems(name, training_dicts) + annotation_problems(name, training_dicts)
    if len(cfg.DATASETS.TRAIN) == 1:
        problems += split_problems(name, get_categories(name), training_dicts)
    return problems


def evaluation_problems(cfg: CfgNode) -> list[str]:
    """A typing error here would come out when the training is over."""
    problems = []
    for build, name in (
        (build_engine, cfg.TEST.OVD.ENGINE),
        (lvis_protocol, cfg.TEST.OVD.PROTOCOL),
    ):
        try:
            build(name)
        except (ValueError, ImportError) as error:
            problems.append(str(error))
    return problems


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


def classify_with_problems(cfg: CfgNode) -> list[str]:
    """Models that the teacher on crops cannot take the place of."""
    key = f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}"
    if cfg.MODEL.OVD.CLASSIFY_WITH == "detector":
        return []
    if cfg.MODEL.META_ARCHITECTURE != "OpenVocabularyRCNN":
        return [
            f"{key} needs MODEL.META_ARCHITECTURE OpenVocabularyRCNN, it is "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        ]
    return []


def augmentation_problems(cfg: CfgNode) -> list[str]:
    """What Detectron2's test-time augmentation, which runs after training, would stop at."""
    refused = {
        f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}": (
            cfg.MODEL.OVD.CLASSIFY_WITH != "detector"
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


def _dataset_problems(cfg: CfgNode, training: bool) -> Iterable[str]:
    for key in ("TRAIN", "TEST") if training else ("TEST",):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                known = ", ".join(sorted(DatasetCatalog.list()))
                yield f"DATASETS.{key}: '{name}' is not registered; registered: {known}"
                continue
            if problem := missing_file_problem(name):
                yield f"DATASETS.{key}: {problem}"
                continue
            try:
                num_categories = len(get_categories(name))
            except ValueError as error:
                yield f"DATASETS.{key}: {error}"
                continue
            if key == "TRAIN" and num_categories != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
                yield (
                    f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but "
                    f"'{name}' has {num_categories} categories: set it to {num_categories}"
                )


def _open_vocabulary_problems(
    cfg: CfgNode, training_dicts: list[dict[str, Any]] | None
) -> Iterable[str]:
    training = training_dicts is not None
    yield from _choice_problems(cfg)
    vocabulary = None
    path = cfg.MODEL.OVD.VOCABULARY
    if path:
        try:
            vocabulary = Vocabulary.load(path)
        except (OSError, ValueError) as error:
            yield f"MODEL.OVD.VOCABULARY: {error}"
    elif training:
        yield "MODEL.OVD.VOCABULARY is empty: make one with tools/build_vocabulary.py"
    if vocabulary is not None:
        yield from _vocabulary_problems(cfg, vocabulary, training)
    variant = VARIANTS.get(cfg.MODEL.OVD.VARIANT)
    if training_dicts is not None and variant is not None and variant.distils:
        yield from _distillation_problems(cfg, vocabulary, training_dicts)


def _choice_problems(cfg: CfgNode) -> Iterable[str]:
    ovd = cfg.MODEL.OVD
    choices = {
        "VARIANT": tuple(VARIANTS),
        "NOVEL_TRAINING_LOGITS": NOVEL_LOGIT_MODES,
        "BACKGROUND": BACKGROUNDS,
        "CLASSIFY_WITH": CLASSIFY_WITH,
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
    reason = "must be True: novel names have no weights of their own"
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        yield f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG {reason}"
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        yield f"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {reason}"
    if not cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS:
        yield "DATALOADER.FILTER_NOVEL_ANNOTATIONS must be True: novel boxes are not for training"
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead":
        yield (
            "MODEL.ROI_MASK_HEAD.NAME: PointRendMaskHead has a mask for each of NUM_CLASSES "
            "categories; use ClassAgnosticPointRendMaskHead"
        )


def _vocabulary_problems(cfg: CfgNode, vocabulary: Vocabulary, training: bool) -> Iterable[str]:
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
    for name in cfg.DATASETS.TRAIN if training else cfg.DATASETS.TEST:
        try:
            table = get_categories(name)
        except (KeyError, FileNotFoundError, ValueError):
            continue  # reported with the data sets
        if list(vocabulary.names) != table.names:
            yield (
                f"the names in {path} ({len(vocabulary)}) are not the categories of '{name}' "
                f"({len(table)}) in their order: build it with --dataset {name}"
            )
        elif vocabulary.novel.tolist() != table.is_novel:
            yield (
                f"{path} calls {int(vocabulary.novel.sum())} names novel, '{name}' "
                f"{sum(table.is_novel)}: build it again with --dataset {name}"
            )


def _distillation_problems(
    cfg: CfgNode, vocabulary: Vocabulary | None, training_dicts: list[dict[str, Any]]
) -> Iterable[str]:
    """The teacher's embeddings come from a cache or from the teacher: one of them, and sound."""
    keys = "MODEL.OVD.DISTILLATION"
    distillation = cfg.MODEL.OVD.DISTILLATION
    if not distillation.CACHE and not distillation.ONLINE.PROPOSALS:
        yield (
            f"{keys}.CACHE is empty: make one with tools/cache.py build, or name the proposals as "
            f"{keys}.ONLINE.PROPOSALS to train without a cache"
        )
    if distillation.CACHE and distillation.ONLINE.PROPOSALS:
        yield (
            f"{keys}.CACHE is '{distillation.CACHE}' and {keys}.ONLINE.PROPOSALS "
            f"'{distillation.ONLINE.PROPOSALS}': empty the one that is not meant"
        )
    if distillation.CACHE:
        yield from _cache_problems(cfg, vocabulary, training_dicts)
    if distillation.ONLINE.PROPOSALS:
        yield from _online_problems(cfg, vocabulary, training_dicts)


def _online_problems(
    cfg: CfgNode, vocabulary: Vocabulary | None, training_dicts: list[dict[str, Any]]
) -> Iterable[str]:
    online, key = cfg.MODEL.OVD.DISTILLATION.ONLINE, "MODEL.OVD.DISTILLATION.ONLINE"
    if online.RESIZE not in RESIZE_CHOICES:
        yield f"{key}.RESIZE: '{online.RESIZE}' is not one of {', '.join(RESIZE_CHOICES)}"
    if online.BATCH_SIZE < 1:
        yield f"{key}.BATCH_SIZE: {online.BATCH_SIZE} crops in one pass, expected at least 1"
    proposals = teacher = None
    try:
        proposals = ProposalStore(online.PROPOSALS)
    except (OSError, CacheError) as error:
        yield f"{key}.PROPOSALS: {error}"
    try:
        teacher = load_teacher(cfg, device="cpu")
    except (OSError, ValueError, RuntimeError) as error:  # open_clip: RuntimeError, no download
        yield f"MODEL.OVD.TEACHER, which {key} needs: {error}"
    yield from online_problems(
        proposals,
        teacher,
        teacher_fingerprint=None if vocabulary is None else vocabulary.teacher,
        embedding_dim=cfg.MODEL.OVD.EMBEDDING_DIM,
        image_ids=[record["image_id"] for record in training_dicts],
    )


def _cache_problems(
    cfg: CfgNode, vocabulary: Vocabulary | None, training_dicts: list[dict[str, Any]]
) -> Iterable[str]:
    try:
        cache = EmbeddingCache(cfg.MODEL.OVD.DISTILLATION.CACHE)
    except (OSError, CacheError) as error:
        yield f"MODEL.OVD.DISTILLATION.CACHE: {error}"
        return
    teacher = vocabulary.teacher if vocabulary is not None else cache.manifest.teacher
    yield from check_compatible(
        cache,
        teacher_fingerprint=teacher,
        embedding_dim=cfg.MODEL.OVD.EMBEDDING_DIM,
        image_ids=[record["image_id"] for record in training_dicts],
    )
