"""Registered data sets: which loader, which names, which split."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode

from ovd_d2.data.builtin import pictograms
from ovd_d2.data.own import register_own
from ovd_d2.data.registration import register
from ovd_d2.data.validation import validate_dataset
from ovd_d2.pictograms.dataset.generate import GENERATOR_VERSION
from tests.annotation_sets import (
    TEST,
    TRAIN,
    TRAIN_BOXES,
    lvis_set,
    only_problem,
    sound_set,
    written,
)


@pytest.fixture(autouse=True)
def _registered():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def own(folder, dataset, base="[ant, bee]"):
    written(folder, dataset)
    entry = f"my_train: {{json_file: train.json, image_root: pictures, base: {base}}}"
    (folder / "my_data.yaml").write_text(entry)
    register_own(folder / "my_data.yaml")
    return validate_dataset("my_train", TRAIN, progress=False)


def test_a_sound_set_of_ones_own(tmp_path):
    report = own(tmp_path, sound_set())
    assert report.problems == [] and report.notices == []
    assert report.categories.names == ["ant", "bee", "cat"]
    assert report.categories.novel == [False, False, True]
    assert report.source == str(tmp_path / "train.json")
    loaded = DatasetCatalog.get("my_train")
    keys = ("file_name", "image_id", "height", "width")
    assert report.images == [{key: one[key] for key in keys} for one in loaded]


def test_images_with_base_objects(tmp_path):
    dataset = sound_set()
    dataset["annotations"] = [
        one for one in dataset["annotations"] if one["image_id"] != 2 or one["category_id"] == 3
    ]
    for annotation in dataset["annotations"][:3]:
        annotation["iscrowd"] = 1
    report = own(tmp_path, dataset)
    assert [one["image_id"] for one in report.annotated_images] == [3, 4]


def test_crowds_alone_are_nothing_to_train_on(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 1
    message = only_problem(own(tmp_path, dataset))
    assert (
        "none of its 2 base categories has an annotation that is not a crowd (12 crowds)" in message
    )


def test_a_split_with_nothing_to_train_on(tmp_path):
    dataset = sound_set()
    dataset["annotations"] = [one for one in dataset["annotations"] if one["category_id"] == 3]
    message = only_problem(own(tmp_path, dataset))
    assert "none of its 2 base categories has an annotation (" in message


def test_all_categories_novel(tmp_path):
    assert "no base category: all 3 are novel" in only_problem(own(tmp_path, sound_set(), "[]"))


def test_an_odd_split_is_noted(tmp_path):
    dataset = sound_set()
    dataset["categories"] += [{"id": 10 + k, "name": name} for k, name in enumerate("defg")]
    report = own(tmp_path, dataset, "[ant, bee, cat, d, e, f, g]")
    assert report.problems == []
    assert "no novel category" in report.notices[0]
    assert "4 base categories have no box in training: d, e, f ..." in report.notices[1]


def test_base_names_that_are_not_there(tmp_path):
    message = only_problem(own(tmp_path, sound_set(), "[ant, zebra]"))
    assert "zebra" in message


def test_flat_boxes_of_a_public_file_are_noted(tmp_path):
    dataset = sound_set()
    dataset["annotations"][0]["bbox"][2] = 0
    assert "boxes have no width or height" in only_problem(own(tmp_path, dataset))
    MetadataCatalog.get("my_train").official = True  # as whoever registers such a set says
    report = validate_dataset("my_train", TRAIN, progress=False)
    assert report.problems == [] and "boxes have no width or height" in report.notices[0]


def test_a_missing_file_of_ones_own(tmp_path):
    own(tmp_path, sound_set())
    MetadataCatalog.get("my_train").set(own_file=str(tmp_path / "my_data.yaml"))
    (tmp_path / "train.json").unlink()
    message = only_problem(validate_dataset("my_train", TRAIN))
    assert "my_data.yaml" in message and "DETECTRON2_DATASETS" not in message


def test_an_empty_test_set(tmp_path):
    own(tmp_path, {**sound_set(), "annotations": []})
    message = only_problem(validate_dataset("my_train", TEST, progress=False))
    assert "no annotations" in message


def test_a_test_set_of_crowds_alone(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 1
    own(tmp_path, dataset)
    message = only_problem(validate_dataset("my_train", TEST, progress=False))
    assert "no annotations of single objects" in message and "12, all crowds" in message


@pytest.mark.parametrize(("word", "ids"), [("novel", {1, 2}), ("base", {3})])
def test_a_test_set_without_objects_of_a_part_of_the_split(tmp_path, word, ids):
    dataset = sound_set()
    kept = [one for one in dataset["annotations"] if one["category_id"] in ids]
    own(tmp_path, {**dataset, "annotations": kept})
    report = validate_dataset("my_train", TEST, progress=False)
    assert report.problems == []
    assert len(report.notices) == 1 and f"AP_{word} will be nan" in report.notices[0]


def test_pictograms_are_lvis(tmp_path):
    register(pictograms("tests_pictograms", "val"), tmp_path)
    folder = tmp_path / "tests_pictograms"
    folder.mkdir()
    dataset = {**lvis_set(), "info": {"arguments": {"generator_version": GENERATOR_VERSION}}}
    written(folder, dataset, "tests_pictograms_val.json")
    report = validate_dataset("tests_pictograms_val", TEST, progress=False)
    assert report.problems == [] and report.categories.novel == [True, False, False]
    loaded = DatasetCatalog.get("tests_pictograms_val")
    assert [one["file_name"] for one in report.images] == [one["file_name"] for one in loaded]


def test_names_of_an_official_lvis_file(tmp_path):
    written(tmp_path, lvis_set())
    name = "lvis_v1_tests"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "train.json"), image_root="", evaluator_type="lvis"
    )
    report = validate_dataset(name, TRAIN, progress=False)
    assert "3 of 3 categories are not Detectron2's" in " ".join(map(str, report.problems))


def test_detectron2s_own_loader_loses_boxes(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    path = written(tmp_path, dataset)
    register_coco_instances("tests_d2", {}, str(path), "")
    assert all(not one["annotations"] for one in DatasetCatalog.get("tests_d2"))
    assert "leaves out their boxes" in only_problem(
        validate_dataset("tests_d2", TRAIN_BOXES, progress=False)
    )


def test_boxes_only_sets_are_not_asked_for_masks(tmp_path):
    dataset = sound_set()
    for annotation in dataset["annotations"]:
        del annotation["segmentation"]
    register_coco_instances("tests_d2", {"boxes_only": True}, str(written(tmp_path, dataset)), "")
    report = validate_dataset("tests_d2", TEST, progress=False)
    assert report.problems == []


def records(mode=BoxMode.XYXY_ABS):
    return [
        {
            "file_name": f"/data/{k}.jpg",
            "image_id": k,
            "height": 48,
            "width": 64,
            "annotations": [
                {
                    "bbox": np.array([1, 2, 30, 40]),
                    "bbox_mode": mode,
                    "category_id": k % 2,
                    "segmentation": [np.array([1.0, 2, 30, 2, 30, 40])],
                }
            ],
        }
        for k in range(3)
    ]


def validated(found, use=TRAIN):
    DatasetCatalog.register("tests_function", lambda: found)
    MetadataCatalog.get("tests_function").set(thing_classes=["ant", "bee"], base_classes=["ant"])
    report = validate_dataset("tests_function", use, progress=False)
    DatasetCatalog.remove("tests_function")
    MetadataCatalog.remove("tests_function")
    return report


def test_a_function_is_checked_like_a_file():
    report = validated(records())
    assert report.problems == [] and report.notices == []
    assert report.images[1] == {
        "file_name": "/data/1.jpg",
        "image_id": 1,
        "height": 48,
        "width": 64,
    }
    assert [one["image_id"] for one in report.annotated_images] == [0, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox": [1, 2, 1, 40]}, "no width or height"),
        ({"bbox": [1, 2, 3, float("nan")]}, "not finite"),
        ({"category_id": 5}, "unknown categories"),
        ({"segmentation": [[1, 2, 3, 4]]}, "fewer than three points"),
        ({"segmentation": {"size": (48, 64), "counts": b"~"}}, "broken RLE"),
    ],
)
def test_faults_of_a_function(change, said):
    found = records()
    found[2]["annotations"][0].update(change)
    message = only_problem(validated(found))
    assert said in message and "'tests_function'" in message and "1 of 3" in message
    assert "correct what the registered function returns" in message and "--fix" not in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox_mode": None}, "a ndarray of 4 in None"),
        ({"bbox_mode": BoxMode.XYWH_ABS}, "a ndarray of 4 in <BoxMode.XYWH_ABS"),
        ({"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_REL}, "a list of 4 in <BoxMode.XYXY_REL"),
    ],
)
def test_boxes_that_the_mapper_cannot_convert(change, said):
    found = records()
    found[2]["annotations"][0].update(change)
    message = only_problem(validated(found))
    assert "1 of 3 boxes cannot be converted" in message and said in message
    assert "annotation number 3 of image 2" in message
    with pytest.raises((AssertionError, IndexError, NotImplementedError)):
        transform_instance_annotations(found[2]["annotations"][0], TransformList([]), (48, 64))


def test_boxes_without_a_mode():
    found = records()
    del found[0]["annotations"][0]["bbox_mode"]
    assert "found no bbox_mode" in only_problem(validated(found))


def test_a_path_is_a_file_name():
    found = records()
    for record in found:
        record["file_name"] = Path(record["file_name"])
    report = validated(found)
    assert report.problems == [] and report.images[1]["file_name"] == "/data/1.jpg"


@pytest.mark.parametrize("spoilt", ["abc", {"annotations": ["abc"]}, {"annotations": None}])
def test_records_that_are_none(spoilt):
    message = only_problem(validated([*records(), spoilt]))
    assert "1 of 4 records are not dicts" in message and "number 4" in message
    assert "no list" in only_problem(validated(iter(records())))


def test_string_ids_of_a_function_are_for_evaluation_alone():
    found = records()
    for record in found:
        record["image_id"] = f"{record['image_id']:06d}"
    assert "3 of 3 images have a string as 'id'" in only_problem(validated(found))
    assert validated(found, TEST).problems == []


def test_an_unregistered_name():
    with pytest.raises(KeyError, match="not registered"):
        validate_dataset("nobody", TRAIN)


def test_voc_is_read_through_detectron2(tmp_path):
    image = tmp_path / "JPEGImages" / "000001.jpg"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(image), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("000001\n000002\n")
    for name in ("000001", "000002"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><height>48</height><width>64</width></size><object><name>cat</name>"
            "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>"
            "</annotation>"
        )
    from detectron2.data.datasets import register_pascal_voc

    register_pascal_voc("voc_tests", str(tmp_path), "test", 2007)
    MetadataCatalog.get("voc_tests").set(boxes_only=True)
    report = validate_dataset("voc_tests", TEST, progress=False)
    assert report.problems == [] and report.images[0]["image_id"] == "000001"
    assert json.dumps(report.images[0]["file_name"]) == json.dumps(str(image))
