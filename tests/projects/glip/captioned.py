"""A small grounding set in MDETR's layout, and what a mapper makes of its images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.passengers import DATA_SET
from ovd_d2.projects.glip.grounding import load_grounding_json
from tests.catalog import forget

CAPTIONS = ("a red cat and a snowman", "two birds on the sofa", "")


@pytest.fixture
def catalog():
    """What is registered here under "glip_..." is forgotten afterwards."""
    yield
    forget(*(name for name in DatasetCatalog.list() if name.startswith("glip_")))


def spans(caption, *phrases):
    return [[caption.index(one), caption.index(one) + len(one)] for one in phrases]


def content():
    """Three images of 40 x 30: two boxes of a phrase each, with a crowd and a box without area; a
    box of two phrases; no box and no caption."""
    boxes = [
        (1, [2, 3, 10, 12], spans(CAPTIONS[0], "red cat"), 0),
        (1, [20, 4, 15, 20], spans(CAPTIONS[0], "snowman"), 0),
        (1, [0, 0, 40, 30], spans(CAPTIONS[0], "snowman"), 1),
        (1, [5, 5, 0, 4], spans(CAPTIONS[0], "red cat"), 0),
        (2, [1, 1, 30, 20], spans(CAPTIONS[1], "two birds", "sofa"), 0),
    ]
    evaluated = [spans(CAPTIONS[0], "red cat"), spans(CAPTIONS[0], "snowman")]
    images = [
        {
            "id": k + 1,
            "file_name": f"{k}.png",
            "width": 40,
            "height": 30,
            "caption": caption,
            "tokens_positive_eval": evaluated if k == 0 else [],
            "sentence_id": 0,
            "original_img_id": 100 + k,
        }
        for k, caption in enumerate(CAPTIONS)
    ]
    annotations = [
        {
            "id": k + 1,
            "image_id": image,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": crowd,
            "category_id": 1,
            "tokens_positive": one,
        }
        for k, (image, box, one, crowd) in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(folder, table=None):
    """The annotation file in a folder, and its images; returns the file's path."""
    for k in range(3):
        pixels = np.full((30, 40, 3), 40 * k, np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    path = folder / "captions.json"
    path.write_text(json.dumps(content() if table is None else table), encoding="utf-8")
    return path


def register(name, folder, table=None, evaluator_type="grounding"):
    path = write(folder, table)
    DatasetCatalog.register(name, lambda: load_grounding_json(str(path), str(folder), name))
    MetadataCatalog.get(name).set(
        json_file=str(path), image_root=str(folder), evaluator_type=evaluator_type
    )
    return path


def mapper_with(*passengers, augmentations=(), is_train=True):
    return OpenVocabularyDatasetMapper(
        is_train,
        augmentations=list(augmentations) or [T.NoOpTransform()],
        image_format="BGR",
        passengers=passengers,
    )


def tagged(records, name):
    return [{**one, DATA_SET: name} for one in records]
