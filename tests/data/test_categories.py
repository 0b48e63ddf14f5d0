import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data import categories
from ovd_d2.data.base_only import drop_annotations
from ovd_d2.data.categories import get_categories, joined_categories
from ovd_d2.data.paths import datasets_root
from ovd_d2.vocabulary import Categories


@pytest.fixture
def register(tmp_path):
    names = []

    def _register(categories, **metadata):
        name = f"tests_categories_{len(names)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(json_file=str(path), **metadata)
        names.append(name)
        return name

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_rare_categories_of_an_lvis_file_are_novel(register):
    name = register(
        [
            {"id": 2, "name": "b", "frequency": "r"},
            {"id": 1, "name": "a", "frequency": "f"},
        ]
    )
    table = get_categories(name)
    assert (table.names, table.novel, table.frequencies) == (
        ["a", "b"],
        [False, True],
        ["f", "r"],
    )


def test_synonyms_are_known_and_the_first_is_the_name(register):
    name = register(
        [
            {"id": 1, "name": "sofa", "synonyms": ["couch", "pottedsofa"]},
            {"id": 2, "name": "b", "synonyms": []},
            {"id": 3, "name": "c"},
        ],
        spellings={"pottedsofa": "potted sofa"},
    )
    table = get_categories(name)
    assert table.names == ["couch", "b", "c"]
    assert table.synonyms == [["couch", "potted sofa"], ["b"], ["c"]]


def test_synonyms_that_are_one_word_are_refused(register):
    name = register([{"id": 1, "name": "sofa", "synonyms": "couch"}])
    with pytest.raises(ValueError, match="category 'sofa': 'synonyms' must be a list"):
        get_categories(name)


def test_what_the_metadata_does_not_call_base_is_novel(register):
    name = register([{"id": 5, "name": "a"}, {"id": 9, "name": "b"}], base_classes=["b"])
    table = get_categories(name)
    assert (table.novel, table.frequencies) == ([True, False], None)


def test_base_classes_come_before_frequencies(register):
    categories = [
        {"id": 1, "name": "a", "frequency": "r"},
        {"id": 2, "name": "b", "frequency": "f"},
    ]
    assert get_categories(register(categories, base_classes=["a"])).novel == [False, True]
    assert get_categories(register(categories, base_classes=[])).novel == [True, True]


def test_unknown_base_class_is_refused(register):
    name = register([{"id": 1, "name": "a"}], base_classes=["a", "zebra"])
    with pytest.raises(ValueError, match="zebra"):
        get_categories(name)


def test_spellings_are_for_the_teacher_and_base_names_as_in_the_file(register):
    categories = [{"id": 1, "name": "pottedplant"}, {"id": 2, "name": "cat"}]
    spellings = {"pottedplant": "potted plant"}
    name = register(categories, spellings=spellings, base_classes=["pottedplant"])
    table = get_categories(name)
    assert (table.names, table.novel) == (["potted plant", "cat"], [False, True])


def test_voc_has_no_annotation_file_and_readable_names():
    names = get_categories("voc_2007_test").names
    assert len(names) == 20
    assert {"potted plant", "dining table", "tv monitor", "aeroplane"} <= set(names)


def test_lvis_has_866_base_and_337_novel_categories():
    table = get_categories("lvis_v1_train_norare")
    assert (len(table), sum(table.novel)) == (1203, 337)
    assert sum(map(len, table.synonyms)) == 1825


def test_missing_and_foreign_files_are_named(register, tmp_path):
    name = register([])
    path = tmp_path / f"{name}.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=str(path)):
        get_categories(name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        get_categories(name)


def test_unregistered_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="pictograms_v1_train"):
        get_categories("pictogram")


def test_annotations_of_novel_categories_are_dropped_and_images_stay():
    records = [
        {"image_id": 1, "annotations": [{"category_id": 0}, {"category_id": 1}]},
        {"image_id": 2, "annotations": [{"category_id": 1}]},
    ]
    kept = drop_annotations(records, [False, True])
    assert [len(record["annotations"]) for record in kept] == [1, 0]
    assert len(records[0]["annotations"]) == 2


def test_datasets_prefix_follows_the_environment(monkeypatch, tmp_path):
    from detectron2.utils.file_io import PathManager

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert datasets_root() == tmp_path
    assert PathManager.get_local_path("datasets://a/b.json") == str(tmp_path / "a" / "b.json")
    assert not PathManager.exists("datasets://a/b.json")


@pytest.mark.parametrize("key", ["id", "name"])
def test_categories_without_id_or_name_are_a_message(register, key):
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    del categories[1][key]
    message = rf"1 of 2 categories have no '{key}' \(categories\[\].{key}, first: category"
    with pytest.raises(ValueError, match=message):
        get_categories(register(categories))


def test_a_byte_order_mark_is_taken_and_utf16_is_named(register, tmp_path):
    name = register([{"id": 1, "name": "ameise"}])
    path = tmp_path / f"{name}.json"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert get_categories(name).names == ["ameise"]
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=rf"{path}.*UTF-16"):
        get_categories(name)


def test_a_missing_file_of_ones_own_names_the_yaml_file(register, tmp_path):
    name = register([], own_file="/home/me/my_data.yaml")
    (tmp_path / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"json_file of '.*' in /home/me/my_data.yaml") as e:
        get_categories(name)
    assert "DETECTRON2_DATASETS" not in str(e.value)


def test_categories_of_several_sets_are_joined_by_name(monkeypatch):
    tables = {
        "old": Categories(["kite", "anchor"], [True, False], ids=[7, 9]),
        "new": Categories(
            ["anchor", "comet"], [False, False], synonyms=[["anchor"], ["comet", "c"]]
        ),
        "other": Categories(["kite"], [False]),
    }
    monkeypatch.setattr(categories, "get_categories", tables.__getitem__)
    assert joined_categories(["old"]) is tables["old"]
    found = joined_categories(["old", "new"])
    assert (found.names, found.novel) == (["kite", "anchor", "comet"], [True, False, False])
    assert found.ids == [0, 1, 2] and found.synonyms == [["kite"], ["anchor"], ["comet", "c"]]
    with pytest.raises(ValueError, match="'kite' is novel in some of old, other, but not in all"):
        joined_categories(["old", "other"])
