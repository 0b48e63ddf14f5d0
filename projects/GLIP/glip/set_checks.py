"""What weights, texts and data sets of a run must be; looked at before it starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.categories import get_categories
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.evaluation.flickr_recall import phrase_problems
from ovd_d2.projects.glip.grounding import (
    PHRASES,
    cut_notices,
    is_grounding_set,
    is_phrase_set,
    readable_records,
)
from ovd_d2.projects.glip.model_checks import text_encoder_problems, tuning_problems
from ovd_d2.projects.glip.prompts import Tokenizer, load_tokenizer
from ovd_d2.projects.glip.prompts.chunks import asked_chunks
from ovd_d2.projects.glip.prompts.detection import phrases_of, with_phrases
from ovd_d2.projects.glip.tuning import PROMPT
from ovd_d2.projects.glip.wiring import ALL, KEY, detection_set, row_problems
from ovd_d2.systems import SetupContext
from ovd_d2.vocabulary import configured_vocabulary

# No such data set, no file, none in COCO's format: the checks that all systems share say so.
_ELSEWHERE = (KeyError, OSError, ValueError)
_PLACES = "prompt tuning learns an offset for each place of one caption"


def problems(cfg: CfgNode, context: SetupContext) -> Iterator[str]:
    """Of tokenizer and weights; of names, captions and phrases of the data sets."""
    tokenizer = None
    try:
        tokenizer = load_tokenizer(cfg.MODEL.GLIP.TOKENIZER)
    except SetupError as error:
        yield from (f"MODEL.GLIP.TOKENIZER: {one}" for one in error.problems)
    yield from text_encoder_problems(cfg, training=context.training)
    if context.training:
        yield from tuning_problems(cfg)
        yield from _moving_names(cfg) if cfg.MODEL.GLIP.TUNING == PROMPT else ()
    if list(row_problems(cfg.MODEL.GLIP.PROMPTS.PHRASES)):
        return  # said of the key
    yield from _unknown_categories(cfg)
    yield from _set_problems(cfg, tokenizer, context)
    if tokenizer is not None:
        yield from _asked_problems(cfg, tokenizer, training=context.training)


def _set_problems(
    cfg: CfgNode, tokenizer: Tokenizer | None, context: SetupContext
) -> Iterator[str]:
    """Of the sets that losses are computed of, and those whose phrases are to be found."""
    learned = []
    if context.training:
        learned += cfg.DATASETS.TRAIN
        learned += cfg.DATASETS.TEST if cfg.TEST.OVD.VALIDATION_LOSS else ()
    context.notices.extend(_name_notices(cfg.DATASETS.TEST))
    for name in dict.fromkeys((*learned, *cfg.DATASETS.TEST)):
        found = name in cfg.DATASETS.TEST and is_phrase_set(name)  # its phrases are
        if found or (name in learned and is_grounding_set(name)):
            yield from _caption_problems(cfg, name, tokenizer, context, evaluated=found)
        elif name in learned:
            yield from _name_problems(cfg, name, tokenizer)


def _asked_problems(cfg: CfgNode, tokenizer: Tokenizer, *, training: bool) -> Iterator[str]:
    """Of names that do not fit into the captions which test images are asked for them with."""
    phrases, size = phrases_of(cfg.MODEL.GLIP.PROMPTS.PHRASES), cfg.MODEL.GLIP.NAMES_PER_CAPTION
    for source, names in _asked(cfg, training).items():
        try:
            asked_chunks(source, with_phrases(names, phrases), tokenizer, size)
        except SetupError as error:
            yield from error.problems


def _asked(cfg: CfgNode, training: bool) -> dict[str, list[str]]:
    """All that a model of this config will be asked for, by what it is of."""
    found = _names_of([one for one in cfg.DATASETS.TEST if not is_phrase_set(one)])
    with suppress(SetupError):  # the check of vocabularies says so
        if vocabulary := configured_vocabulary(cfg):
            found[cfg.MODEL.OVD.VOCABULARY] = list(vocabulary.words)
    # It is given the names it is trained on. One that is too long has been found by itself.
    if training and not cfg.MODEL.OVD.VOCABULARY and cfg.MODEL.GLIP.NAMES_PER_CAPTION:
        trained = _names_of(_detection_sets(cfg.DATASETS.TRAIN))
        found["DATASETS.TRAIN"] = list(dict.fromkeys(chain(*trained.values())))
    return found


def _unknown_categories(cfg: CfgNode) -> Iterator[str]:
    """Other words for what is asked nowhere: a name that is misspelt."""
    rows = cfg.MODEL.GLIP.PROMPTS.PHRASES
    sets = _detection_sets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    names = _names_of(sets if rows else [])
    if not rows or len(names) < len(sets):
        return  # a set that is not there may have them
    known = set(chain(*names.values()))
    with suppress(SetupError):  # the check of vocabularies says so
        if vocabulary := configured_vocabulary(cfg):
            known.update(vocabulary.words)
    for category, *_ in rows:
        if category not in known:
            near = difflib.get_close_matches(category, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            yield (
                f"{KEY}.PHRASES: no set of DATASETS.TRAIN and DATASETS.TEST has a category "
                f"'{category}'{hint}"
            )


def _name_notices(sets: Sequence[str]) -> Iterator[str]:
    """Grounding sets that are evaluated as if they had categories."""
    for name in sets:
        if is_grounding_set(name) and not is_phrase_set(name):
            where = MetadataCatalog.get(name).get("own_file", "its metadata")
            yield (
                f"DATASETS.TEST '{name}' has captions with spans, but its images are asked for the "
                f"names of its categories: set evaluator_type {PHRASES} in {where}, and they are "
                "asked for their phrases"
            )


def _caption_problems(
    cfg: CfgNode,
    name: str,
    tokenizer: Tokenizer | None,
    context: SetupContext,
    *,
    evaluated: bool,
) -> Iterator[str]:
    """Of a grounding set."""
    records, problems = readable_records(name, evaluated=evaluated)
    yield from problems
    if tokenizer is not None:
        context.notices.extend(cut_notices(name, records, tokenizer))
    if evaluated and records:
        yield from phrase_problems(name, records, cfg.MODEL.GLIP.ENTITIES)


def _detection_sets(sets: Sequence[str]) -> list[str]:
    return [one for one in dict.fromkeys(sets) if not is_grounding_set(one)]


def _names_of(sets: Sequence[str]) -> dict[str, list[str]]:
    """The names of the categories of those that can be read."""
    found = {}
    for name in sets:
        with suppress(*_ELSEWHERE):
            found[name] = get_categories(name).names
    return found


def _name_problems(cfg: CfgNode, name: str, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Of a detection set that losses are computed of."""
    if name not in DatasetCatalog:
        return  # said elsewhere
    if name in cfg.MODEL.GLIP.PROMPTS.NEGATIVE_CAPTIONS:
        yield f"{KEY}.NEGATIVE_CAPTIONS: '{name}' has no captions with spans"
    if tokenizer is None:
        return
    try:
        detection_set(cfg, name, tokenizer)
    except SetupError as error:
        yield from error.problems
    except _ELSEWHERE:
        return


def _moving_names(cfg: CfgNode) -> Iterator[str]:
    """Prompt tuning learns an offset for each place of a caption: there a name has to stay."""
    prompts, one_caption = cfg.MODEL.GLIP.PROMPTS, cfg.MODEL.GLIP.NAMES_PER_CAPTION
    if prompts.NAMES != ALL or prompts.SHUFFLE:
        yield (
            f"{KEY}.NAMES {prompts.NAMES}, SHUFFLE {prompts.SHUFFLE}: {_PLACES}, and names change "
            f"theirs: set {KEY}.NAMES {ALL} {KEY}.SHUFFLE False"
        )
    for name in filter(is_grounding_set, cfg.DATASETS.TRAIN):
        yield f"DATASETS.TRAIN: {_PLACES}, and each image of '{name}' has its own: leave it out"
    names = _names_of(_detection_sets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    first = next(iter(names), "")
    for one, mine in names.items():
        if mine != names[first]:
            yield (
                f"DATASETS: {_PLACES}, and '{one}' has other names than '{first}', or another "
                "order: leave one of them out"
            )
    if 0 < one_caption < max(map(len, names.values()), default=0):
        yield (
            f"MODEL.GLIP.NAMES_PER_CAPTION {one_caption}: {_PLACES}, and test images would be "
            "asked several: set it to 0"
        )
