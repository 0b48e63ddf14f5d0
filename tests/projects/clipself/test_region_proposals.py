"""Proposals out of stores and JSON files, and how they are drawn."""

import json

import numpy as np
import pytest
import torch

from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.proposals import open_proposals, sample_proposals
from ovd_d2.projects.clipself.regions import Patches, Proposals
from tests.proposal_stores import random_proposals, write_proposals

IMAGES = [{"image_id": k, "file_name": f"{k}.png", "height": 30, "width": 40} for k in (1, 2, 7)]
RESULTS = [
    {"image_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1},
    {"image_id": 1, "bbox": [0.5, 0, 20, 10]},
    {"image_id": 7, "bbox": [5, 5, 0, 0]},
    {"image_id": 2, "bbox": [0, 0, 40, 30]},
]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "proposals.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def annotations(images=IMAGES, found=RESULTS):
    return {"images": [{"id": one["image_id"]} for one in images], "annotations": found}


def drawn(boxes, limit=20, area=(0, 1e9), seed=0):
    generator = np.random.default_rng(seed)
    return sample_proposals(np.array(boxes, float), limit=limit, area=area, generator=generator)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: annotations(found=x)])
def test_a_json_file_of_either_kind(write, form):
    source = open_proposals(write(form(RESULTS)))
    assert source.boxes_of(7).tolist() == [[1, 2, 4, 6], [5, 5, 5, 5]]
    assert source.boxes_of(1).tolist() == [[0.5, 0, 20.5, 10]]
    assert source.boxes_of(99).shape == source.boxes_of(0).shape == (0, 4)
    assert source.problems(IMAGES) == []


def test_crowds_are_left_out(write):
    crowd = {**RESULTS[0], "iscrowd": 1}
    assert open_proposals(write([crowd, *RESULTS[1:]])).boxes_of(7).tolist() == [[5, 5, 5, 5]]


def test_no_boxes_at_all(write):
    source = open_proposals(write(annotations(found=[])))
    assert source.boxes_of(1).shape == (0, 4) and source.problems(IMAGES) == []


def test_a_store(tmp_path):
    tensors = {one["image_id"]: random_proposals(3, 30, 40, seed=one["image_id"]) for one in IMAGES}
    write_proposals(tmp_path / "store", IMAGES, tensors)
    source = open_proposals(str(tmp_path / "store"))
    assert torch.equal(torch.from_numpy(source.boxes_of(7)), tensors[7]["boxes"])
    assert source.problems(IMAGES) == []
    (problem,) = source.problems([*IMAGES, {**IMAGES[0], "image_id": 5, "file_name": "5.png"}])
    assert "MODEL.CLIPSELF.PROPOSALS" in problem and "1 are missing (first ids: [5])" in problem


def test_images_that_the_file_does_not_have(write):
    results = [one for one in RESULTS if one["image_id"] != 2]
    (problem,) = open_proposals(write(results)).problems(IMAGES)
    assert "nothing of 1 of the 3 training images (first ids: [2])" in problem
    assert open_proposals(write(annotations(found=results))).problems(IMAGES) == []
    (problem,) = open_proposals(write(annotations(IMAGES[:1], []))).problems(IMAGES)
    assert "nothing of 2 of the 3 training images (first ids: [2, 7])" in problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "expected a list of results"),
        ("3", "expected a list of results"),
        ({"images": []}, "key 'annotations' is missing"),
        ([{"image_id": 1}], "key 'bbox' is missing"),
        ([{"image_id": "one", "bbox": [0, 0, 1, 1]}], "expected a list of results"),
        ([{"image_id": 1, "bbox": [0, 0, 1]}], "expected a list of results"),
        ([{"image_id": 1, "bbox": [[0, 0, 1, 1], [0, 0, 1, 1]]}], "a bbox is not"),
        ([{"image_id": 1, "bbox": [0, 0, -1, 1]}], "a bbox is not"),
        ([1, 2], "expected a list of results"),
    ],
)
def test_a_json_file_of_another_kind(write, content, message):
    path = write(content)
    with pytest.raises(SetupError, match=message) as caught:
        open_proposals(path)
    assert path in str(caught.value) and "MODEL.CLIPSELF.PROPOSALS" in str(caught.value)


def test_paths_that_lead_nowhere(tmp_path):
    for path, message in (
        ("", "is empty"),
        (str(tmp_path / "none.json"), "no file at"),
        (str(tmp_path / "none"), "none"),
    ):
        with pytest.raises(SetupError, match=message):
            open_proposals(path)


def test_areas_are_looked_at_after_the_draw():
    small, large = [0, 0, 4, 4], [0, 0, 10, 10]
    found = [len(drawn([small] * 5 + [large] * 5, limit=4, area=(50, 200), seed=k)) for k in
             range(400)]  # fmt: skip
    assert set(found) == {0, 1, 2, 3, 4}
    assert np.mean(found) == pytest.approx(2, abs=0.2)
    assert len(drawn([[0, 0, 8, 8], [0, 0, 20, 10], [0, 0, 7.9, 8]], area=(64, 200))) == 2


def test_boxes_are_shuffled_and_none_comes_twice():
    boxes = [[k, 0, k + 1, 1] for k in range(30)]
    first, second = (drawn(boxes, seed=k)[:, 0].tolist() for k in (0, 1))
    assert len(first) == 20 == len(set(first)) and first != second


def sampler(write, results, **options):
    options = {"limit": 20, "area": (8**2, 1024**2), "crop_scale": 1.5, **options}
    return Proposals(open_proposals(write(results)), **options)


def test_the_student_pools_the_box_the_teacher_sees_more(write):
    found = sampler(write, [{"image_id": 1, "bbox": [-4, 10, 20, 10]}])
    boxes, windows = found(1, 30, 40, np.random.default_rng(0))
    assert boxes.tolist() == [[-4, 10, 16, 20]]
    assert windows.tolist() == [[0, 8, 21, 22]]  # 7.5 and 22.5: half to even


@pytest.mark.parametrize("results", [[], [{"image_id": 1, "bbox": [0, 0, 2, 2]}]])
def test_without_a_box_the_top_left_quarter(write, results):
    found = sampler(write, annotations(found=results))(1, 31, 42, np.random.default_rng(0))
    assert found.boxes.tolist() == [[0, 0, 10.5, 7.75]]
    assert found.windows.tolist() == [[0, 0, 10, 7]]
    tiny = sampler(write, annotations(found=[]))(1, 2, 3, np.random.default_rng(0))
    assert tiny.windows.tolist() == [[0, 0, 1, 1]]


def test_patches_do_not_look_at_boxes():
    boxes, windows = Patches(limit=3, max_rows=2)(-1, 31, 42, np.random.default_rng(0))
    assert len(boxes) == len(windows) <= 3
    assert (windows == np.rint(boxes)).all()
