import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.pictograms.demo.report import (
    read_results,
    scene_for,
    scenes_with_novel,
    score_of_as_many,
    to_instances,
)


@pytest.fixture
def dataset(tmp_path):
    names = ["anchor", "chess king", "star"]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))

    def record(file_name, *objects):
        annotations = [{"category_id": k, "bbox": [0, 0, s, s]} for k, s in objects]
        return {"file_name": file_name, "annotations": annotations}

    records = [
        record("a.png", (0, 10)),
        record("b.png", (0, 30), (2, 5)),
        record("c.png", (0, 20), (1, 20)),
        record("d.png"),
    ]
    DatasetCatalog.register("tests_report", lambda: records)
    MetadataCatalog.get("tests_report").set(json_file=str(path))
    yield "tests_report"
    DatasetCatalog.remove("tests_report")
    MetadataCatalog.remove("tests_report")


@pytest.mark.parametrize(
    ("names", "file_name"),
    [
        ("red anchor", "b.png"),  # the largest one
        ("anchor, black chess king", "c.png"),  # both before the largest
        ("king", "a.png"),  # no category of that name: any scene will do
    ],
)
def test_the_scene_that_shows_most_of_the_names(dataset, names, file_name):
    assert str(scene_for(names, dataset)) == file_name


def test_scenes_need_two_novel_and_a_base_object():
    def record(*categories):
        return {"annotations": [{"category_id": k} for k in categories]}

    records = [record(1, 1), record(0, 1), record(0, 1, 1), record(1, 0, 1), record()]
    assert scenes_with_novel(records, [False, True], 5) == records[2:4]
    assert scenes_with_novel(records, [False, True], 1) == records[2:3]


def test_as_many_detections_are_drawn_as_there_are_objects():
    detections = [{"score": one} for one in (0.2, 0.918, 0.05, 0.417)]
    assert score_of_as_many(detections, 1) == 0.91
    assert score_of_as_many(detections, 2) == 0.41
    assert score_of_as_many(detections, 9) == 0.05
    assert score_of_as_many([], 9) == 0.0


def test_saved_detections_become_instances_again():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:10, 2:8] = 1
    segmentation = mask_utils.encode(np.asfortranarray(mask))
    detection = {"bbox": [2, 5, 6, 5], "score": 0.5, "category_id": 3, "segmentation": segmentation}
    instances = to_instances([detection], (20, 30))
    assert instances.pred_boxes.tensor.tolist() == [[2, 5, 8, 10]]
    assert instances.pred_classes.tolist() == [2]
    assert np.array_equal(instances.pred_masks[0].numpy(), mask.astype(bool))
    assert len(to_instances([], (20, 30))) == 0


def test_detections_without_masks():
    instances = to_instances([{"bbox": [2, 5, 6, 5], "score": 0.5, "category_id": 3}], (20, 30))
    assert instances.pred_boxes.tensor.tolist() == [[2, 5, 8, 10]]
    assert not instances.has("pred_masks")


def test_undefined_numbers_are_nan_again(tmp_path):
    path = tmp_path / "inference" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"bbox": {"AP": 1.5, "APl": None}}))
    metrics = read_results(tmp_path)["bbox"]
    assert metrics["AP"] == 1.5
    assert np.isnan(metrics["APl"])
