"""COCO files as records: equal to Detectron2's for sound files, and no box lost in others."""

import copy
import json
import random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json as detectron2_loader

from ovd_d2.data.coco_json import load_coco_json, register_coco_json


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path; the metadata of "tests_coco_json" is removed."""

    def _write(content):
        path = tmp_path / "some.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    yield _write
    for name in ("tests_coco_json", "tests_coco_json_theirs"):
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


def load(path):
    return load_coco_json(path, "/pictures", "tests_coco_json")


def random_polygon():
    return [round(random.uniform(0, 60), 1) for _ in range(2 * random.randint(3, 6))]


def random_segmentation():
    return random.choice(
        [
            [random_polygon() for _ in range(random.randint(1, 3))],
            {"size": [50, 60], "counts": [1000, 500, 1500]},
            {"size": [50, 60], "counts": "PPYo1100O1"},
        ]
    )


def random_annotation(number, image_ids, category_ids):
    annotation = {
        "id": number,
        "image_id": random.choice(image_ids),
        "category_id": random.choice(category_ids),
        "bbox": [random.uniform(0, 30) for _ in range(4)],
        "area": 3.5,
    }
    if random.random() < 0.8:
        annotation["iscrowd"] = random.randint(0, 1)
    if random.random() < 0.8:
        annotation["segmentation"] = random_segmentation()
    if random.random() < 0.3:
        annotation["keypoints"] = [random.randint(0, 30) for _ in range(9)]
    return annotation


def random_dataset():
    image_ids = random.sample(range(1000), 6)
    category_ids = random.sample(range(1, 100), 4)
    return {
        "images": [
            {"id": one, "file_name": f"sub/{one}.png", "height": 50, "width": 60}
            for one in image_ids
        ],
        "annotations": [random_annotation(k, image_ids, category_ids) for k in range(20)],
        "categories": [{"id": one, "name": f"name {one}"} for one in category_ids],
    }


@pytest.mark.parametrize("seed", range(40))
def test_sound_files_load_as_with_detectron2(write, seed):
    random.seed(seed)
    path = write(random_dataset())
    expected = detectron2_loader(path, "/pictures", "tests_coco_json_theirs")
    assert load(path) == expected
    ours, theirs = (MetadataCatalog.get(f"tests_coco_json{end}") for end in ("", "_theirs"))
    assert ours.thing_classes == theirs.thing_classes
    assert ours.thing_dataset_id_to_contiguous_id == theirs.thing_dataset_id_to_contiguous_id


def one_annotation(**changes):
    return {
        "images": [{"id": 3, "file_name": "3.png", "height": 9, "width": 9}],
        "annotations": [
            {
                "id": 8,
                "image_id": 3,
                "category_id": 5,
                "bbox": [1, 2, 3, 4],
                "iscrowd": 0,
                **changes,
            }
        ],
        "categories": [{"id": 5, "name": "cat"}],
    }


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 4, 6]],  # two corners
        [[1, 2, 4, 6, 7]],
        [1, 2, 4, 2, 4, 6],  # a polygon that is not in a list
        [],
        None,
        {},
        {"counts": [81]},
        {"size": [9, 9], "counts": ["x"]},
        {"size": [9, 9], "counts": [-1, 82]},
    ],
)
def test_a_box_without_valid_mask_stays(write, segmentation):
    ((record,)) = load(write(one_annotation(segmentation=segmentation)))
    (annotation,) = record["annotations"]
    assert "segmentation" not in annotation
    assert (annotation["bbox"], annotation["category_id"]) == ([1, 2, 3, 4], 0)


def test_valid_polygons_beside_invalid_ones_stay(write):
    good = [1, 2, 4, 2, 4, 6]
    (record,) = load(write(one_annotation(segmentation=[[1, 2, 4, 6], good])))
    assert record["annotations"][0]["segmentation"] == [good]


def test_crowd_of_null_is_none(write):
    (record,) = load(write(one_annotation(iscrowd=None)))
    assert record["annotations"][0]["iscrowd"] == 0


def test_annotations_of_other_images_are_left_out_with_a_warning(write, caplog):
    dataset = one_annotation()
    dataset["annotations"].append({**dataset["annotations"][0], "id": 9, "image_id": 4})
    (record,) = load(write(dataset))
    assert len(record["annotations"]) == 1
    assert "1 annotations are of images that the file does not list" in caplog.text


def without(dataset, part, key):
    changed = copy.deepcopy(dataset)
    del changed[part][0][key]
    return changed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"images": [', "not JSON, or cut short"),
        ("[]", "not COCO format"),
        ({"images": [], "categories": []}, "'annotations' is missing"),
        (without(one_annotation(), "images", "height"), "'height' is missing"),
        (one_annotation(category_id=7), "annotation 8 of image 3 is of category 7"),
        (one_annotation(bbox=[]), "annotation 8 of image 3 has an empty bbox"),
        (one_annotation(ignore=1), "'ignore'"),
    ],
)
def test_faults_name_the_file(write, content, said):
    with pytest.raises(ValueError, match=rf"some\.json: .*{said}"):
        load(write(content))


def test_another_encoding_is_named(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(one_annotation()), encoding="utf-16")
    with pytest.raises(ValueError, match=r"some\.json is not UTF-8 text .*UTF-16"):
        load(str(path))


def test_registering(write, capfd):
    path = write(one_annotation())
    register_coco_json("tests_coco_json", path, "/pictures", base_classes=["cat"])
    try:
        (record,) = DatasetCatalog.get("tests_coco_json")
    finally:
        DatasetCatalog.remove("tests_coco_json")
    metadata = MetadataCatalog.get("tests_coco_json")
    assert record["file_name"] == "/pictures/3.png"
    assert (metadata.json_file, metadata.image_root) == (path, "/pictures")
    assert (metadata.evaluator_type, metadata.base_classes) == ("coco", ["cat"])
    assert "index" not in capfd.readouterr().out  # pycocotools would print "creating index..."
