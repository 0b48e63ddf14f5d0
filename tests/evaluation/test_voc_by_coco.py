"""PASCAL VOC through COCO's evaluator: a folder in VOC's own form."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from evaluation_scenes import feed, make_instances

from ovd_d2 import add_ovd_config
from ovd_d2.data.categories import get_categories
from ovd_d2.evaluation import OpenVocabularyCOCOEvaluator, build_evaluator
from ovd_d2.evaluation.voc_evaluator import OpenVocabularyVOCEvaluator, difficult_objects

NAME = "voc_tests"
OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>
<difficult>{difficult}</difficult><bndbox>
<xmin>{x}</xmin><ymin>31</ymin><xmax>{right}</xmax><ymax>70</ymax></bndbox></object>"""


def write_voc(folder, images):
    """`images`: image name -> list of (category, difficult); boxes 40 wide, side by side."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(images) + "\n")
    for image, objects in images.items():
        boxes = "".join(
            OBJECT.format(name=name, difficult=int(difficult), x=21 + 50 * k, right=60 + 50 * k)
            for k, (name, difficult) in enumerate(objects)
        )
        size = "<size><width>320</width><height>240</height></size>"
        (folder / "Annotations" / f"{image}.xml").write_text(
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


def detection(image, category, x, score=0.9, names=CLASS_NAMES):
    box = np.array([[x, 30.0, x + 40, 70]])
    output = make_instances(box, np.array([score]), np.array([names.index(category)]))
    return {"image_id": image}, {"instances": output}


def test_difficult_objects_are_ignored_and_coco_ap50_is_reported(evaluator):
    assert type(evaluator) is OpenVocabularyVOCEvaluator
    found = [detection("000005", "cat", 20), detection("000007", "dog", 20)]
    results = feed(evaluator, found)
    assert set(results) == {"bbox"}
    assert results["bbox"]["AP50"] == pytest.approx(100)  # the difficult cat is not missed
    # Surer than all others, on the difficult cat and twice: not counted. On nothing: wrong.
    surest = [detection("000005", "cat", 70, 0.99)] * 2
    assert feed(evaluator, [*found, *surest])["bbox"]["AP50"] == pytest.approx(100)
    wrong = detection("000005", "cat", 200, 0.99)
    assert feed(evaluator, [*found, wrong])["bbox"]["AP50"] == pytest.approx((50 + 100) / 2)


def test_ap50_is_detectron2s_own_but_for_the_points_of_the_mean(tmp_path):
    rng, names = np.random.default_rng(0), ["cat", "dog"]
    images = {
        f"{k:06d}": [(rng.choice(names), rng.uniform() < 0.4) for _ in range(5)] for k in range(60)
    }
    found = [
        detection(image, name, 20 + 50 * k + shift, score, names)
        for image, objects in images.items()
        for k, (name, _) in enumerate(objects)
        for shift, score in zip(rng.choice([0, 6, 16], 2), rng.uniform(0.1, 1, 2), strict=True)
    ]
    write_voc(tmp_path / "VOC2012", images)
    register_pascal_voc("voc_random", str(tmp_path / "VOC2012"), "test", 2012, names)
    try:
        MetadataCatalog.get("voc_random").set(evaluator_type="pascal_voc")
        theirs = feed(PascalVOCDetectionEvaluator("voc_random"), found)["bbox"]["AP50"]
        ours = {
            kind: feed(kind("voc_random", ("bbox",), output_dir=str(tmp_path)), found)["bbox"][
                "AP50"
            ]
            for kind in (OpenVocabularyVOCEvaluator, OpenVocabularyCOCOEvaluator)
        }
    finally:
        DatasetCatalog.remove("voc_random")
        MetadataCatalog.remove("voc_random")
    assert ours[OpenVocabularyVOCEvaluator] == pytest.approx(theirs, abs=0.5)
    assert abs(ours[OpenVocabularyCOCOEvaluator] - theirs) > 5


def test_other_files_than_those_of_the_conversion_are_refused(tmp_path):
    objects = [{"id": 1, "image_id": "000005"}]
    write_voc(tmp_path, {"000005": [("cat", True), ("dog", False)]})
    with pytest.raises(ValueError, match=r"000005\.xml has 2 objects, but Detectron2 read 1"):
        difficult_objects(objects, tmp_path / "Annotations")


def test_categories_stay_the_same_once_detectron2_has_converted_the_set(evaluator):
    assert get_categories(NAME).names == list(CLASS_NAMES)
