"""Pictograms as grounding data, and its tokenizer.

Every scene has a caption with the places of its phrases ("two red anchors and a blue umbrella").
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ovd_d2.data.builtin import PICTOGRAM_SETS, pictograms
from ovd_d2.data.categories import get_categories
from ovd_d2.data.mapper import objects_of
from ovd_d2.data.registration import DataSet
from ovd_d2.pictograms.dataset import COLOURS, GLYPHS, check_version
from ovd_d2.pictograms.dataset.captions import caption_of, plural
from ovd_d2.projects.glip.few_images import few_images
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, GROUNDING, PHRASES, SPANS
from ovd_d2.projects.glip.prompts.tokenizer import WordPieces

# Name of a set behind that of the folder -> (split, evaluator_type). The captions of "train" speak
# of base categories alone, as its boxes do; those of "train_all" of novel ones, too, with boxes, as
# grounding data of the web do: that is no open-vocabulary protocol any more.
_SETS = {
    "captions_train": ("train", GROUNDING),
    "captions_train_all": ("train_all", GROUNDING),
    "captions_val": ("val", PHRASES),
}
# What a pretrained GLIP is tuned on: images of "train_all" that show every glyph so many times, or
# all of them. No glyph of theirs is novel.
SHOTS = ("1", "5", "10", "all")
CATEGORIES = 80  # of prepare_pictograms.py; their scenes show no more glyphs
_SUFFIXES = ("s", "es")  # of plurals that share the word's own token


def pictogram_captions() -> Iterator[DataSet]:
    """`<folder>_captions_train`, `_captions_train_all` and `_captions_val`."""
    for folder in PICTOGRAM_SETS:
        for name, (split, kind) in _SETS.items():
            metadata: dict[str, Any] = {"grounding": True}
            file = f"{folder}/{folder}_{split}.json"
            yield DataSet(f"{folder}_{name}", file, folder, load_captions, kind, metadata)


def few_pictograms() -> Iterator[DataSet]:
    """`<folder>_shots1` and so on: a few images, with boxes of all glyphs."""
    names = [one.name for one in GLYPHS[:CATEGORIES]]
    for folder, shots in itertools.product(PICTOGRAM_SETS, SHOTS):
        whole = pictograms(folder, "train_all")
        load = partial(_load_few, whole.load, shots)
        yield replace(
            whole, name=f"{folder}_shots{shots}", load=load, metadata={"base_classes": names}
        )


def _load_few(
    load: Callable[..., list[dict[str, Any]]], shots: str, *place: str
) -> list[dict[str, Any]]:
    """
    Args:
        load: of all images.
        shots: images per glyph, or "all".
        place: annotation file, folder of the images, name of the set.
    """
    records = load(*place)
    if shots == "all":
        return records
    objects = [
        {"image_id": one["image_id"], "category_id": box["category_id"]}
        for one in records
        for box in objects_of(one)
    ]
    chosen = set(few_images({"annotations": objects}, int(shots), seed=0))
    return [one for one in records if one["image_id"] in chosen]


def load_captions(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """An image per caption, with a box per object of its phrases.

    Categories are those of the objects, but none of them is novel: what a caption speaks of, its
    boxes may show.
    """
    check_version(json_file)
    table = orjson.loads(Path(json_file).read_bytes())
    metadata = MetadataCatalog.get(name)
    metadata.base_classes = [one["name"] for one in table["categories"]]
    metadata.set(thing_classes=get_categories(name).names)
    objects = {one["id"]: one for one in table["annotations"]}
    captions = {one["image_id"]: one for one in table["captions"]}
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            CAPTION: captions[image["id"]]["caption"],
            EVALUATED: [[one["span"]] for one in _found(captions[image["id"]]["phrases"], objects)],
            "annotations": [
                _object(objects[number], phrase["span"])
                for phrase in captions[image["id"]]["phrases"]
                for number in phrase["annotation_ids"]
            ],
        }
        for image in table["images"]
    ]


def _found(phrases: list[dict[str, Any]], objects: dict[int, Any]) -> list[dict[str, Any]]:
    """Phrases of more than crowds, which are not looked for."""
    return [
        one
        for one in phrases
        if not all(objects[number]["iscrowd"] for number in one["annotation_ids"])
    ]


def _object(annotation: dict[str, Any], span: list[int]) -> dict[str, Any]:
    return {
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": annotation["category_id"] - 1,
        "iscrowd": annotation["iscrowd"],
        SPANS: [span],
    }


def pictogram_tokenizer() -> WordPieces:
    """Word pieces of what Pictograms speaks of; other words fall into letters.

    `pictogram_tokenizer.json` is made of it: `pictogram_tokenizer().save(path)`.
    """
    text = [one.name for one in GLYPHS]
    text += [plural(one.name) for one in GLYPHS]
    text += [*COLOURS, caption_of([])[0], "many"]
    # the numbers and joints of captions
    colour = next(iter(COLOURS))
    text += [caption_of([(0, colour, "sun")] * k + [(1, "orange", "sun")])[0] for k in range(1, 10)]
    words = sorted({word for one in text for word in WordPieces.words_of(one)})
    return WordPieces.from_vocabulary(_pieces(words))


def _pieces(words: list[str]) -> list[str]:
    known = set(words)
    stems = [
        word for word in words if not any(word.removesuffix(s) in known - {word} for s in _SUFFIXES)
    ]
    letters = [chr(k) for k in range(ord("a"), ord("z") + 1)] + [str(k) for k in range(10)]
    marks = [".", ",", "-", "'", "(", ")", "/"]
    single = [*marks, *letters]
    parts = [f"##{one}" for one in (*letters, *_SUFFIXES)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *single, *parts, *stems]
    return list(dict.fromkeys(pieces))
