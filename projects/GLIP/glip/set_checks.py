"""What weights, texts and data sets of a run must be; looked at before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from detectron2.config import CfgNode

from ovd_d2.data.categories import get_categories
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.evaluation.flickr_recall import phrase_problems
from ovd_d2.projects.glip.grounding import (
    cut_notices,
    is_grounding_set,
    is_phrase_set,
    readable_records,
)
from ovd_d2.projects.glip.prompts import Tokenizer, load_tokenizer
from ovd_d2.projects.glip.tuning import FULL, PROMPT
from ovd_d2.projects.glip.wiring import ALL, KEY, detection_set
from ovd_d2.systems import SetupContext

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
    learned = []
    if context.training:
        yield from _tuning_problems(cfg)
        learned += cfg.DATASETS.TRAIN
        learned += cfg.DATASETS.TEST if cfg.TEST.OVD.VALIDATION_LOSS else ()
    for name in dict.fromkeys((*learned, *cfg.DATASETS.TEST)):
        found = name in cfg.DATASETS.TEST and is_phrase_set(name)  # its phrases are
        if found or (name in learned and is_grounding_set(name)):
            yield from _caption_problems(cfg, name, tokenizer, context, evaluated=found)
        elif name in learned:
            yield from _name_problems(cfg, name, tokenizer)


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


def _names_of(sets: Sequence[str]) -> dict[str, list[str]]:
    """The names of the categories of those that are detection sets and can be read."""
    found = {}
    for name in dict.fromkeys(sets):
        with suppress(*_ELSEWHERE):
            if not is_grounding_set(name):
                found[name] = get_categories(name).names
    return found


def _name_problems(cfg: CfgNode, name: str, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Of a detection set that losses are computed of."""
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


def _tuning_problems(cfg: CfgNode) -> Iterator[str]:
    """Of tuning a pretrained model."""
    mode = cfg.MODEL.GLIP.TUNING
    if mode != FULL and not cfg.MODEL.WEIGHTS:
        yield (
            f"MODEL.WEIGHTS is empty, but MODEL.GLIP.TUNING {mode} keeps most of the model as it "
            "is given, which would be noise: name in MODEL.WEIGHTS those of a trained GLIP, or set "
            f"MODEL.GLIP.TUNING {FULL}"
        )
    if mode == PROMPT:
        yield from _moving_names(cfg)


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
    names = _names_of([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
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
