from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from evaluation_scenes import (
    FREQUENCIES,
    NAMES,
    NOVEL,
    feed,
    make_dataset,
    make_instances,
    no_detections,
    noisy_detections,
)
from lvis import LVIS, LVISEval, LVISResults

from ovd_d2.evaluation import OpenVocabularyLVISEvaluator, lvis_runner
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.groups import read_per_category
from ovd_d2.evaluation.protocols import FEDERATED, FIXED

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
IDS = list(range(1, len(NAMES) + 1))


@pytest.fixture
def dataset():
    return make_dataset(IDS)


@pytest.fixture
def evaluator(register, dataset, tmp_path):
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES)
    return OpenVocabularyLVISEvaluator("ov_lvis_test", output_dir=str(tmp_path / "out"))


def reference(tmp_path, iou_type: str) -> LVISEval:
    """The lvis package's own way, from the files."""
    results = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    if iou_type == "segm":
        for one in results:
            del one["bbox"]
    truth = LVIS(str(tmp_path / "ov_lvis_test.json"))
    lvis_eval = LVISEval(truth, LVISResults(truth, results, max_dets=300), iou_type)
    lvis_eval.run()
    return lvis_eval


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_equal_the_lvis_package(evaluator, dataset, tmp_path, iou_type):
    metrics = feed(evaluator, noisy_detections(dataset, IDS))[iou_type]
    expected = reference(tmp_path, iou_type).results
    assert 5 < metrics["AP"] < 95  # neither trivial end
    for name in METRICS:
        assert metrics[name] == pytest.approx(expected[name] * 100, abs=1e-9), name


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_base_and_novel_from_the_precision_array(evaluator, dataset, tmp_path, iou_type):
    metrics = feed(evaluator, noisy_detections(dataset, IDS))[iou_type]
    precision = reference(tmp_path, iou_type).eval["precision"][..., 0]  # (T, R, C)
    for group, wanted in (("base", False), ("novel", True)):
        members = [k for k, flag in enumerate(NOVEL) if flag is wanted]
        values = precision[:, :, members]
        at_50 = precision[0][:, members]
        assert metrics[f"AP_{group}"] == pytest.approx(values[values > -1].mean() * 100)
        assert metrics[f"AP50_{group}"] == pytest.approx(at_50[at_50 > -1].mean() * 100)
    assert metrics["AP_base"] != pytest.approx(metrics["AP_novel"], abs=0.1)


def test_novel_equals_rare_where_novel_is_rare(evaluator, dataset):
    assert [letter == "r" for letter in FREQUENCIES] == NOVEL
    metrics = feed(evaluator, noisy_detections(dataset, IDS))["bbox"]
    assert metrics["AP_novel"] == pytest.approx(metrics["APr"])


def test_per_category_file(evaluator, dataset, tmp_path):
    metrics = feed(evaluator, noisy_detections(dataset, IDS))
    table = read_per_category(tmp_path / "out" / "per_category.json")
    assert set(table) == {"bbox", "segm"}
    assert table["bbox"]["AP-ghost"] is None  # no ground truth
    known = [table["bbox"][f"AP-{name}"] for name in NAMES[:-1]]
    assert metrics["bbox"]["AP"] == pytest.approx(np.mean(known))
    assert not any("-" in key for key in metrics["bbox"])  # the log is not flooded


def test_one_lvis_run_per_iou_type(evaluator, dataset, monkeypatch):
    runs = []

    class Counting(LVISEval):
        def run(self):
            runs.append(self.params.iou_type)
            super().run()

    monkeypatch.setattr(lvis_runner, "LVISEval", Counting)
    feed(evaluator, noisy_detections(dataset, IDS))
    assert runs == ["bbox", "segm"]


@pytest.mark.parametrize("tasks", [None, ("bbox", "segm")])
def test_no_detections_is_zero_not_nan(register, dataset, tmp_path, tasks):
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES)
    evaluator = OpenVocabularyLVISEvaluator("ov_lvis_test", tasks, output_dir=str(tmp_path / "out"))
    metrics = feed(evaluator, no_detections(dataset))
    assert set(metrics) == set(tasks or ("bbox",))
    for values in metrics.values():
        assert [values[name] for name in ("AP", "AP50", "APr", "AP_base", "AP50_novel")] == [0] * 5


def test_no_images_seen_gives_no_numbers(evaluator):
    assert feed(evaluator, []) == {}


def test_perfect_detections_are_100_in_each_group(evaluator, dataset):
    metrics = feed(evaluator, perfect(dataset))["segm"]
    for name in ("AP", "AP_base", "AP_novel", "AP50_base", "AP50_novel", "APr", "APf"):
        assert metrics[name] == pytest.approx(100.0), name


def perfect(dataset):
    pairs = []
    for image in dataset["images"]:
        truth = [one for one in dataset["annotations"] if one["image_id"] == image["id"]]
        boxes = np.array([one["bbox"] for one in truth], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([IDS.index(one["category_id"]) for one in truth])
        output = make_instances(boxes, np.ones(len(truth)), classes)
        pairs.append(({"image_id": image["id"]}, {"instances": output}))
    return pairs


def test_predicting_base_names_only_gives_novel_zero(evaluator, dataset):
    pairs = perfect(dataset)
    for _, output in pairs:
        is_base = ~np.array(NOVEL)[output["instances"].pred_classes.numpy()]
        output["instances"] = output["instances"][np.flatnonzero(is_base)]
    metrics = feed(evaluator, pairs)["bbox"]
    assert metrics["AP_novel"] == 0
    assert metrics["AP_base"] == pytest.approx(100.0)


def test_no_novel_categories_is_nan_and_does_not_poison(register, dataset, caplog):
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES, base_classes=NAMES)
    evaluator = OpenVocabularyLVISEvaluator("ov_lvis_test")
    with caplog.at_level("INFO"):
        metrics = feed(evaluator, noisy_detections(dataset, IDS))["bbox"]
    assert math.isnan(metrics["AP_novel"])
    assert metrics["AP_base"] == pytest.approx(metrics["AP"])
    assert "No novel category has ground truth" in caplog.text


def test_one_category(register):
    dataset = make_dataset([1, 2])  # the last category never has ground truth
    dataset["categories"].pop()
    for image in dataset["images"]:
        image["neg_category_ids"] = []
    register("ov_lvis_test", dataset, "lvis", thing_classes=["anchor"])
    evaluator = OpenVocabularyLVISEvaluator("ov_lvis_test")
    metrics = feed(evaluator, noisy_detections(dataset, [1]))["bbox"]
    assert metrics["AP_novel"] == pytest.approx(metrics["AP"]) and metrics["AP"] > 0
    assert math.isnan(metrics["AP_base"])


def make_evaluator(register, dataset, **options):
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES)
    return OpenVocabularyLVISEvaluator("ov_lvis_test", ("bbox",), **options)


@pytest.mark.parametrize(
    ("protocol", "found"),
    [(FEDERATED, False), (dataclasses.replace(FEDERATED, per_image=301), True), (FIXED, True)],
)
@pytest.mark.parametrize("engine", ["reference", "hotcoco"])
def test_the_301st_detection_of_an_image(register, dataset, engine, protocol, found):
    truth = dataset["annotations"][0]
    box = np.array([truth["bbox"]], dtype=float)
    box[:, 2:] += box[:, :2]
    junk = np.repeat([[0.0, 0.0, 5.0, 5.0]], 300, axis=0)
    wrong = IDS.index(dataset["images"][0]["neg_category_ids"][0])
    classes = np.array([wrong] * 300 + [IDS.index(truth["category_id"])])
    scores = np.array([0.9] * 300 + [0.5])  # the right one comes 301st
    output = make_instances(np.concatenate([junk, box]), scores, classes)
    pairs = [({"image_id": truth["image_id"]}, {"instances": output})]
    options = {"protocol": protocol, "engine": build_engine(engine)}
    metrics = feed(make_evaluator(register, dataset, **options), pairs)["bbox"]
    assert (metrics["AP"] > 0) is found


def test_engines_report_the_same(register, dataset):
    pairs = noisy_detections(dataset, IDS)
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES)
    results = [
        feed(OpenVocabularyLVISEvaluator("ov_lvis_test", engine=engine), pairs)
        for engine in (build_engine("reference"), build_engine("hotcoco"))
    ]
    for task in ("bbox", "segm"):
        assert results[0][task] == pytest.approx(results[1][task], abs=1e-9, nan_ok=True)


def test_ground_truth_without_masks_evaluates_boxes(register, dataset, caplog):
    with_masks = feed(make_evaluator(register, dataset), noisy_detections(dataset, IDS))
    for one in dataset["annotations"]:
        del one["segmentation"]
    register("ov_boxes_only", dataset, "lvis", thing_classes=NAMES)
    evaluator = OpenVocabularyLVISEvaluator("ov_boxes_only", ("bbox", "segm"))
    with caplog.at_level("WARNING"):
        metrics = feed(evaluator, noisy_detections(dataset, IDS))
    assert metrics == {"bbox": pytest.approx(with_masks["bbox"], nan_ok=True)}
    assert "ov_boxes_only has boxes only: mask AP is left out" in caplog.text


def test_description_names_everything(evaluator):
    assert evaluator.description == {
        "dataset": "ov_lvis_test",
        "protocol": "LVIS federated (best 300 detections per image)",
        "engine": "reference (lvis 0.5.3)",
    }


def test_data_set_ids_with_gaps(register):
    """COCO-like ids go through thing_dataset_id_to_contiguous_id."""
    ids = [1, 2, 3, 5, 8, 13, 21]
    dataset = make_dataset(ids)
    mapping = {one: k for k, one in enumerate(ids)}
    register(
        "ov_lvis_gaps",
        dataset,
        "lvis",
        thing_classes=NAMES,
        thing_dataset_id_to_contiguous_id=mapping,
    )
    register("ov_lvis_test", make_dataset(IDS), "lvis", thing_classes=NAMES)
    pairs = noisy_detections(dataset, ids)
    gaps = feed(OpenVocabularyLVISEvaluator("ov_lvis_gaps"), pairs)
    plain = feed(OpenVocabularyLVISEvaluator("ov_lvis_test"), pairs)
    assert gaps["bbox"] == pytest.approx(plain["bbox"], nan_ok=True)
    assert gaps["segm"]["AP_novel"] == pytest.approx(plain["segm"]["AP_novel"])


def test_masks_asked_for_but_not_predicted(register, dataset):
    register("ov_lvis_test", dataset, "lvis", thing_classes=NAMES)
    evaluator = OpenVocabularyLVISEvaluator("ov_lvis_test", ("bbox", "segm"))
    pairs = copy.deepcopy(noisy_detections(dataset, IDS))
    for _, output in pairs:
        output["instances"].remove("pred_masks")
    with pytest.raises(ValueError, match="predicted no masks"):
        feed(evaluator, pairs)


def test_annotations_that_the_data_set_is_not_loaded_from(register, dataset):
    numbered = {one: k for k, one in enumerate(IDS[:2])}
    register("ov_lvis_test", dataset, "lvis", thing_dataset_id_to_contiguous_id=numbered)
    message = (
        r"'ov_lvis_test' is loaded with 7 categories .*, its annotations have 2 \(ids \[1, 2\]"
    )
    with pytest.raises(ValueError, match=message):
        OpenVocabularyLVISEvaluator("ov_lvis_test")
