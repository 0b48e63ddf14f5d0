"""From a config to the model and the loaders; the only place that reads the vocabulary file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.modeling import build_model
from torch import nn
from torch.utils.data import DataLoader, Sampler

from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.data.base_only import drop_annotations
from ovd_d2.data.categories import get_categories
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper, WithPassengers, passengers_of
from ovd_d2.data.passengers import DATA_SET, OriginalImage
from ovd_d2.data.registration import register_data_sets
from ovd_d2.data.train_loader import Mapper, build_resumable_train_loader
from ovd_d2.engine.checkpoint import WHOLE_MODEL, SafeCheckpointer
from ovd_d2.errors import SetupError
from ovd_d2.modeling.image_branches import CropBranch
from ovd_d2.modeling.open_vocabulary import (
    open_vocabulary_heads,
    open_vocabulary_part,
    reads_names,
    takes_vocabulary,
)
from ovd_d2.modeling.roi_heads import OpenVocabularyROIHeads
from ovd_d2.systems import system_of
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary

logger = logging.getLogger(__name__)

DETECTOR = "detector"
# Of DATALOADER.SAMPLER_TRAIN
WEIGHTED, REPEAT_FACTOR = "WeightedTrainingSampler", "RepeatFactorTrainingSampler"
# MODEL.OVD.CLASSIFY_WITH -> where the scores of the ROI heads come from.
CLASSIFY_WITH = {DETECTOR: "", "clip_crops": "image", "text_and_clip_crops": "ensemble"}


@contextmanager
def vocabulary_of(test_set: str, model: nn.Module) -> Iterator[None]:
    """The model has its vocabulary's entries for the categories of a data set, matched by name.

    Their order is the data set's, and those it does not have are left out. Afterwards the model
    has the whole vocabulary again. A model without a vocabulary stays as it is. One that reads
    nothing but names has those of the data set, whatever its vocabulary, unless the images of the
    data set have captions to be asked for.

    Raises:
        SetupError: the data set has a category that the vocabulary does not name; it has captions
            in place of categories, which the model does not read.
    """
    register_data_sets([test_set])
    part = open_vocabulary_part(model)
    whole = None if part is None else part.vocabulary
    named, captioned = reads_names(model), MetadataCatalog.get(test_set).get("grounding", False)
    if part is None or (captioned if named else whole is None):
        yield
        return
    if captioned:
        raise SetupError(
            [
                f"'{test_set}' is a grounding set, its images are asked for their captions: name a "
                "data set with categories, or take a detector that reads captions"
            ]
        )
    if named:
        part.set_vocabulary(Vocabulary.of_names(get_categories(test_set)))
    else:
        assert whole is not None
        part.set_vocabulary(in_order_of(test_set, whole))
    try:
        yield
    finally:
        part.set_vocabulary(whole)


def in_order_of(test_set: str, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary's entries for the categories of a data set; errors of `vocabulary_of`."""
    names = get_categories(test_set).names
    if names == list(vocabulary.names):
        return vocabulary
    try:
        selected = vocabulary.select(names)
    except KeyError as error:
        raise SetupError([f"category of '{test_set}': {error.args[0]}"]) from error
    logger.info(
        "'%s' lists %d of the vocabulary's %d names in its own order: matched by name.",
        *(test_set, len(names), len(vocabulary)),
    )
    return selected


def build_open_vocabulary_model(
    cfg: CfgNode, required: Sequence[str] | None = WHOLE_MODEL
) -> nn.Module:
    """A model in eval mode with the weights and the vocabulary of the config.

    Args:
        cfg: the complete config.
        required: beginnings of the names of parameters that `MODEL.WEIGHTS` must hold; None where
            the model will be trained.

    Raises:
        SetupError: the weights are missing, damaged or another model's.
    """
    model = build_model(cfg)
    SafeCheckpointer(model, required=required).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def load_training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """The training images with their base annotations; novel ones are dropped by category.

    Where `DATALOADER.FILTER_NOVEL_ANNOTATIONS` is False all annotations stay. Images left without
    annotation go where `DATALOADER.FILTER_EMPTY_ANNOTATIONS` says. A detector of a vocabulary gets
    its classes: each training set's categories are found in the vocabulary by their names.
    """
    records = get_base_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        drop_novel=cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    system = system_of(cfg)
    if not takes_vocabulary(cfg) or (system is not None and system.free_categories):
        return records
    vocabulary = configured_vocabulary(cfg)
    return records if vocabulary is None else in_classes_of(vocabulary, records)


def in_classes_of(
    vocabulary: Vocabulary, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Annotations with the place of their category's name in a vocabulary as `category_id`.

    Args:
        vocabulary: has every name of the data sets.
        records: of :func:`get_base_dataset_dicts`, of any number of data sets.
    """
    names = {one: get_categories(one).names for one in {one[DATA_SET] for one in records}}
    places = {
        name: [vocabulary.index(one) for one in of_set]
        for name, of_set in names.items()
        if of_set != vocabulary.names
    }
    return [
        _with_classes(one, places[one[DATA_SET]]) if one[DATA_SET] in places else one
        for one in records
    ]


def _with_classes(record: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
    annotations = [
        {**one, "category_id": places[one["category_id"]]} for one in record.get("annotations", ())
    ]
    return {**record, "annotations": annotations}


def get_base_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = False,
    drop_novel: bool = True,
    proposal_files: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Detectron2's `get_detection_dataset_dicts` without annotations of novel categories.

    Args:
        names: a registered data set, or several.
        filter_empty: leave out images without annotation (ViLD distils from them, so: no).
        drop_novel: False keeps novel annotations: test sets, and the supervised upper line.
        proposal_files: Detectron2's stored proposals, one file per data set.

    Raises:
        SetupError: another number of proposal files than of data sets.
    """
    names = [names] if isinstance(names, str) else names
    if proposal_files is not None and len(proposal_files) != len(names):
        raise SetupError(
            [
                f"DATASETS.PROPOSAL_FILES_TRAIN has {len(proposal_files)} files for {len(names)} "
                "data sets in DATASETS.TRAIN: name one per data set, or set MODEL.LOAD_PROPOSALS "
                "False"
            ]
        )
    dataset_dicts: list[dict[str, Any]] = []
    for k, name in enumerate(names):
        register_data_sets([name])
        records = get_detection_dataset_dicts(
            name,
            filter_empty=False,
            proposal_files=None if proposal_files is None else [proposal_files[k]],
            check_consistency=False,
        )
        if drop_novel:
            records = drop_annotations(records, get_categories(name).novel)
        dataset_dicts += [{**one, DATA_SET: name} for one in records]
    if filter_empty:
        dataset_dicts = filter_images_with_only_crowd_annotations(dataset_dicts)
    return dataset_dicts


def build_train_loader(
    cfg: CfgNode, *, mapper: Mapper | None = None, sampler: Sampler | None = None
) -> Iterable[list[dict[str, Any]]]:
    """A loader that can be resumed, over base annotations and what the system adds to them.

    Args:
        cfg: the complete config.
        mapper: a project's own, with its augmentations; None: `OpenVocabularyDatasetMapper`. What
            the system needs rides along with either (:mod:`ovd_d2.data.passengers`).
        sampler: a project's own; None: that of the config. Samplers see what the model sees:
            repeat factors are those of the base annotations.
    """
    if mapper is None:
        mapper = OpenVocabularyDatasetMapper(cfg, is_train=True)
    elif passengers := passengers_of(cfg):
        mapper = WithPassengers(mapper, passengers)
    records, system = load_training_dicts(cfg), system_of(cfg)
    if sampler is None and cfg.DATALOADER.SAMPLER_TRAIN == WEIGHTED:
        sampler = weighted_sampler(cfg, records)
    own_categories = system is not None and system.free_categories
    if sampler is None and own_categories and cfg.DATALOADER.SAMPLER_TRAIN == REPEAT_FACTOR:
        sampler = repeat_factor_sampler(cfg, records)
    options = {} if sampler is None else {"sampler": sampler}
    loader = build_resumable_train_loader(cfg, mapper=mapper, dataset=records, **options)
    return loader if system is None else system.wrap_loader(cfg, loader)


def weighted_sampler(
    cfg: CfgNode, records: Sequence[Mapping[str, Any]]
) -> RepeatFactorTrainingSampler:
    """How often the images of each training set are seen per epoch: `DATASETS.TRAIN_REPEAT_FACTOR`.

    Detectron2's own loads the data sets once more to count their images, and counts wrongly where
    images were left out since (novel annotations are dropped first here).

    Raises:
        SetupError: see :func:`repeat_factor_problems`.
    """
    if problems := repeat_factor_problems(cfg):
        raise SetupError(problems)
    factors = dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)
    return RepeatFactorTrainingSampler(
        torch.tensor([float(factors.get(one[DATA_SET], 1)) for one in records])
    )


def repeat_factor_sampler(
    cfg: CfgNode, records: Sequence[Mapping[str, Any]]
) -> RepeatFactorTrainingSampler:
    """As Detectron2's, of data sets that each have categories of their own.

    They are counted by their names: by the bare `category_id`, as Detectron2 counts, the first
    category of one set would be that of another.
    """
    names = {name: get_categories(name).names for name in {one[DATA_SET] for one in records}}
    named = [
        {
            "annotations": [
                {"category_id": names[record[DATA_SET]][one["category_id"]]}
                for one in record.get("annotations", ())
            ]
        }
        for record in records
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        named, cfg.DATALOADER.REPEAT_THRESHOLD
    )
    return RepeatFactorTrainingSampler(factors)


def repeat_factor_problems(cfg: CfgNode) -> list[str]:
    """Factors that are not positive, or of a data set that is not trained on."""
    key, sets = "DATASETS.TRAIN_REPEAT_FACTOR", tuple(cfg.DATASETS.TRAIN)
    if cfg.DATALOADER.SAMPLER_TRAIN != WEIGHTED:
        return []
    problems = []
    for name, factor in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        if name not in sets:
            problems.append(f"{key} names '{name}', which is not in DATASETS.TRAIN {sets}")
        if not factor > 0:
            problems.append(f"{key} of '{name}' is {factor}, expected more than 0")
    return problems


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Detectron2's test loader, with what the system needs at test time; for the teacher on crops
    with the original images."""
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=False)
    system = system_of(cfg)
    options["passengers"] = [] if system is None else [*system.test_passengers(cfg, dataset_name)]
    if cfg.MODEL.OVD.CLASSIFY_WITH != DETECTOR:
        options["passengers"].append(OriginalImage())
    return build_detection_test_loader(
        cfg, dataset_name, mapper=OpenVocabularyDatasetMapper(**options)
    )


def classify_crops(cfg: CfgNode, model: nn.Module) -> None:
    """The teacher on crops becomes the model's image branch, as `MODEL.OVD.CLASSIFY_WITH` says.

    "clip_crops": it alone scores the proposals. "text_and_clip_crops": it is the image branch
    beside the text branch (the paper's ViLD-text + CLIP). "detector": nothing changes.

    Raises:
        SetupError: the model's heads take no image branch; the teacher cannot be had.
    """
    if cfg.MODEL.OVD.CLASSIFY_WITH == DETECTOR:
        return
    heads = getattr(model, "roi_heads", None)
    if not isinstance(heads, OpenVocabularyROIHeads):
        raise SetupError(
            [
                f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH}: "
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} takes no image branch; name one "
                f"of {', '.join(open_vocabulary_heads())}"
            ]
        )
    teacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
    branch = CropBranch(partial(embed_proposals, teacher=teacher))
    heads.set_image_branch(branch, scores=CLASSIFY_WITH[cfg.MODEL.OVD.CLASSIFY_WITH])
