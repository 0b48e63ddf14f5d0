"""1,000 random tiny data sets: both engines give what the reference packages, called plainly, give.

The packages are the judge: `lvis.LVISEval` on a file, `pycocotools.cocoeval.COCOeval`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ovd_d2.evaluation import lvis_runner  # makes lvis work with today's numpy
from ovd_d2.evaluation.detection_evaluation import DetectionEvaluation
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.protocols import Protocol
from ovd_d2.vocabulary import Categories

SHARDS, SETS_PER_SHARD = 5, 40  # of each rules: 400 sets in all
HEIGHT, WIDTH = 110, 120  # room for large objects: more than 96 x 96 pixels
LIMITS = {"lvis": (3, 300), "coco": (2, 100)}
ENGINES = ("reference", "hotcoco")
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large
Records = list[dict[str, Any]]

numbers = st.integers
boxes = st.tuples(numbers(0, 100), numbers(0, 90), numbers(0, 119), numbers(0, 109)).map(
    lambda box: [box[0], box[1], min(box[2], WIDTH - box[0]), min(box[3], HEIGHT - box[1])]
)  # XYWH, some without area
shifts = st.sampled_from([(0, 0, 0, 0), (1, 0, 0, 0), (0, 2, -1, 1), (0, 0, -4, 0), (3, 3, 6, -5)])
scores = st.one_of(st.sampled_from([0.1, 0.5, 0.5000001, 0.9]), st.floats(0, 1, width=32))


def rle(box: list[int]) -> dict[str, Any]:
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    encoded = mask_utils.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def polygon(box: list[int]) -> list[list[float]]:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height + 0.5, x, y + height]]


@st.composite
def data_sets(draw: st.DrawFn) -> dict[str, Any]:
    """1 to 3 images (some without objects), 1 to 3 categories (some without), up to 6 objects."""
    image_ids = draw(st.lists(numbers(1, 20), min_size=1, max_size=3, unique=True))
    ids = draw(st.lists(numbers(1, 20), min_size=1, max_size=3, unique=True))
    some = st.lists(st.sampled_from(ids), unique=True)
    annotations = draw(st.lists(objects(image_ids, ids), max_size=6))
    for number, one in enumerate(annotations, 1):
        one["id"] = number
    return {
        "images": [
            {
                "id": one,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": draw(some),
                "not_exhaustive_category_ids": draw(some),
            }
            for one in image_ids
        ],
        "categories": [
            {"id": one, "name": f"name {one}", "frequency": draw(st.sampled_from("rcf"))}
            for one in ids
        ],
        "annotations": annotations,
    }


@st.composite
def objects(draw: st.DrawFn, image_ids: list[int], ids: list[int]) -> dict[str, Any]:
    box = draw(boxes)
    return {
        "image_id": draw(st.sampled_from(image_ids)),
        "category_id": draw(st.sampled_from(ids)),
        "bbox": box,
        "area": draw(st.sampled_from([box[2] * box[3], 1024, 9216, 0.5])),
        "segmentation": draw(st.sampled_from([rle, polygon]))(box),
        "iscrowd": int(draw(numbers(0, 3)) == 0),
    }


@st.composite
def detections(draw: st.DrawFn, dataset: dict[str, Any]) -> Records:
    """Up to 12, half of them near an object; many equal scores."""
    image_ids = [one["id"] for one in dataset["images"]]
    ids = [one["id"] for one in dataset["categories"]]
    found = []
    for _ in range(draw(numbers(0, 12))):
        near = draw(st.sampled_from(dataset["annotations"])) if draw(targets(dataset)) else None
        box = _shifted(near["bbox"], draw(shifts)) if near else draw(boxes)
        found.append(
            {
                "image_id": near["image_id"] if near else draw(st.sampled_from(image_ids)),
                "category_id": near["category_id"] if near else draw(st.sampled_from(ids)),
                "bbox": box,
                "segmentation": rle(box),
                "score": draw(scores),
            }
        )
    return found


def targets(dataset: dict[str, Any]) -> st.SearchStrategy[bool]:
    return st.booleans() if dataset["annotations"] else st.just(False)


def _shifted(box: list[int], shift: tuple[int, ...]) -> list[int]:
    x, y = (min(max(0, box[k] + shift[k]), limit) for k, limit in ((0, WIDTH), (1, HEIGHT)))
    return [
        x,
        y,
        min(max(0, box[2] + shift[2]), WIDTH - x),
        min(max(0, box[3] + shift[3]), HEIGHT - y),
    ]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict[str, Any], Records]:
    dataset = draw(data_sets())
    return dataset, draw(detections(dataset))


def geometry(found: Records, iou_type: str) -> Records:
    """What a user gives the packages for boxes, or for masks (whose area then is the mask's)."""
    dropped = {"bbox": "segmentation", "segm": "bbox"}[iou_type]
    return [{key: value for key, value in one.items() if key != dropped} for one in found]


def by_lvis(path: Path, dataset: dict, found: Records, iou_type: str, limit: int) -> Any:
    """The package `lvis` as its README says: files, LVISResults, LVISEval."""
    path.write_text(json.dumps(dataset))
    truth = lvis_runner.LVIS(str(path))
    results = lvis_runner.LVISResults(truth, geometry(found, iou_type), max_dets=limit)
    evaluation = lvis_runner.LVISEval(truth, results, iou_type)
    evaluation.run()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    return evaluation.eval["precision"], {name: evaluation.results[name] for name in names}


def by_pycocotools(path: Path, dataset: dict, found: Records, iou_type: str, limit: int) -> Any:
    """pycocotools as its demo says."""
    path.write_text(json.dumps(dataset))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(geometry(found, iou_type)), iou_type)
        evaluation.params.maxDets = [1, 1, limit]
        evaluation.evaluate()
        evaluation.accumulate()
        if limit == 100:  # the first number of `summarize` is of 100 detections, whatever is set
            evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    stats = dict(zip(names, evaluation.stats, strict=False)) if limit == 100 else {}
    return evaluation.eval["precision"][..., -1], stats


ORACLES = {"lvis": by_lvis, "coco": by_pycocotools}


def protocol_of(rules: Any, limit: int) -> Protocol:
    if rules == "lvis":
        return Protocol("test", rules, per_image=limit)
    return Protocol("test", rules, per_image_and_category=limit)


class Recorder:
    """An engine whose last answer can be read."""

    def __init__(self, name: str) -> None:
        self.engine = build_engine(name)
        self.describe = self.engine.describe

    def precision(self, *args: Any) -> np.ndarray:
        self.last = self.engine.precision(*args)
        return self.last


def check(rules: Any, path: Path, dataset: dict[str, Any], found: Records, limit: int) -> None:
    ids = [one["id"] for one in dataset["categories"]]
    letters = [one["frequency"] for one in dataset["categories"]]
    names = [one["name"] for one in dataset["categories"]]
    categories = Categories(names, [False] * len(ids), ids, letters)
    for iou_type in ("bbox", "segm"):
        expected, stats = expected_of(rules, path, dataset, found, iou_type, limit)
        for name in ENGINES:
            engine = Recorder(name)
            evaluation = DetectionEvaluation("set", categories, protocol_of(rules, limit), engine)
            reported = evaluation.run(GroundTruth(dataset, rules), found, (iou_type,))
            np.testing.assert_allclose(engine.last, expected, atol=1e-9, err_msg=name)
            for metric, value in stats.items():
                percent = reported[iou_type][metric]
                assert (-1 if np.isnan(percent) else percent / 100) == pytest.approx(value), metric


def expected_of(
    rules: str, path: Path, dataset: dict, found: Records, iou_type: str, limit: int
) -> tuple[np.ndarray, dict[str, float]]:
    if found:
        given_away = copy.deepcopy((dataset, found))  # the packages write into both
        return ORACLES[rules](path, *given_away, iou_type, limit)
    # Both packages fail on an empty list, so by hand: 0 where there is something to find, else -1
    ids = sorted(one["id"] for one in dataset["categories"])
    expected = -np.ones((10, 101, len(ids), len(AREAS)))
    for one in dataset["annotations"]:
        if one["area"] > 0 if rules == "lvis" else not one["iscrowd"]:
            within = [low <= one["area"] <= high for low, high in AREAS]
            expected[:, :, ids.index(one["category_id"]), within] = 0
    return expected, {}


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("rules", ["lvis", "coco"])
def test_engines_give_what_the_packages_give(rules, shard, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path = tmp_path / "annotations.json"

    @seed(shard)
    @settings(
        max_examples=SETS_PER_SHARD,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(scenes(), st.sampled_from(LIMITS[rules]))
    def run(scene: tuple[dict[str, Any], Records], limit: int) -> None:
        check(rules, path, *scene, limit)

    run()
