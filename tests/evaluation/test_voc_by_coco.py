"""PASCAL VOC through COCO's evaluator: a folder in VOC's own form."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from evaluation_scenes import feed, make_instances

from ovd_d2 import add_ovd_config
from ovd_d2.data.categories import get_categories
from ovd_d2.evaluation import OpenVocabularyCOCOEvaluator, build_evaluator

NAME = "voc_tests"
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{x}</xmin><ymin>31</ymin><xmax>{right}</xmax><ymax>70</ymax></bndbox></object>"""


def write_voc(folder, images):
    """`images`: picture name -> list of (category, difficult); boxes 40 wide, side by side."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(images) + "\n")
    for picture, objects in images.items():
        boxes = "".join(
            OBJECT.format(name=name, difficult=int(difficult), x=21 + 50 * k, right=60 + 50 * k)
            for k, (name, difficult) in enumerate(objects)
        )
        size = "<size><width>320</width><height>240</height></size>"
        (folder / "Annotations" / f"{picture}.xml").write_text(
            f"<annotation>{size}{boxes}</annotation>"
        )


@pytest.fixture
def evaluator(tmp_path):
    write_voc(
        tmp_path / "VOC2007",
        {"000005": [("cat", False), ("cat", True)], "000007": [("dog", False)]},
    )
    register_pascal_voc(NAME, str(tmp_path / "VOC2007"), "test", 2007)
    MetadataCatalog.get(NAME).set(evaluator_type="pascal_voc", boxes_only=True)
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.MASK_ON = True
    yield build_evaluator(cfg, NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def detection(picture, category, x):
    box = np.array([[x, 30.0, x + 40, 70]])
    output = make_instances(box, np.array([0.9]), np.array([CLASS_NAMES.index(category)]))
    return {"image_id": picture}, {"instances": output}


def test_difficult_objects_count_and_coco_ap50_is_reported(evaluator):
    assert type(evaluator) is OpenVocabularyCOCOEvaluator
    results = feed(evaluator, [detection("000005", "cat", 20), detection("000007", "dog", 20)])
    assert set(results) == {"bbox"}
    # Of two cats one is found: precision 1 at the recalls 0, 0.01 ... 0.50, so 51 of 101 points.
    cat, dog = 100 * 51 / 101, 100
    assert results["bbox"]["AP50"] == pytest.approx((cat + dog) / 2)


def test_categories_stay_the_same_once_detectron2_has_converted_the_set(evaluator):
    assert get_categories(NAME).names == list(CLASS_NAMES)
