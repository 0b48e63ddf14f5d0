"""The base-only LVIS file, on small JSONs in LVIS's form."""

import json

import pytest
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ovd_d2.data.lvis_base import write_lvis_base


def lvis_file(path, frequencies):
    categories = [
        {"id": k + 1, "name": f"name_{k}", "synonyms": [f"name {k}"], "frequency": letter}
        for k, letter in enumerate(frequencies)
    ]
    images = [
        {
            "id": k,
            "coco_url": f"http://images.cocodataset.org/train2017/{k:012d}.jpg",
            "height": 64,
            "width": 64,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
        for k in (1, 2)
    ]
    annotations = [
        {"id": k + 1, "image_id": 1 + k % 2, "category_id": k + 1, "bbox": [0, 0, 5, 5]}
        for k in range(min(4, len(frequencies)))
    ]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(dataset))
    return dataset


def test_rare_annotations_go_and_the_rest_stays(tmp_path):
    dataset = lvis_file(tmp_path / "train.json", "frcr")
    target = tmp_path / "deeper" / "train_norare.json"
    counts = write_lvis_base(tmp_path / "train.json", target)
    assert (counts.base, counts.novel) == (2, 2)
    assert (counts.annotations_kept, counts.annotations_removed) == (2, 2)
    written = json.loads(target.read_text())
    assert [one["category_id"] for one in written["annotations"]] == [1, 3]
    assert written["images"] == dataset["images"]
    assert written["categories"] == dataset["categories"]


def test_lvis_v1s_own_categories_pass(tmp_path):
    letters = [one["frequency"] for one in sorted(LVIS_CATEGORIES, key=lambda one: one["id"])]
    lvis_file(tmp_path / "train.json", letters)
    counts = write_lvis_base(tmp_path / "train.json", tmp_path / "out.json")
    assert (counts.base, counts.novel) == (866, 337)


def test_1203_categories_in_another_split_are_refused(tmp_path):
    lvis_file(tmp_path / "train.json", "r" * 336 + "f" * 867)
    with pytest.raises(ValueError, match=r"866 base and 337 rare .* found 867 and 336"):
        write_lvis_base(tmp_path / "train.json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_coco_file_is_refused(tmp_path):
    lvis_file(tmp_path / "train.json", ["f", None])
    with pytest.raises(ValueError, match=r"1 of 2 categories .* 'name_1'"):
        write_lvis_base(tmp_path / "train.json", tmp_path / "out.json")


def test_a_target_that_exists_stays(tmp_path):
    lvis_file(tmp_path / "train.json", "fr")
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_lvis_base(tmp_path / "train.json", tmp_path / "out.json")
    write_lvis_base(tmp_path / "train.json", tmp_path / "out.json", overwrite=True)
    assert (tmp_path / "out.json").read_text() != "mine"
