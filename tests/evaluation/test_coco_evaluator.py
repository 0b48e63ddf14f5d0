from __future__ import annotations

import json
import math
from importlib.metadata import version

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from evaluation_scenes import (
    COCO_IDS,
    NAMES,
    NOVEL,
    feed,
    make_dataset,
    no_detections,
    noisy_detections,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd_d2.evaluation import OpenVocabularyCOCOEvaluator
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.groups import read_per_category

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


@pytest.fixture
def dataset():
    return make_dataset(COCO_IDS)


@pytest.fixture
def evaluator(register, dataset, tmp_path):
    register(
        "ov_coco_test",
        dataset,
        "coco",
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id={one: k for k, one in enumerate(COCO_IDS)},
    )
    return OpenVocabularyCOCOEvaluator("ov_coco_test", output_dir=str(tmp_path / "out"))


def reference(tmp_path, iou_type: str) -> COCOeval:
    truth = COCO(str(tmp_path / "ov_coco_test.json"))
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    if iou_type == "segm":
        for one in results:
            del one["bbox"]
    coco_eval = COCOeval(truth, truth.loadRes(results), iou_type)
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    return coco_eval


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_equal_pycocotools(evaluator, dataset, tmp_path, iou_type):
    metrics = feed(evaluator, noisy_detections(dataset, COCO_IDS))[iou_type]
    expected = reference(tmp_path, iou_type)
    assert 5 < metrics["AP"] < 95
    for k, name in enumerate(METRICS):
        assert metrics[name] == pytest.approx(expected.stats[k] * 100), name
    precision = expected.eval["precision"][:, :, :, 0, -1]
    for group, wanted in (("base", False), ("novel", True)):
        members = [k for k, flag in enumerate(NOVEL) if flag is wanted]
        values, at_50 = precision[:, :, members], precision[0][:, members]
        assert metrics[f"AP_{group}"] == pytest.approx(values[values > -1].mean() * 100)
        assert metrics[f"AP50_{group}"] == pytest.approx(at_50[at_50 > -1].mean() * 100)


def test_all_is_the_weighted_mean_of_base_and_novel(evaluator, dataset):
    metrics = feed(evaluator, noisy_detections(dataset, COCO_IDS))["bbox"]
    # 3 base and 3 novel categories have ground truth ("ghost" has none)
    assert metrics["AP50"] == pytest.approx((metrics["AP50_base"] + metrics["AP50_novel"]) / 2)


def test_per_category_file(evaluator, dataset, tmp_path):
    metrics = feed(evaluator, noisy_detections(dataset, COCO_IDS))
    table = read_per_category(tmp_path / "out" / "per_category.json")
    assert set(table) == {"bbox", "segm"}
    assert table["segm"]["AP-ghost"] is None
    known = [table["segm"][f"AP-{name}"] for name in NAMES[:-1]]
    assert metrics["segm"]["AP"] == pytest.approx(np.mean(known))
    assert not any("-" in key for key in metrics["bbox"])


def test_no_detections_is_zero_not_nan(evaluator, dataset):
    evaluator._tasks = ("bbox", "segm")
    metrics = feed(evaluator, no_detections(dataset))
    for values in (metrics["bbox"], metrics["segm"]):
        assert [values[name] for name in ("AP", "AP50", "AP_base", "AP50_novel")] == [0] * 4


def test_no_images_seen_gives_no_numbers(evaluator):
    assert feed(evaluator, []) == {}


def test_one_category(register):
    dataset = make_dataset([7, 9])
    dataset["categories"].pop()
    register(
        "ov_coco_test",
        dataset,
        "coco",
        thing_classes=["anchor"],
        thing_dataset_id_to_contiguous_id={7: 0},
    )
    evaluator = OpenVocabularyCOCOEvaluator("ov_coco_test")
    metrics = feed(evaluator, noisy_detections(dataset, [7]))["bbox"]
    assert metrics["AP_novel"] == pytest.approx(metrics["AP"]) and metrics["AP"] > 0
    assert math.isnan(metrics["AP_base"]) and math.isnan(metrics["AP50_base"])


def test_engines_report_the_same(register, dataset):
    for one in dataset["annotations"][::5]:
        one["iscrowd"] = 1
    register("ov_coco_test", dataset, "coco", thing_classes=NAMES)
    pairs = noisy_detections(dataset, COCO_IDS)
    results = []
    for name in ("reference", "hotcoco"):
        evaluator = OpenVocabularyCOCOEvaluator("ov_coco_test", engine=build_engine(name))
        results.append(feed(evaluator, pairs))
    for task in ("bbox", "segm"):
        assert results[0][task] == pytest.approx(results[1][task], abs=1e-9, nan_ok=True)


def test_description_names_everything(evaluator):
    assert evaluator.description == {
        "dataset": "ov_coco_test",
        "protocol": "COCO (best 100 detections per image and category)",
        "engine": f"reference (pycocotools {version('pycocotools')})",
    }


def test_keypoints_are_refused(register, dataset):
    register("ov_coco_test", dataset, "coco", thing_classes=NAMES)
    evaluator = OpenVocabularyCOCOEvaluator("ov_coco_test", ("keypoints",))
    with pytest.raises(ValueError, match=r"\['keypoints'\] cannot be evaluated"):
        feed(evaluator, noisy_detections(dataset, COCO_IDS))


def test_iscrowd_may_be_null(register):
    """As in files that other tools export; null says nothing, so the object is no crowd."""
    numbers = []
    for k, value in enumerate((0, None)):
        dataset = make_dataset(COCO_IDS)
        for one in dataset["annotations"][::2]:
            one["iscrowd"] = value
        name = f"ov_coco_null_{k}"
        register(name, dataset, "coco", thing_classes=NAMES)
        evaluator = OpenVocabularyCOCOEvaluator(name, ("bbox", "segm"))
        numbers.append(feed(evaluator, noisy_detections(dataset, COCO_IDS)))
    assert numbers[0]["segm"] == pytest.approx(numbers[1]["segm"], nan_ok=True)


def test_a_function_is_read_again_for_every_evaluation(tmp_path):
    """Detectron2 keeps the first conversion in the output folder, whatever the data are by now."""
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    image = {"file_name": "1.png", "image_id": 1, "height": 9, "width": 9, "annotations": [box]}
    DatasetCatalog.register("ov_coco_function", lambda: [image])
    MetadataCatalog.get("ov_coco_function").set(thing_classes=["anchor"])
    try:
        for count in (1, 2):
            image["annotations"] = [box] * count
            evaluator = OpenVocabularyCOCOEvaluator("ov_coco_function", output_dir=str(tmp_path))
            assert len(evaluator._coco_api.dataset["annotations"]) == count
            del MetadataCatalog.get("ov_coco_function").json_file  # a later run has none
    finally:
        DatasetCatalog.remove("ov_coco_function")
        MetadataCatalog.remove("ov_coco_function")
