"""What transfer refuses before it starts, and the table it prints."""

import argparse
import json
import runpy
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from ovd_d2.engine.transfer import evaluate_transfer, transfer_table
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import tiny_config


@pytest.fixture
def register(tmp_path):
    names = []

    def _register(categories, images):
        name = f"tests_transfer_{len(names)}"
        path = tmp_path / f"{name}.json"
        records = [
            {"id": k + 1, "file_name": file, "height": 9, "width": 9}
            for k, file in enumerate(images)
        ]
        one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
        annotations = [{**one, "iscrowd": 0}] if images else []
        dataset = {"images": records, "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(dataset))
        register_coco_instances(name, {}, str(path), str(tmp_path / "pictures"))
        names.append(name)
        return name

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def problems_of(cfg, names):
    with pytest.raises(SetupError) as caught:
        evaluate_transfer(cfg, argparse.Namespace(), names)
    return caught.value.problems


def test_all_problems_of_all_data_sets_are_listed(register, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "1.png")
    twice = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    equal_names = register(twice, ["1.png"])
    no_image = register([{"id": 1, "name": "cat"}], [])
    no_picture = register([{"id": 1, "name": "cat"}], ["1.png", "2.png", "3.png"])
    cfg = tiny_config()
    cfg.MODEL.MASK_ON = False
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.MODEL.WEIGHTS = str(tmp_path / "gone.pth")
    cfg.MODEL.OVD.CLASSIFY_WITH = "clip_crops"
    cfg.MODEL.OVD.TEACHER.PRETRAINED = str(tmp_path / "teacher.safetensors")
    sets = [equal_names, no_image, no_picture, "voc_2007_test", "ade20k_sem_seg_val", "no_such_set"]
    problems = problems_of(cfg, sets)
    expected = [
        "CLASSIFY_WITH",
        "gone.pth",
        f"--datasets '{equal_names}': {tmp_path / equal_names}.json: 2 of 2 categories share",
        f"--datasets '{no_image}': {tmp_path / no_image}.json: file has no images",
        f"--datasets '{no_image}': {tmp_path / no_image}.json: file has no annotations",
        "'voc_2007_test'",
        "'ade20k_sem_seg_val' has evaluator_type 'sem_seg'",
        "'no_such_set' is not registered",
        f"--datasets '{no_picture}': {tmp_path / no_picture}.json: 2 of 3 images are missing",
        "teacher.safetensors",
    ]
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem
    assert not (tmp_path / "out").exists()


def test_a_closed_vocabulary_model_and_missing_weights(register):
    cfg = tiny_config()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    architecture, weights = problems_of(cfg, [])
    assert "has a fixed list of categories" in architecture
    assert "MODEL.WEIGHTS is empty" in weights


def test_another_teacher_than_the_models(tmp_path):
    path = tmp_path / "vocabulary.safetensors"
    Vocabulary(["cat"], torch.eye(1, 64), teacher="somebody-else").save(path)
    torch.save({"model": {}}, tmp_path / "model.pth")
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OVD.VOCABULARY = str(path)
    (problem,) = problems_of(cfg, [])
    assert "somebody-else" in problem and "Pictogram-RN" in problem


def test_the_table_names_data_set_task_and_protocol():
    box = {"AP": 12.34, "AP50": 20.0, "AP75": None}
    entry = {"protocol": "COCO AP", "images": 5, "categories": 20, "bbox": box}
    table = transfer_table({"data_sets": {"voc": entry, "coco": {**entry, "segm": {"AP": 1.0}}}})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0][:5] == ["data set", "task", "images", "names", "AP"]
    assert rows[2] == ["voc", "box", "5", "20", "12.3", "20.0", *"----", "COCO AP"]
    assert [row[:2] for row in rows[2:]] == [["voc", "box"], ["coco", "box"], ["coco", "mask"]]


def test_a_data_set_in_capitals_is_no_option(register):
    split = runpy.run_path(str(Path("tools/evaluate_transfer.py")))["split_datasets"]
    assert split(["VOC", "BDD100K"]) == (["VOC", "BDD100K"], [])
    options = ["MODEL.WEIGHTS", "X.pth", "OUTPUT_DIR", "OUT"]
    assert split(["KITTI", "my.set", *options]) == (["KITTI", "my.set"], options)
    assert split(["own", "OUTPUT_DIR", "TEST"]) == (["own"], ["OUTPUT_DIR", "TEST"])
    DatasetCatalog.register("TEST", list)
    try:
        assert split(["TEST", "TEST.AUG.ENABLED", "True"]) == (
            ["TEST"],
            ["TEST.AUG.ENABLED", "True"],
        )
    finally:
        DatasetCatalog.remove("TEST")


def test_a_damaged_training_vocabulary_is_a_problem(tmp_path):
    path = tmp_path / "vocabulary.safetensors"
    path.write_bytes(b"nothing")
    torch.save({"model": {}}, tmp_path / "model.pth")
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    cfg.MODEL.OVD.VOCABULARY = str(path)
    (problem,) = problems_of(cfg, [])
    assert problem.startswith("MODEL.OVD.VOCABULARY: ") and str(path) in problem
