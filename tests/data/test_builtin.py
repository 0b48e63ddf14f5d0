"""Data sets that Detectron2 does not register, or not completely."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data import builtin, ov_coco
from ovd_d2.data.categories import get_categories
from ovd_d2.data.public_sets import VOC_SETS, dataset_field
from ovd_d2.data.registration import register_data_sets


def test_minival_has_no_masks_and_images_from_both_splits(tmp_path):
    host = "http://images.cocodataset.org"
    images = [
        {"id": 9, "coco_url": f"{host}/train2017/9.jpg", "height": 10, "width": 20},
        {
            "id": 4,
            "coco_url": f"{host}/val2017/4.jpg",
            "height": 30,
            "width": 40,
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [7],
        },
    ]
    annotations = [{"id": 1, "image_id": 4, "category_id": 12, "bbox": [1, 2, 3, 4]}]
    path = tmp_path / "minival.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    first, second = builtin._load_lvis_boxes(str(path), "/coco", "minival")
    assert (first["image_id"], first["file_name"]) == (4, "/coco/val2017/4.jpg")
    assert (first["height"], first["width"]) == (30, 40)
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([3], [7])
    (box,) = first["annotations"]
    assert (box["category_id"], box["bbox"]) == (11, [1, 2, 3, 4])
    assert (second["file_name"], second["annotations"]) == ("/coco/train2017/9.jpg", [])


def test_minival_has_lvis_categories():
    table = get_categories("lvis_v1_minival")
    assert (len(table), sum(table.novel)) == (1203, 337)
    metadata = MetadataCatalog.get("lvis_v1_minival")
    assert (metadata.evaluator_type, metadata.boxes_only) == ("lvis", True)
    assert metadata.json_file.endswith("lvis/lvis_v1_minival.json")


OBJECTS365 = {
    "objects365_v1_train": "objects365v1/objects365_train.json",
    "objects365_v2_train": "objects365/annotations/zhiyuan_objv2_train.json",
    "objects365_v2_val": "objects365/annotations/zhiyuan_objv2_val.json",
}
SPELT = {
    "v1": {"person": "person", "hotair balloon": "hot air balloon", "tissue ": "tissue"},
    "v2": {"Person": "Person", "Moniter/TV": "Monitor/TV", "Table Tennis ": "Table Tennis"},
}


@pytest.mark.parametrize("name", OBJECTS365)
def test_objects365_reads_official_names_and_shows_them_spelled_out(tmp_path, monkeypatch, name):
    register_data_sets([name])
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file.endswith(OBJECTS365[name])
    _, version, split = name.split("_")
    assert metadata.image_root.endswith(
        {"v1": "objects365v1/", "v2": "objects365/"}[version] + split
    )
    names = SPELT[version]
    categories = [{"id": k + 1, "name": one} for k, one in enumerate(names)]
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    monkeypatch.setitem(vars(metadata), "json_file", str(path))
    assert get_categories(name).names == list(names.values())
    assert dataset_field(name, "boxes_only")


def test_every_voc_set_is_an_open_vocabulary_test_set():
    assert {name for name in DatasetCatalog.list() if name.startswith("voc_20")} == set(VOC_SETS)
    for name in VOC_SETS:
        assert MetadataCatalog.get(name).evaluator_type == "pascal_voc"
        assert dataset_field(name, "boxes_only")
        assert "potted plant" in get_categories(name).names
        assert not MetadataCatalog.get(name).get("spellings", None)  # Detectron2's stay its own


def test_ov_coco_has_its_base_categories(tmp_path, monkeypatch):
    for name in (ov_coco.TRAIN_SET, ov_coco.VAL_SET):
        register_data_sets([name])
        metadata = MetadataCatalog.get(name)
        assert "coco/zero-shot" in metadata.json_file
        names = sorted([*ov_coco.BASE_CLASSES, *ov_coco.NOVEL_CLASSES])
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
        path = tmp_path / "ov_coco.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        monkeypatch.setitem(vars(metadata), "json_file", str(path))
        table = get_categories(name)
        novel = {one for one, flag in zip(table.names, table.novel, strict=True) if flag}
        assert novel == set(ov_coco.NOVEL_CLASSES)


def test_what_the_metadata_says_comes_first(monkeypatch):
    metadata = MetadataCatalog.get("voc_2007_test")
    monkeypatch.setitem(vars(metadata), "boxes_only", False)
    assert dataset_field("voc_2007_test", "boxes_only") is False
    assert dataset_field("coco_2017_val", "boxes_only", "unknown") == "unknown"
