"""Panoptic quality by hand, and beside Detectron2's evaluator where panopticapi is installed."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from PIL import Image

from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.segment_sets import ids_to_rgb
from ovd_d2.projects.clipself.segmentation.evaluators import PanopticEvaluator
from ovd_d2.projects.clipself.segmentation.quality import matches
from tests.catalog import forget

ALL = np.ones(3, dtype=bool)


def entries(*categories, **more):
    return [{"id": k, "category_id": c, **more} for k, c in enumerate(categories, start=1)]


def row(*runs):
    """A map of one row: (id, pixels), ..."""
    return np.concatenate([np.full(pixels, one) for one, pixels in runs])[None]


def test_one_match_one_miss_one_mistake():
    truth = row((1, 10), (2, 10))
    found = row((1, 8), (2, 12))  # 8 / 10 of category 0; the rest is called 2, not 1
    counts = matches(truth, entries(0, 1), found, entries(0, 2), 3)
    assert counts.matched.tolist() == [1, 0, 0]
    assert (counts.missed.tolist(), counts.wrong.tolist()) == ([0, 1, 0], [0, 0, 1])
    assert counts.overlap[0] == pytest.approx(0.8)
    qualities = counts.qualities(ALL)
    assert qualities["PQ"] == pytest.approx(100 * 0.8 / 3)
    assert qualities["RQ"] == pytest.approx(100 / 3)


def test_half_is_no_match():
    counts = matches(row((1, 10), (2, 10)), entries(0, 1), row((1, 5), (2, 15)), entries(0, 1), 3)
    assert counts.matched.tolist() == [0, 1, 0]
    assert counts.wrong[0] == counts.missed[0] == 1


def test_pixels_without_truth_are_not_held_against_a_segment():
    counts = matches(row((1, 10), (0, 10)), entries(0), row((1, 20)), entries(0), 3)
    assert counts.overlap[0] == 1
    aside = matches(row((1, 10), (0, 10)), entries(0), row((1, 9), (2, 11)), entries(0, 1), 3)
    assert aside.wrong.sum() == 0  # 10 of its 11 pixels have no truth


def test_crowds_are_neither_missed_nor_held_against_their_category():
    truth = row((1, 20))
    crowd = entries(0, iscrowd=1)
    assert matches(truth, crowd, row((0, 20)), [], 3).missed.sum() == 0
    assert matches(truth, crowd, row((1, 20)), entries(0), 3).wrong.tolist() == [0, 0, 0]
    assert matches(truth, crowd, row((1, 20)), entries(1), 3).wrong.tolist() == [0, 1, 0]


def test_segments_without_pixels_do_not_count():
    counts = matches(row((1, 5)), entries(0, 1), row((1, 5)), entries(0, 2), 3)
    assert (counts.missed.sum(), counts.wrong.sum()) == (0, 0)
    assert matches(row((0, 5)), [], row((0, 5)), [], 3).qualities(ALL) is None


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="masks of"):
        matches(row((1, 5)), [], row((1, 6)), [], 3)


@pytest.fixture
def random_set(tmp_path):
    """Six random images with five categories, and results of them: (name, inputs, outputs)."""
    generator = np.random.default_rng(0)
    categories = [{"id": 10 + k, "name": f"c{k}", "isthing": int(k < 3)} for k in range(5)]
    inputs, outputs, annotations = [], [], []
    for image in range(1, 7):
        truth = generator.integers(0, 7, (6, 6)).repeat(8, axis=0).repeat(8, axis=1)
        noise = generator.integers(0, 7, truth.shape)
        found = np.where(generator.random(truth.shape) < 0.3, noise, truth)
        classes = generator.integers(0, 5, 7)
        other = np.where(generator.random(7) < 0.5, generator.integers(0, 5, 7), classes)
        name = f"{image}.png"
        Image.fromarray(ids_to_rgb(truth)).save(tmp_path / name)
        areas = np.bincount(truth.ravel(), minlength=7)
        own = [
            {
                "id": k,
                "category_id": int(classes[k]),
                "iscrowd": int(k == 6 and classes[k] not in classes[1:6]),
                "area": int(areas[k]),
            }
            for k in range(1, 7)
            if areas[k]
        ]
        info = [{**one, "category_id": 10 + one["category_id"]} for one in own]
        annotations.append({"image_id": image, "file_name": name, "segments_info": info})
        path = {"file_name": f"{image}.jpg", "pan_seg_file_name": str(tmp_path / name)}
        inputs.append({"image_id": image, **path, "segments_info": own})
        told = [
            {"id": int(k), "category_id": int(other[k]), "isthing": bool(other[k] < 3)}
            for k in np.unique(found[found > 0])
        ]
        outputs.append({"panoptic_seg": (torch.from_numpy(found.astype(np.int32)), told)})
    images = [{"id": k} for k in range(1, 7)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    name = "random_panoptic"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        stuff_classes=[one["name"] for one in categories],
        thing_dataset_id_to_contiguous_id={10: 0, 11: 1, 12: 2},
        stuff_dataset_id_to_contiguous_id={13: 3, 14: 4},
        panoptic_json=str(tmp_path / "truth.json"),
        panoptic_root=str(tmp_path),
    )
    yield name, inputs, outputs
    forget(name)


def quality(evaluator, inputs, outputs):
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()["panoptic_seg"]


def test_an_image_that_comes_twice_counts_once(random_set):
    name, inputs, outputs = random_set
    once = quality(PanopticEvaluator(name), inputs, outputs)
    twice = quality(PanopticEvaluator(name), inputs + inputs[:2], outputs + outputs[:2])
    assert once == twice and 0 < once["PQ"] < 100
    # panopticapi's, for these images: so this holds where it is not installed
    assert once == pytest.approx(EXPECTED, abs=1e-9)


def test_things_and_stuff_that_are_numbered_apart_are_refused(random_set):
    MetadataCatalog.get(random_set[0]).stuff_dataset_id_to_contiguous_id.update({13: 0, 14: 1})
    with pytest.raises(SetupError, match="_separated"):
        PanopticEvaluator(random_set[0])


EXPECTED = {
    "PQ": 30.642108243014953,
    "SQ": 61.98428535876677,
    "RQ": 49.66666666666667,
    "PQ_th": 37.74817800583992,
    "SQ_th": 60.370572588087676,
    "RQ_th": 62.03703703703704,
    "PQ_st": 19.983003598777525,
    "SQ_st": 64.40485451478541,
    "RQ_st": 31.11111111111111,
}


@pytest.mark.skipif(find_spec("panopticapi") is None, reason="panopticapi is not installed")
def test_the_numbers_are_those_of_detectron2s_evaluator(random_set):
    name, inputs, outputs = random_set
    ours = quality(PanopticEvaluator(name), inputs, outputs)
    theirs = quality(COCOPanopticEvaluator(name), inputs, outputs)
    assert ours == pytest.approx(theirs, abs=1e-9)
