"""Data sets of one's own, from a yaml file."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.categories import get_categories
from ovd_d2.data.own import register_from_environment, register_own

NAMES = ["anchor", "bell", "cat"]


@pytest.fixture
def folder(tmp_path):
    before = set(DatasetCatalog.list())
    image = {"id": 1, "file_name": "one.png", "height": 10, "width": 10}
    box = {"id": 1, "image_id": 1, "category_id": 30, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    # ids with gaps, and not in the order of the names
    categories = [{"id": 10 * (3 - k), "name": name} for k, name in enumerate(NAMES)]
    dataset = {"images": [image], "annotations": [box], "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(dataset))
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(folder, text):
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_what_is_not_listed_as_base_is_novel(folder):
    text = "own_train: {json_file: train.json, image_root: pictures, base: [anchor, cat]}"
    assert register_own(write(folder, text)) == ["own_train"]
    table = get_categories("own_train")
    assert table.names == ["cat", "bell", "anchor"]  # by rising id
    assert table.is_novel == [False, True, False]
    (record,) = DatasetCatalog.get("own_train")
    assert record["file_name"] == str(folder / "pictures" / "one.png")
    assert table.names[record["annotations"][0]["category_id"]] == "anchor"


def test_without_a_list_everything_is_base(folder):
    register_own(write(folder, "own_val: {json_file: train.json, image_root: ''}"))
    assert get_categories("own_val").is_novel == [False] * 3


def test_an_empty_list_leaves_no_base(folder):
    register_own(write(folder, "own_val: {json_file: train.json, image_root: '', base: []}"))
    assert get_categories("own_val").is_novel == [True] * 3


def test_absolute_paths_stay(folder):
    text = f"own_train: {{json_file: {folder / 'train.json'}, image_root: /pictures}}"
    register_own(write(folder, text))
    assert MetadataCatalog.get("own_train").image_root == "/pictures"


def test_a_misspelt_base_name_is_refused(folder):
    register_own(write(folder, "own: {json_file: train.json, image_root: '', base: [Cat]}"))
    with pytest.raises(ValueError, match=r"'own'.*\['Cat'\].*cat, bell, anchor"):
        get_categories("own")


def test_every_problem_is_listed_and_nothing_registered(folder):
    text = """
good: {json_file: train.json, image_root: ''}
typo: {json: train.json, image_root: '', base: cat}
coco_2017_val: {json_file: a.json, image_root: ''}
flat: train.json
"""
    with pytest.raises(ValueError) as caught:
        register_own(write(folder, text))
    message = str(caught.value)
    for expected in (
        "typo: unknown key 'json'",
        "typo: json_file is missing",
        "typo: base must be a list, got 'cat'",
        "coco_2017_val: a data set of this name is registered already",
        "flat: expected a name",
    ):
        assert expected in message
    assert "good" not in DatasetCatalog


def test_missing_empty_and_foreign_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"OVD_DATASETS: no file at .*nothing\.yaml"):
        register_own(folder / "nothing.yaml")
    with pytest.raises(ValueError, match=r"own\.yaml: expected 'name"):
        register_own(write(folder, ""))
    with pytest.raises(ValueError, match=r"own\.yaml: not a yaml file"):
        register_own(write(folder, "a: ["))


def test_the_environment_names_the_file(folder, monkeypatch):
    text = "own_train: {json_file: train.json, image_root: pictures}"
    monkeypatch.setenv("OVD_DATASETS", str(write(folder, text)))
    register_from_environment()
    assert "own_train" in DatasetCatalog
    monkeypatch.delenv("OVD_DATASETS")
    register_from_environment()  # nothing to do, and the name is not registered twice
