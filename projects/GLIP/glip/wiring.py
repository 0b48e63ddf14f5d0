"""From a config to the captions of training and test images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from torch import nn

from ovd_d2.data.categories import get_categories
from ovd_d2.data.passengers import Passenger
from ovd_d2.data.registration import register_data_sets
from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.projects.glip.evaluation.flickr_recall import PhraseRecallEvaluator
from ovd_d2.projects.glip.grounding import CAPTION, is_grounding_set, is_phrase_set
from ovd_d2.projects.glip.negative_captions import NegativeCaptions
from ovd_d2.projects.glip.passengers import (
    DetectionSet,
    PhrasesToFind,
    TrainingPrompts,
    fixed,
)
from ovd_d2.projects.glip.prompts import Tokenizer, load_tokenizer
from ovd_d2.projects.glip.prompts.detection import (
    AllNames,
    DetectionPrompts,
    PublicPrompts,
    phrases_of,
    with_phrases,
)
from ovd_d2.systems import IdleKeys
from ovd_d2.vocabulary import Categories, Vocabulary

KEY = "MODEL.GLIP.PROMPTS"
SAMPLED, PUBLIC, ALL = "sampled", "public", "all"
NAMES = (SAMPLED, PUBLIC, ALL)


def passengers(cfg: CfgNode) -> Sequence[Passenger]:
    """A training image's caption, and which of its tokens each box is.

    Raises:
        SetupError: the tokenizer, a data set or a name of its categories is at fault.
    """
    tokenizer = load_tokenizer(cfg.MODEL.GLIP.TOKENIZER)
    register_data_sets(cfg.DATASETS.TRAIN)
    detection = [one for one in cfg.DATASETS.TRAIN if not is_grounding_set(one)]
    return [
        TrainingPrompts(
            tokenizer,
            {name: detection_set(cfg, name, tokenizer) for name in detection},
            {
                name: NegativeCaptions(captions_of(name), tokenizer)
                for name in cfg.MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS
            },
        )
    ]


def test_passengers(cfg: CfgNode, dataset_name: str) -> Sequence[Passenger]:
    """The phrases of an image, in a data set that is evaluated for phrases."""
    if not is_phrase_set(dataset_name):
        return []
    return [PhrasesToFind(load_tokenizer(cfg.MODEL.GLIP.TOKENIZER))]


def validation_passengers(cfg: CfgNode, dataset_name: str) -> Sequence[Passenger]:
    """As of a training image, but the names that an image of a test set is asked for stay.

    Raises:
        SetupError: the tokenizer or a name of a category is at fault.
    """
    register_data_sets([dataset_name])
    tokenizer = load_tokenizer(cfg.MODEL.GLIP.TOKENIZER)
    names = [] if is_grounding_set(dataset_name) else [dataset_name]
    sets = {name: detection_set(cfg, name, tokenizer) for name in names}
    return [TrainingPrompts(tokenizer, sets, generator_of=fixed)]


def phrase_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> PhraseRecallEvaluator:
    """Recall of the phrases of a grounding set."""
    return PhraseRecallEvaluator(
        dataset_name, entities=cfg.MODEL.GLIP.ENTITIES, output_dir=output_folder
    )


def hooks(cfg: CfgNode, model: nn.Module) -> Sequence[HookBase]:
    """None; a model without a vocabulary gets the names that it will be trained on.

    They are in its checkpoints then, and in the copy whose weights are averaged.
    """
    part = open_vocabulary_part(model)
    sets = [one for one in cfg.DATASETS.TRAIN if not is_grounding_set(one)]
    if part is not None and part.vocabulary is None and sets:
        part.set_vocabulary(Vocabulary.of_names(_joined(sets)))
    return []


def _joined(data_sets: Sequence[str]) -> Categories:
    """Every name of several data sets once; novel where none has boxes of it."""
    novel: dict[str, bool] = {}
    for one in map(get_categories, data_sets):
        for name, flag in zip(one.names, one.novel, strict=True):
            novel[name] = flag and novel.get(name, True)
    return Categories(list(novel), list(novel.values()))


def detection_set(cfg: CfgNode, name: str, tokenizer: Tokenizer) -> DetectionSet:
    """How the images of a detection set are asked for its categories.

    Novel ones are never negatives where their boxes are left out: images may show them.

    Raises:
        SetupError: its names do not fit into prompts.
    """
    prompts, categories = cfg.MODEL.GLIP.PROMPTS, get_categories(name)
    contiguous = {one: k for k, one in enumerate(categories.ids)}
    drop_novel = cfg.DATALOADER.FILTER_NOVEL_ANNOTATIONS
    novel = [k for k, flag in enumerate(categories.novel) if flag and drop_novel]
    names = with_phrases(categories.names, phrases_of(prompts.PHRASES))
    if novel and prompts.NAMES in (ALL, PUBLIC):
        raise SetupError(
            [
                f"{KEY}.NAMES {prompts.NAMES}, '{name}': images would be asked for its "
                f"{len(novel)} novel names, whose boxes are left out: set {KEY}.NAMES {SAMPLED}, "
                "or DATALOADER.FILTER_NOVEL_ANNOTATIONS False"
            ]
        )
    try:
        if prompts.NAMES == ALL:
            return DetectionSet(AllNames(names, tokenizer, shuffle=prompts.SHUFFLE), contiguous)
        if prompts.NAMES == PUBLIC:
            return DetectionSet(PublicPrompts(names, tokenizer), contiguous)
        sampled = DetectionPrompts(names, tokenizer, negatives=prompts.NEGATIVES, withheld=novel)
    except ValueError as error:
        raise SetupError([f"{KEY}.NAMES {prompts.NAMES}, '{name}': {error}"]) from error
    return DetectionSet(sampled, contiguous)


def captions_of(name: str) -> list[str]:
    """Those of a grounding set."""
    return [one[CAPTION] for one in DatasetCatalog.get(name)]


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant."""
    prompts = cfg.MODEL.GLIP.PROMPTS
    if prompts.NAMES not in NAMES:
        yield f"{KEY}.NAMES: '{prompts.NAMES}' is not one of {', '.join(NAMES)}"
    if prompts.NEGATIVES < 0:
        yield f"{KEY}.NEGATIVES: {prompts.NEGATIVES}, expected at least 0"
    yield from row_problems(prompts.PHRASES)
    for name in prompts.NEGATIVE_CAPTIONS:
        if name not in cfg.DATASETS.TRAIN:
            yield f"{KEY}.NEGATIVE_CAPTIONS: '{name}' is not in DATASETS.TRAIN"


def row_problems(rows: Sequence[Any]) -> Iterator[str]:
    """Of what is asked for in place of names."""
    for row in rows:
        sound = isinstance(row, list | tuple) and [type(one) for one in row] == [str] * 4
        if not sound or not row[2].strip():
            yield f"{KEY}.PHRASES: {row} is no row of texts [category, prefix, name, suffix]"


def idle_keys(cfg: CfgNode) -> Iterator[IdleKeys]:
    """Keys that the way to make prompts does not read."""
    names = cfg.MODEL.GLIP.PROMPTS.NAMES
    if names != ALL:
        yield (f"{KEY}.SHUFFLE",), f"{KEY}.NAMES is {names}"
    if names != SAMPLED:
        yield (f"{KEY}.NEGATIVES",), f"{KEY}.NAMES is {names}"
