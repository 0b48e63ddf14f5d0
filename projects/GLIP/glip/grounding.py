"""Grounding data: captions whose phrases have boxes, in MDETR's JSON layout.

COCO's format, in which an image has a `caption` and an annotation `tokens_positive`, the character
spans of its phrase. Any data set of `OVD_DATASETS` may be in it.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ovd_d2.data.coco_json import load_coco_json
from ovd_d2.data.mapper import objects_of
from ovd_d2.data.registration import DataSet
from ovd_d2.errors import SetupError, brief
from ovd_d2.projects.glip.prompts import Tokenizer
from ovd_d2.projects.glip.prompts.spans import Span, span_problem
from ovd_d2.projects.glip.prompts.tokenizer import MAX_TOKENS

logger = logging.getLogger(__name__)

CAPTION, SPANS, EVALUATED = "caption", "tokens_positive", "tokens_positive_eval"
GROUNDING = "grounding"  # evaluator_type of training sets: they are not evaluated
PHRASES = "phrase_grounding"  # of sets whose phrases are to be found

_SHOWN = 20  # records named in one list
_FOLDER = "mdetr_annotations"
_FLICKR = "flickr30k/flickr30k_images"
# name -> (file, folder of images), as MDETR published them
_SETS = {
    "flickr30k_separate_train": ("final_flickr_separateGT_train.json", f"{_FLICKR}/train"),
    "flickr30k_separate_val": ("final_flickr_separateGT_val.json", f"{_FLICKR}/val"),
    "flickr30k_separate_test": ("final_flickr_separateGT_test.json", f"{_FLICKR}/test"),
    "flickr30k_merged_val": ("final_flickr_mergedGT_val.json", f"{_FLICKR}/val"),
    "flickr30k_merged_test": ("final_flickr_mergedGT_test.json", f"{_FLICKR}/test"),
    # of COCO's train2014 and GQA's images, linked into one folder
    "goldg_mixed_train": ("final_mixed_train.json", "goldg/images"),
    "refcoco_train": ("finetune_refcoco_train.json", "coco/train2014"),
    "refcoco+_train": ("finetune_refcoco+_train.json", "coco/train2014"),
    "refcocog_train": ("finetune_refcocog_train.json", "coco/train2014"),
}


def grounding_sets() -> Iterator[DataSet]:
    """The public ones, below the folder of all data sets."""
    for name, (file, images) in _SETS.items():
        kind = GROUNDING if name.endswith("_train") else PHRASES
        metadata = {"grounding": True}
        yield DataSet(name, f"{_FOLDER}/{file}", images, load_grounding_json, kind, metadata)


def load_grounding_json(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """Detectron2's dicts with `caption`, their annotations with `tokens_positive`.

    Boxes without area are left out.

    Raises:
        SetupError: an image without a caption, an annotation without spans or with some that do
            not fit its caption; each is named.
        ValueError: the file is not in COCO's format.
    """
    records = load_coco_json(json_file, image_root, name)
    if problems := list(record_problems(records, json_file)):
        raise SetupError(problems)
    return [
        {**one, "annotations": [a for a in one["annotations"] if min(a["bbox"][2:]) > 0]}
        for one in records
    ]


def record_problems(records: Iterable[Mapping[str, Any]], source: str) -> Iterator[str]:
    """What is wrong with captions and spans.

    Args:
        records: Detectron2's dicts.
        source: the file they are of, for messages.
    """
    found = 0
    for record in records:
        for problem in _problems_of(record):
            found += 1
            if found <= _SHOWN:
                yield f"{source}: image {record.get('image_id')}: {problem}"
    if found > _SHOWN:
        yield f"{source}: {found - _SHOWN} more problems of this kind"


def _problems_of(record: Mapping[str, Any]) -> Iterator[str]:
    caption = record.get(CAPTION)
    if not isinstance(caption, str):
        yield f"its '{CAPTION}' is {brief(caption)}, expected a text"
        return
    for number, one in enumerate(objects_of(record)):
        for problem in spans_problems(caption, one.get(SPANS)):
            yield f"{SPANS} of its annotation {number} {problem}"
    for number, spans in enumerate(record.get(EVALUATED) or ()):
        for problem in spans_problems(caption, spans):
            yield f"{EVALUATED} of its phrase {number} {problem}"


def spans_problems(caption: str, spans: Any) -> list[str]:
    """Why these are no spans of a caption's characters: [[first, one past the last], ...]."""
    if not isinstance(spans, Sequence) or isinstance(spans, str):
        expected = "expected [[first, one past the last], ...]"
        return [f"is {brief(spans)}, {expected}: name the characters of its phrase"]
    problems = (span_problem(caption, one) for one in spans)
    return [f"is wrong: {problem}; caption: {brief(caption)}" for problem in problems if problem]


def spans_of(annotation: Mapping[str, Any]) -> tuple[Span, ...]:
    """The spans of a checked annotation."""
    return tuple((first, end) for first, end in annotation[SPANS])


def is_grounding_set(name: str) -> bool:
    """Whether the images of a registered data set have captions.

    Where its metadata do not say so (field `grounding`), its annotation file is searched for spans.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("grounding", False):
        return True
    file = metadata.get("json_file", None)
    path = None if file is None else Path(PathManager.get_local_path(file))
    if path is None or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(f'"{SPANS}"'.encode()) >= 0


def grounding_problems(name: str, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Of a registered grounding set: spans, and boxes whose phrase no caption can hold.

    Args:
        name: of the set.
        tokenizer: of the captions; None: it could not be had, and lengths are not looked at.
    """
    try:
        records = DatasetCatalog.get(name)
    except SetupError as error:
        yield from error.problems
        return
    except (OSError, ValueError):  # no file, or another format: the shared checks have said so
        return
    problems = list(record_problems(records, f"'{name}'"))
    yield from problems
    if tokenizer is None or problems:
        return
    long = [one for one in records if len(tokenizer.encode(one[CAPTION])) > MAX_TOKENS]
    if long:
        logger.warning(
            "'%s': %d captions have more than %d tokens, the first is that of image %s: what comes "
            "behind them is cut off, and the boxes of its phrases with it",
            *(name, len(long), MAX_TOKENS, long[0]["image_id"]),
        )
