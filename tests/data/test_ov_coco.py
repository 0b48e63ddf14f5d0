"""The 48 / 17 split, on small JSONs in COCO's form."""

import json

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco import load_coco_json

from ovd_d2.data import ov_coco
from ovd_d2.data.categories import get_categories
from ovd_d2.data.registration import register_data_sets

THINGS = [
    {"id": one["id"], "name": one["name"], "supercategory": "thing"}
    for one in COCO_CATEGORIES
    if one["isthing"]
]
ID = {one["name"]: one["id"] for one in THINGS}
# Image -> what it shows. "kite" is base, "cat" and "tie" are novel, "wine glass" is neither.
SCENES = {1: ["kite", "cat"], 2: ["cat", "tie"], 3: ["wine glass"], 4: []}


def coco_file(scenes, categories=THINGS):
    annotations = [
        {
            "id": 10 * image_id + k,
            "image_id": image_id,
            "category_id": ID[name],
            "bbox": [5, 5, 20, 20],
            "area": 400,
            "iscrowd": 0,
            "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]],
        }
        for image_id, names in scenes.items()
        for k, name in enumerate(names)
    ]
    images = [{"id": k, "file_name": f"{k:012d}.jpg", "height": 64, "width": 64} for k in scenes]
    parts = {"images": images, "annotations": annotations, "categories": list(categories)}
    return {"info": {"year": 2017}, "licenses": [], **parts}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        path = folder / f"instances_{split}2017.json"
        path.write_text(json.dumps(coco_file(SCENES, THINGS[::-1])))
    return tmp_path


def contents(root, file):
    dataset = json.loads((root / ov_coco.FOLDER / file).read_text())
    names = {one["id"]: one["name"] for one in dataset["categories"]}
    found = sorted((one["image_id"], names[one["category_id"]]) for one in dataset["annotations"])
    return dataset, [one["id"] for one in dataset["images"]], found


def test_the_split_is_48_and_17_of_cocos_80_names():
    base, novel = set(ov_coco.BASE_CLASSES), set(ov_coco.NOVEL_CLASSES)
    assert (len(base), len(novel)) == (len(ov_coco.BASE_CLASSES), len(ov_coco.NOVEL_CLASSES))
    assert (len(base), len(novel)) == (48, 17)
    assert not base & novel
    assert base | novel <= set(ID)
    for names in (ov_coco.BASE_CLASSES, ov_coco.NOVEL_CLASSES):
        ids = [ID[name] for name in names]
        assert ids == sorted(ids)


def test_training_keeps_every_image_and_no_novel_annotation(root):
    ov_coco.build_ov_coco(root)
    dataset, images, found = contents(root, ov_coco.TRAIN_FILE)
    assert images == [1, 2, 3, 4]
    assert found == [(1, "kite")]
    ids = [one["id"] for one in dataset["categories"]]
    assert (len(ids), ids) == (65, sorted(ids))
    assert dataset["info"] == {"year": 2017}


def test_the_complete_training_file_has_the_novel_ones_too(root):
    ov_coco.build_ov_coco(root)
    _, images, found = contents(root, ov_coco.TRAIN_ALL_FILE)
    assert images == [1, 2, 3, 4]
    assert found == [(1, "cat"), (1, "kite"), (2, "cat"), (2, "tie")]


def test_validation_keeps_the_images_that_show_one_of_the_65(root):
    ov_coco.build_ov_coco(root)
    dataset, images, found = contents(root, ov_coco.VAL_FILE)
    assert images == [1, 2]
    assert found == [(1, "cat"), (1, "kite"), (2, "cat"), (2, "tie")]
    assert len(dataset["categories"]) == 65


def test_files_are_replaced_only_when_asked(root):
    paths = ov_coco.build_ov_coco(root)
    paths[1].write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        ov_coco.build_ov_coco(root)
    assert paths[1].read_text() == "mine"
    ov_coco.build_ov_coco(root, overwrite=True)
    assert paths[1].read_text() != "mine"


def test_missing_foreign_and_broken_files_are_named(root):
    path = root / "coco" / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(coco_file({}, THINGS[:50])))
    with pytest.raises(ValueError, match=r"instances_val2017\.json: expected COCO's 80 categories"):
        ov_coco.build_ov_coco(root)
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_val2017\.json: .* not JSON"):
        ov_coco.build_ov_coco(root, overwrite=True)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks.*annotations.*categories"):
        ov_coco.build_ov_coco(root, overwrite=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json"):
        ov_coco.build_ov_coco(root, overwrite=True)


def test_the_registered_sets_know_their_split(root, monkeypatch):
    ov_coco.build_ov_coco(root)
    register_data_sets()
    for name, file in (
        ("coco_zeroshot_train_oriorder", ov_coco.TRAIN_FILE),
        ("coco_generalized_zeroshot_val", ov_coco.VAL_FILE),
    ):
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file.endswith(f"{ov_coco.FOLDER}/{file}")
        monkeypatch.setitem(vars(metadata), "json_file", str(root / ov_coco.FOLDER / file))
        table = get_categories(name)
        assert (len(table), sum(table.novel)) == (65, 17)
        novel = [name for name, flag in zip(table.names, table.novel, strict=True) if flag]
        assert novel == list(ov_coco.NOVEL_CLASSES)


def test_detectron2_loads_what_is_written_in_the_order_of_the_table(root):
    paths = ov_coco.build_ov_coco(root)
    records = load_coco_json(str(paths[0]), "images", "tests_ov_coco")
    MetadataCatalog.remove("tests_ov_coco")
    assert [len(record["annotations"]) for record in records] == [1, 0, 0, 0]
    names = sorted(ov_coco.BASE_CLASSES + ov_coco.NOVEL_CLASSES, key=ID.__getitem__)
    assert names[records[0]["annotations"][0]["category_id"]] == "kite"
