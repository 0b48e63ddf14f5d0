"""OV-COCO: AP50 over all is the mean of 48 base and 17 novel categories, on COCO's own format."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from evaluation_scenes import feed, make_instances

from ovd_d2 import add_ovd_config
from ovd_d2.data.ov_coco import BASE_CLASSES, NOVEL_CLASSES
from ovd_d2.evaluation import build_evaluator

NAMES = BASE_CLASSES + NOVEL_CLASSES  # ids below are in this order, with gaps as COCO's
IDS = [k + 1 + k // 10 for k in range(65)]
BOX = [20, 30, 60, 40]


def one_image_a_category():
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 240, "width": 320} for k in range(65)]
    annotations = [
        {
            "id": k + 1,
            "image_id": k,
            "category_id": IDS[k],
            "bbox": BOX,
            "area": 2400,
            "iscrowd": 0,
            "segmentation": [[20, 30, 80, 30, 80, 70, 20, 70]],
        }
        for k in range(65)
    ]
    categories = [{"id": one, "name": name} for one, name in zip(IDS, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def evaluator(register, tmp_path):
    register(
        "ov_coco_protocol",
        one_image_a_category(),
        "coco",
        thing_classes=list(NAMES),
        thing_dataset_id_to_contiguous_id={one: k for k, one in enumerate(IDS)},
        base_classes=list(BASE_CLASSES),
    )
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.MASK_ON = False
    return build_evaluator(cfg, "ov_coco_protocol")


def detections(image_id, category, score):
    box = np.array([[20.0, 30, 80, 70]])
    output = make_instances(box, np.array([score]), np.array([category]))
    return {"image_id": image_id}, {"instances": output}


def test_ap50_is_the_mean_over_65(evaluator):
    found = [*range(36), *range(48, 52)]  # 36 of 48 base, 4 of 17 novel categories
    box = feed(evaluator, [detections(k, k, 0.9) for k in found])["bbox"]
    assert box["AP50_base"] == pytest.approx(100 * 36 / 48)
    assert box["AP50_novel"] == pytest.approx(100 * 4 / 17)
    assert box["AP50"] == pytest.approx(100 * 40 / 65)


def test_one_classifier_for_all_a_novel_object_called_base_costs_the_base(evaluator):
    """Generalised: every detection competes with all 65, whatever its group."""
    right = [detections(k, k, 0.5) for k in range(64)]
    wrong = detections(64, 0, 0.9)  # the last novel object, called "person", with more confidence
    box = feed(evaluator, [*right, wrong])["bbox"]
    # person: a false alarm before its only object: precision 1/2 at every recall
    assert box["AP50_base"] == pytest.approx(100 * 47.5 / 48)
    assert box["AP50_novel"] == pytest.approx(100 * 16 / 17)
    assert box["AP50"] == pytest.approx(100 * (47.5 + 16) / 65)
