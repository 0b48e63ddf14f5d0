"""Keys, types, ids, names, sizes and references."""

import json
import random

import pytest

from tests.annotation_sets import (
    TEST,
    TRAIN,
    TRAIN_BOXES,
    checked,
    lvis_set,
    only_problem,
    sound_set,
)


@pytest.mark.parametrize("use", [TRAIN, TRAIN_BOXES, TEST])
@pytest.mark.parametrize("seed", range(3))
def test_a_sound_file_has_no_problem_whatever_the_order_of_its_keys(tmp_path, use, seed):
    rng = random.Random(seed)

    def shuffled(value):
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in rng.sample(sorted(value), len(value))}
        return list(map(shuffled, value)) if isinstance(value, list) else value

    for dataset, lvis in ((sound_set(), False), (lvis_set(), True)):
        report = checked(tmp_path, shuffled(dataset), use, lvis=lvis)
        assert report.problems == [] and report.notices == []
        assert report.counts["annotations"] == 12
        assert [entry["image_id"] for entry in report.images] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": []', "not JSON"),
        ("[]", "not a JSON object"),
        ('{"images": {}, "annotations": [], "categories": []}', "lacks the list 'images'"),
    ],
)
def test_files_that_are_none(tmp_path, content, said):
    assert said in only_problem(checked(tmp_path, content))


def test_missing_parts_are_all_named(tmp_path):
    report = checked(tmp_path, {"images": []})
    assert ["annotations" in str(report.problems[0]), "categories" in str(report.problems[1])] == [
        True,
        True,
    ]


def test_entries_that_are_no_objects_and_empty_parts(tmp_path):
    dataset = sound_set()
    dataset["annotations"].insert(2, "oops")
    assert "1 of 13 entries of annotations are not objects" in only_problem(
        checked(tmp_path, dataset)
    )
    report = checked(tmp_path, {"images": [], "annotations": [], "categories": []})
    said = " ".join(map(str, report.problems))
    assert "file has no images" in said and "file has no categories" in said


@pytest.mark.parametrize(
    ("part", "key", "said"),
    [
        ("images", "file_name", "4 of 4 images have no 'file_name'"),
        ("images", "height", "4 of 4 images have no 'height'"),
        ("images", "width", "4 of 4 images have no 'width'"),
        ("annotations", "id", "12 of 12 annotations have no 'id'"),
        ("annotations", "image_id", "12 of 12 annotations have no 'image_id'"),
        ("annotations", "category_id", "12 of 12 annotations have no 'category_id'"),
        ("annotations", "bbox", "12 of 12 annotations have no 'bbox'"),
        ("categories", "name", "3 of 3 categories have no 'name'"),
    ],
)
def test_missing_keys(tmp_path, part, key, said):
    dataset = sound_set()
    for entry in dataset[part]:
        del entry[key]
    report = checked(tmp_path, dataset, TEST)
    message = only_problem(report)
    assert said in message and str(tmp_path / "train.json") in message


@pytest.mark.parametrize("part", ["images", "categories"])
def test_missing_ids_are_said_first(tmp_path, part):
    dataset = sound_set()
    for entry in dataset[part]:
        del entry["id"]
    first, second = map(str, checked(tmp_path, dataset).problems)
    assert f"{part} have no 'id'" in first
    assert f"of unknown {part}" in second and f"repair the ids of the {part} first" in second


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("frame_001", "1 of 4 images have a string as 'id'"),
        (1.5, "a number with a decimal point"),
        (True, "a boolean"),
        (None, "1 of 4 images have a null 'id'"),
        (-1, "a negative number"),
        (2**63, "a number above 2**63 - 1"),
        (2**70, "a number above 2**63 - 1"),
        ([1], "a list or an object"),
    ],
)
def test_ids_of_other_types(tmp_path, value, said):
    dataset = sound_set()
    dataset["images"][2]["id"] = value
    for annotation in dataset["annotations"][6:9]:
        annotation["image_id"] = value
    message = " ".join(map(str, checked(tmp_path, dataset).problems))
    assert said in message and "3.png" in message
    assert "2**63 - 1" in message


def test_the_highest_id_is_sound(tmp_path):
    dataset = sound_set()
    dataset["images"][0]["id"] = 2**63 - 1
    for annotation in dataset["annotations"][:3]:
        annotation["image_id"] = 2**63 - 1
    assert checked(tmp_path, dataset).problems == []


def test_an_image_id_that_is_used_for_two_files(tmp_path):
    dataset = sound_set()
    dataset["images"][3]["id"] = 1
    first = str(checked(tmp_path, dataset).problems[0])
    assert "image id 1 is used for 1.png and 4.png" in first
    for image in dataset["images"]:
        image["id"] = "same"
    assert 'image id "same" is used for 1.png and 2.png and 2 more' in " ".join(
        map(str, checked(tmp_path, dataset).problems)
    )


def test_ids_of_annotations_and_categories_twice(tmp_path):
    dataset = sound_set()
    dataset["annotations"][5]["id"] = dataset["annotations"][7]["id"] = 1
    message = only_problem(checked(tmp_path, dataset))
    assert "2 of 12 annotations have the id of another" in message and "of image 2" in message
    dataset = sound_set()
    dataset["categories"][2]["id"] = 1
    report = checked(tmp_path, dataset)
    assert "2 of 3 categories share their 'id'" in str(report.problems[0])


@pytest.mark.parametrize("value", [0, -5, 64.0, 64.5, "64", True])
def test_sizes_that_are_no_positive_integers(tmp_path, value):
    dataset = sound_set()
    dataset["images"][1]["width"] = value
    message = only_problem(checked(tmp_path, dataset))
    assert "1 of 4 images have a width that is no positive integer" in message
    assert "2.png" in message and json.dumps(value).replace("t", "T") in message.replace("t", "T")


def test_an_image_without_size_is_no_entry(tmp_path):
    dataset = sound_set()
    del dataset["images"][1]["height"]
    report = checked(tmp_path, dataset)
    assert [entry["image_id"] for entry in report.images] == [1, 3, 4]


@pytest.mark.parametrize("name", ["", "  ", 7, None, ["1.png"]])
def test_file_names_that_name_no_file(tmp_path, name):
    dataset = sound_set()
    dataset["images"][0]["file_name"] = name
    assert "1 of 4 images have a 'file_name' that names no file" in only_problem(
        checked(tmp_path, dataset)
    )


def test_a_file_under_two_ids_is_noted(tmp_path):
    dataset = sound_set()
    dataset["images"][3]["file_name"] = "1.png"
    report = checked(tmp_path, dataset)
    assert report.problems == []
    assert "1 of 4 images have the file of another image" in report.notices[0]
    assert "image 4 (1.png)" in report.notices[0] and "image 1 (1.png)" in report.notices[0]


def test_coco_url_alone_says_what_it_is(tmp_path):
    dataset = lvis_set()
    message = only_problem(checked(tmp_path, dataset))
    assert "4 of 4 images have no 'file_name'" in message
    assert "last two parts of coco_url" in message and "lvis_v1_train" in message


@pytest.mark.parametrize("name", [None, 7, "", "  "])
def test_names_of_categories(tmp_path, name):
    dataset = sound_set()
    dataset["categories"][1]["name"] = name
    report = checked(tmp_path, dataset)
    assert "1 of 3 categories have a 'name' that is not a name" in only_problem(report)
    assert report.categories is None
    dataset["categories"][1]["name"] = "ant"
    assert "2 of 3 categories share their 'name'" in only_problem(checked(tmp_path, dataset))


@pytest.mark.parametrize("part", ["images", "categories"])
@pytest.mark.parametrize("value", [99, "1", [1], -1])
def test_annotations_of_unknown_images_and_categories(tmp_path, part, value):
    dataset = sound_set()
    key = {"images": "image_id", "categories": "category_id"}[part]
    dataset["annotations"][4][key] = value
    message = only_problem(checked(tmp_path, dataset))
    assert f"1 of 12 annotations are of unknown {part}" in message and "annotation 5" in message


def test_the_federated_fields_are_for_test_sets(tmp_path):
    dataset = lvis_set()
    del dataset["images"][2]["neg_category_ids"]
    assert checked(tmp_path, dataset, TRAIN, lvis=True).problems == []
    message = only_problem(checked(tmp_path, dataset, TEST, lvis=True))
    assert "1 of 4 images have no list 'neg_category_ids'" in message and "image 3" in message


def test_what_lvis_asks_of_categories(tmp_path):
    dataset = lvis_set()
    dataset["categories"][2]["id"] = 7
    for annotation in dataset["annotations"]:
        annotation["category_id"] = min(annotation["category_id"], 2)
    message = only_problem(checked(tmp_path, dataset, lvis=True))
    assert "1 to 3, each once" in message and "found 7" in message
    dataset = lvis_set()
    dataset["categories"][0]["frequency"] = "x"
    message = only_problem(checked(tmp_path, dataset, lvis=True))
    assert "1 of 3 categories have no frequency r, c or f" in message
    dataset = lvis_set()
    dataset["images"][0]["coco_url"] = "1.png"
    message = only_problem(checked(tmp_path, dataset, lvis=True))
    assert "1 of 4 images have a 'coco_url' that names no file" in message


def test_a_byte_order_mark_is_for_our_own_loader(tmp_path):
    text = "\ufeff" + json.dumps(sound_set())
    assert checked(tmp_path, text, TRAIN).problems == []
    for report in (checked(tmp_path, text, TEST), checked(tmp_path, text, TRAIN, d2=True)):
        assert "byte order mark" in only_problem(report)
