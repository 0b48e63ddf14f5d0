"""Grounding data: captions whose phrases have boxes, in MDETR's JSON layout.

COCO's format, in which an image has a `caption` and an annotation `tokens_positive`, the character
spans of its phrase. Any data set of `OVD_DATASETS` may be in it.
"""

from __future__ import annotations

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
from ovd_d2.projects.glip.prompts import Tokenizer, truncated
from ovd_d2.projects.glip.prompts.spans import Span, span_problem, tokens_of
from ovd_d2.projects.glip.prompts.tokenizer import MAX_TOKENS

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
    # of the public recipe; MDETR's own file, below, has captions of COCO's images, too
    "goldg_mixed_train_no_coco": ("final_mixed_train_no_coco.json", "gqa/images"),
    # of COCO's train2014 and GQA's images, linked into one folder
    "goldg_mixed_train": ("final_mixed_train.json", "goldg/images"),
    "refcoco_train": ("finetune_refcoco_train.json", "coco/train2014"),
    "refcoco+_train": ("finetune_refcoco+_train.json", "coco/train2014"),
    "refcocog_train": ("finetune_refcocog_train.json", "coco/train2014"),
}


def grounding_sets() -> Iterator[DataSet]:
    """The public ones, below the folder of all data sets."""
    for name, (file, images) in _SETS.items():
        kind = GROUNDING if "_train" in name else PHRASES
        metadata = {"grounding": True, "official": True}
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


def record_problems(
    records: Iterable[Mapping[str, Any]], source: str, *, evaluated: bool = False
) -> Iterator[str]:
    """What is wrong with captions and spans.

    Args:
        records: Detectron2's dicts.
        source: the file they are of, for messages.
        evaluated: their phrases are to be found.
    """
    found = (
        f"{source}: image {record.get('image_id')}: {problem}"
        for record in records
        for problem in _problems_of(record, evaluated)
    )
    yield from first_problems(found, source)


def first_problems(problems: Iterable[str], source: str) -> Iterator[str]:
    """The first ones, and how many there are more; `source` is what they are of."""
    more = 0
    for count, problem in enumerate(problems, 1):
        more = max(0, count - _SHOWN)
        if not more:
            yield problem
    if more:
        yield f"{source}: {more} more problems of this kind"


def _problems_of(record: Mapping[str, Any], evaluated: bool) -> Iterator[str]:
    caption, phrases = record.get(CAPTION), record.get(EVALUATED)
    if not isinstance(caption, str):
        yield f"its '{CAPTION}' is {brief(caption)}, expected a text"
        return
    for number, one in enumerate(objects_of(record)):
        for problem in spans_problems(caption, one.get(SPANS)):
            yield f"{SPANS} of its annotation {number} {problem}"
    if evaluated and not isinstance(phrases, list):
        yield f"its '{EVALUATED}' is {brief(phrases)}, expected a list of the spans of each phrase"
        return
    for number, spans in enumerate(phrases or ()):
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


def is_phrase_set(name: str) -> bool:
    """Whether a registered data set is evaluated for its phrases."""
    return bool(MetadataCatalog.get(name).get("evaluator_type", None) == PHRASES)


def readable_records(name: str, *, evaluated: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Those of a registered grounding set, and what is wrong with captions and spans.

    Args:
        name: of the set.
        evaluated: its phrases are to be found.

    Returns:
        No records, where there is a problem, or one that the checks of annotation files say.
    """
    try:
        records = DatasetCatalog.get(name)
    except SetupError as error:
        return [], error.problems
    except (KeyError, OSError, ValueError):  # not there, or of another format
        return [], []
    problems = list(record_problems(records, f"'{name}'", evaluated=evaluated))
    return [] if problems else records, problems


def cut_notices(
    name: str, records: Iterable[Mapping[str, Any]], tokenizer: Tokenizer
) -> Iterator[str]:
    """The images of a grounding set whose captions are too long, and what is lost with their ends.

    Args:
        name: of the set, for the message.
        records: of it, without a problem.
        tokenizer: of the captions.
    """
    images, lost = [], 0
    for record in records:
        encoding = tokenizer.encode(record[CAPTION])
        if len(encoding) > MAX_TOKENS:
            images.append(str(record["image_id"]))
            offsets = truncated(encoding).offsets
            lost += sum(not tokens_of(spans_of(one), offsets) for one in objects_of(record))
    if images:
        shown = ", ".join(images[:_SHOWN])
        more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
        yield (
            f"'{name}': {len(images)} captions have more than {MAX_TOKENS} tokens and are cut off "
            f"there, those of the images {shown}{more}: {lost} of their boxes are of phrases "
            "behind the cut and are left out; write shorter captions"
        )
