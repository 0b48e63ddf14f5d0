"""hotcoco returns what lvis and pycocotools return, on an ordinary scene and on hard cases."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from evaluation_scenes import (
    COCO_IDS,
    FREQUENCIES,
    NAMES,
    NOVEL,
    make_dataset,
    noisy_detections,
    rle_of_box,
)

from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.groups import CategoryAP, named_metrics
from ovd_d2.evaluation.protocols import COCO, FEDERATED, FIXED, select
from ovd_d2.vocabulary import Categories

Scene = tuple[dict[str, Any], list[dict[str, Any]]]


def detections_of(dataset: dict[str, Any], seed: int = 1) -> list[dict[str, Any]]:
    found = []
    for one_input, output in noisy_detections(dataset, COCO_IDS, seed):
        for one in instances_to_coco_json(output["instances"], one_input["image_id"]):
            found.append({**one, "category_id": COCO_IDS[one["category_id"]]})
    return found


def plain() -> Scene:
    dataset = make_dataset(COCO_IDS, images=12)
    return dataset, detections_of(dataset)


def ties() -> Scene:
    dataset, found = plain()
    found += detections_of(dataset, seed=2)
    for one in found:
        one["score"] = round(one["score"], 1)
    return dataset, found


def every_box_twice_at_one_score() -> Scene:
    dataset, found = plain()
    for one in found:
        one["score"] = 0.5
    return dataset, found + copy.deepcopy(found)


def shuffled() -> Scene:
    dataset, found = ties()
    rng = np.random.default_rng(0)
    for records in (dataset["images"], dataset["annotations"], dataset["categories"], found):
        rng.shuffle(records)
    return dataset, found


def categories_without_ground_truth_or_detections() -> Scene:
    dataset, found = plain()
    kept = [one for one in dataset["annotations"] if one["category_id"] not in COCO_IDS[:2]]
    dataset["annotations"] = kept
    return dataset, [one for one in found if one["category_id"] != COCO_IDS[2]]


def crowds() -> Scene:
    dataset, found = plain()
    for one in dataset["annotations"][::3]:
        one["iscrowd"] = 1
    region = np.array([20.0, 20.0, 280.0, 220.0])
    for one in dataset["annotations"][::9]:  # large ones, which swallow many detections
        one["bbox"], one["area"] = [20.0, 20.0, 260.0, 200.0], 52000.0
        one["segmentation"] = rle_of_box(region)
    return dataset, found + detections_of(dataset, seed=2)


def not_exhaustive() -> Scene:
    dataset, found = plain()
    for image in dataset["images"]:
        image["not_exhaustive_category_ids"] = COCO_IDS[:4]
        image["neg_category_ids"] = COCO_IDS[3:]
    return dataset, found


def over_300_an_image() -> Scene:
    dataset = make_dataset(COCO_IDS, images=3)
    found = [one for seed in range(48) for one in detections_of(dataset, seed)]
    assert len(found) > 3 * 320
    return dataset, found


def over_300_of_one_category_in_an_image() -> Scene:
    dataset, found = over_300_an_image()
    return dataset, [{**one, "category_id": COCO_IDS[0]} for one in found]


def no_detections() -> Scene:
    return plain()[0], []


def no_ground_truth() -> Scene:
    dataset, found = plain()
    return {**dataset, "annotations": []}, found


def nothing_at_all() -> Scene:
    return no_ground_truth()[0], []


def without_area(one: dict[str, Any]) -> None:
    one["bbox"][2] = 0.0
    one["segmentation"] = rle_of_box(np.array([5.0, 5.0, 5.0, 5.0]))


def detections_without_area() -> Scene:
    dataset, found = plain()
    for one in found[::3]:
        without_area(one)
    return dataset, found


def all_detections_without_area() -> Scene:
    dataset, found = plain()
    for one in found:
        without_area(one)
    return dataset, found


def objects_without_area() -> Scene:
    dataset, found = detections_without_area()
    for one in dataset["annotations"][::3]:
        without_area(one)
        one["area"] = 0.0
    return dataset, found


def areas_on_the_edge_of_a_bin() -> Scene:
    dataset, found = plain()
    for one in dataset["annotations"]:
        one["area"] = [1024.0, 9216.0, 1023.999][one["id"] % 3]
    return dataset, found


def overlap_on_the_threshold() -> Scene:
    dataset, _ = plain()
    found = []
    for one in dataset["annotations"]:
        x, y, width, height = one["bbox"]
        half = {"bbox": [x, y, width, height / 2], "score": 0.5}
        found.append({**half, **{k: one[k] for k in ("image_id", "category_id", "segmentation")}})
    return dataset, found


def annotation_ids_from_zero() -> Scene:
    dataset, found = plain()
    for one in dataset["annotations"]:
        one["id"] -= 1
    return dataset, found


def polygons() -> Scene:
    dataset, found = plain()
    for one in dataset["annotations"]:
        x, y, width, height = one["bbox"]
        triangle = [x, y, x + width, y + 0.3, x + width / 2, y + height]
        strip = [x, y, x + 5.5, y, x + 5.5, y + height - 0.7, x, y + height]
        one["segmentation"] = [triangle, strip] if one["id"] % 2 else [triangle]
    return dataset, found


SCENES = [
    plain,
    ties,
    every_box_twice_at_one_score,
    shuffled,
    categories_without_ground_truth_or_detections,
    crowds,
    not_exhaustive,
    over_300_an_image,
    over_300_of_one_category_in_an_image,
    no_detections,
    no_ground_truth,
    nothing_at_all,
    detections_without_area,
    all_detections_without_area,
    objects_without_area,
    areas_on_the_edge_of_a_bin,
    overlap_on_the_threshold,
    annotation_ids_from_zero,
    polygons,
]


def numbers(precision: np.ndarray) -> dict[str, float]:
    table = CategoryAP.from_precision(Categories(NAMES, NOVEL), precision[..., 0])
    metrics = named_metrics(precision, FREQUENCIES)
    assert {"AP", "AP50", "APr", "APc", "APf", "APs", "APm", "APl"} <= metrics.keys()
    per_category = {k: np.nan if v is None else v for k, v in table.as_dict().items()}
    return {**metrics, **table.group_means(), **per_category}


@pytest.mark.parametrize("protocol", [FEDERATED, FIXED, COCO], ids=lambda one: one.name)
@pytest.mark.parametrize("make_scene", SCENES, ids=lambda one: one.__name__)
def test_engines_agree(make_scene: Callable[[], Scene], protocol):
    dataset, found = make_scene()
    truth = GroundTruth(dataset, protocol.rules)
    counted = select(found, protocol)
    for iou_type in ("bbox", "segm"):
        reference, fast = (
            build_engine(name).precision(truth, counted, iou_type)
            for name in ("reference", "hotcoco")
        )
        assert reference.shape == fast.shape == (10, 101, len(NAMES), 4)
        expected = numbers(reference)
        assert numbers(fast) == pytest.approx(expected, abs=1e-4, nan_ok=True), iou_type


def test_the_scenes_are_neither_all_right_nor_all_wrong():
    dataset, found = plain()
    for rules in ("lvis", "coco"):
        precision = build_engine("hotcoco").precision(GroundTruth(dataset, rules), found, "segm")
        assert 5 < named_metrics(precision)["AP"] < 95


@pytest.mark.parametrize("name", ["reference", "hotcoco"])
@pytest.mark.parametrize("rules", ["lvis", "coco"])
def test_inputs_stay_as_they_were(name, rules):
    dataset, found = polygons()
    before = copy.deepcopy((dataset, found))
    truth = GroundTruth(dataset, rules)
    annotations = copy.deepcopy(truth.annotations)
    for iou_type in ("bbox", "segm"):
        build_engine(name).precision(truth, found, iou_type)
    assert (dataset, found) == before
    assert truth.annotations == annotations


def test_ignored_objects_are_refused_by_hotcoco_alone():
    dataset, found = plain()
    dataset["annotations"][4]["ignore"] = 1
    truth = GroundTruth(dataset, "lvis", "my.json")
    assert build_engine("reference").precision(truth, found, "bbox").max() > 0
    with pytest.raises(ValueError, match=r"my\.json: 1 annotations .*TEST\.OVD\.ENGINE reference"):
        build_engine("hotcoco").precision(truth, found, "bbox")


def test_image_ids_that_are_words_are_refused_by_hotcoco_alone():
    dataset, found = plain()
    for one in dataset["images"]:
        one["id"] = f"image {one['id']}"
    for one in dataset["annotations"] + found:
        one["image_id"] = f"image {one['image_id']}"
    truth = GroundTruth(dataset, "lvis", "my.json")
    assert build_engine("reference").precision(truth, found, "bbox").max() > 0
    with pytest.raises(ValueError, match=r"my\.json: .*'image 1'.*TEST\.OVD\.ENGINE reference"):
        build_engine("hotcoco").precision(truth, found, "bbox")


def test_unknown_engine():
    with pytest.raises(ValueError, match=r"'warm' *, expected one of \['hotcoco', 'reference'\]"):
        build_engine("warm")


def test_missing_hotcoco_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(ImportError, match="pip install hotcoco"):
        build_engine("hotcoco")


def test_descriptions_name_library_and_version():
    assert build_engine("reference").describe("lvis") == "reference (lvis 0.5.3)"
    assert build_engine("reference").describe("coco").startswith("reference (pycocotools 2.")
    assert build_engine("hotcoco").describe("lvis").startswith("hotcoco 1.")
