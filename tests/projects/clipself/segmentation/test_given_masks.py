"""Masks of somebody else and the categories they get."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.segment_sets import ids_to_rgb
from ovd_d2.projects.clipself.segmentation.masks import (
    PredictedMasks,
    classified_masks,
    coverage,
)


def test_cells_have_the_share_that_a_mask_takes():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[:2, :4] = True
    found = coverage(mask, (6.0, 9.0), [2, 3])  # cells of 3 x 3
    assert torch.allclose(found, torch.tensor([[6 / 9, 2 / 9, 0.0], [0.0, 0.0, 0.0]]))


def test_cells_need_not_end_where_the_image_does():
    mask = torch.ones(3, 5, dtype=torch.bool)
    found = coverage(mask, (4.0, 8.0), [2, 2])  # cells of 2 x 4, the image is padded
    assert torch.allclose(found, torch.tensor([[1.0, 1 / 4], [1 / 2, 1 / 8]]))
    cut = coverage(mask, (3.0, 5.0), [2, 2])  # cells of 1.5 x 2.5
    assert torch.allclose(cut, torch.ones(2, 2))


def test_each_mask_gets_the_category_of_its_mean_feature():
    dense = torch.zeros(3, 2, 2)
    dense[0, :, 0] = dense[1, :, 1] = 1
    ids = torch.tensor([[7, 7, 9, 9]] * 4)
    ids[3, 3] = 0
    found = classified_masks(ids, dense, (4.0, 4.0), torch.eye(3))
    assert [(one["id"], one["category_id"]) for one in found] == [(7, 0), (9, 1)]
    assert [one["score"] for one in found] == pytest.approx([1, 1])


def test_a_synonym_names_its_category():
    dense = torch.zeros(3, 2, 2)
    dense[0, :, 0] = dense[2, :, 1] = 1
    ids = torch.tensor([[7, 7, 9, 9]] * 4)
    found = classified_masks(ids, dense, (4.0, 4.0), torch.eye(3), torch.tensor([1, 0, 0]))
    assert [(one["id"], one["category_id"]) for one in found] == [(7, 1), (9, 0)]


def test_the_smallest_mask_has_features():
    ids = torch.zeros(64, 64, dtype=torch.int32)
    ids[5, 60] = 3
    dense = torch.zeros(2, 2, 2)
    dense[1, 0, 1] = 1
    assert classified_masks(ids, dense, (64.0, 64.0), torch.eye(2))[0]["category_id"] == 1


def test_no_masks():
    assert classified_masks(torch.zeros(4, 4), torch.zeros(2, 2, 2), (4.0, 4.0), torch.eye(2)) == []


def results(folder, content):
    path = folder / "predictions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return PredictedMasks(str(path))


@pytest.mark.parametrize("inside", ["predictions", "."])
def test_masks_of_another_model(tmp_path, inside):
    ids = np.array([[0, 300], [2, 2]], dtype=np.int32)
    (tmp_path / inside).mkdir(exist_ok=True)
    Image.fromarray(ids_to_rgb(ids)).save(tmp_path / inside / "a.png")
    given = results(tmp_path, {"annotations": [{"image_id": 4, "file_name": "a.png"}]})
    assert np.array_equal(given.id_map({"image_id": 4}), ids)
    with pytest.raises(SetupError, match="has no image 5"):
        given.id_map({"image_id": 5})


@pytest.mark.parametrize("content", ["{", "[]", {"annotations": [{"image_id": 1}]}])
def test_files_of_another_kind_are_named(tmp_path, content):
    with pytest.raises(SetupError, match=r"MODEL\.DENSE_CLIP\.MASKS.*predictions\.json"):
        results(tmp_path, content).id_map({"image_id": 1})
