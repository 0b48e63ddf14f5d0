"""What a detector says of names that are there and of names that are not; the detector is drawn."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from ovd_d2.calibration import (
    Scene,
    absent_answers,
    answers,
    calibrated,
    report,
    scenes,
    vocabulary_for,
)
from ovd_d2.data.registration import register_data_sets
from ovd_d2.prediction import Prediction
from ovd_d2.vocabulary import Categories, Vocabulary

NAMES = [f"thing {k}" for k in range(20)]
NOVEL = [k >= 16 for k in range(20)]


class Drawn:
    """Sees what file names say ("3 7.png" shows things 3 and 7), with a score that is drawn."""

    def __init__(self):
        self.vocabulary = Vocabulary(NAMES, torch.eye(20), torch.tensor(NOVEL))
        self.asked = []

    def __call__(self, image, names, threshold):
        self.asked.append(names.names)
        draw = np.random.default_rng([int(one) for one in image[:-4].split()])
        there = {f"thing {one}" for one in image[:-4].split()}
        best = [draw.beta(4, 2) if one in there else draw.beta(1, 4) for one in names.names]
        classes = torch.tensor([k for k, one in enumerate(best) if one >= threshold])
        found = Instances(
            (9, 9),
            pred_boxes=Boxes(torch.zeros(len(classes), 4)),
            scores=torch.tensor(best)[classes.long()],
            pred_classes=classes.long(),
        )
        crops = [draw.beta(4, 1) if one in there else draw.beta(1, 4) for one in names.names]
        boxes = torch.zeros(len(best), 4)
        return Prediction(found, names.categories, tuple(best), boxes, tuple(crops))


def drawn_scenes(count, seed):
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        present = sorted(draw.choice(20, 3, replace=False).tolist())
        absent = tuple(k for k in range(20) if k not in present)
        found.append(Scene(" ".join(map(str, present)) + ".png", tuple(present), absent))
    return found


@pytest.fixture(scope="module")
def measured():
    detector = Drawn()
    presence = calibrated(answers(detector, detector.vocabulary, drawn_scenes(150, 0)))
    shown = drawn_scenes(150, 1)
    seen = answers(detector, detector.vocabulary, shown)
    return presence, seen, absent_answers(detector, detector.vocabulary, shown)


def test_absent_names_give_few_boxes_on_other_images(measured):
    presence, seen, lacking = measured
    rows = {row["names"]: row for row in report(presence, seen, lacking)}
    assert set(rows) == {"all", "base", "novel"}
    assert rows["all"]["present"] == 450 and rows["all"]["absent"] == 150 * 17
    for row in rows.values():
        assert row["calibration_error"] < 0.06
        assert row["false_boxes"] > 10 * row["false_boxes_calibrated"]
        assert row["recall"] > row["recall_calibrated"] > 0.2
    assert rows["all"]["false_boxes_calibrated"] == pytest.approx(0.5, abs=0.4)


def test_the_plot_and_the_table(measured, tmp_path):
    presence, seen, lacking = measured
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "calibrate_presence.py"))
    tool["plot"](presence, seen, tmp_path / "presence.png")
    with Image.open(tmp_path / "presence.png") as drawn:
        assert min(drawn.size) > 300
    table = tool["table_of"]([{"crops": "no", **row} for row in report(presence, seen, lacking)])
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["all", "base", "novel"]


def test_novel_names_are_not_fitted_to(measured):
    presence, seen, _ = measured
    changed = seen.where(~seen.novel)
    assert calibrated(seen) == calibrated(changed) and 0 < presence.least < 1


def test_what_the_teacher_says_keeps_more_of_the_recall(measured):
    presence, seen, lacking = measured
    detector = Drawn()
    fitted_on = answers(detector, detector.vocabulary, drawn_scenes(150, 0))
    with_crops = calibrated(fitted_on, crops=True)
    assert with_crops.crop_weight > 0 and presence.crop_weight == 0
    before = {row["names"]: row for row in report(presence, seen, lacking)}
    for row in report(with_crops, seen, lacking):
        assert row["recall_calibrated"] > before[row["names"]]["recall_calibrated"] + 0.1
        assert row["recall_calibrated"] > 0.8 * row["recall"]
        assert row["calibration_error"] < 0.06 and row["false_boxes_calibrated"] < 2


def test_absent_names_are_asked_for_alone():
    detector = Drawn()
    shown = [Scene("3 7.png", (3, 7), (0, 1, 2, 4, 5)), Scene("1.png", (1,), (0,))]
    found = absent_answers(detector, detector.vocabulary, shown, names=4)
    (asked,) = detector.asked  # the other image is known to lack too few
    assert len(asked) == 4 and set(asked) <= {f"thing {k}" for k in (0, 1, 2, 4, 5)}
    assert len(found.best) == 4 and not found.present.any()


def test_nothing_to_say():
    detector = Drawn()
    found = absent_answers(detector, detector.vocabulary, [])
    assert len(found.best) == 0 and report(None, found, found) == []


def test_only_what_is_known_to_be_absent(tmp_path, monkeypatch):
    table = {
        "images": [{"id": 5, "file_name": "a.png", "height": 9, "width": 9}],
        "categories": [{"id": 10 * k, "name": NAMES[k]} for k in range(1, 5)],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 20, "area": 9, "iscrowd": 0, "bbox": [0] * 4}
        ],
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    (tmp_path / "mine.yaml").write_text("there: {json_file: table.json, image_root: .}\n")
    monkeypatch.setenv("OVD_DATASETS", str(tmp_path / "mine.yaml"))
    register_data_sets(["there"])
    file = str(tmp_path / "a.png")
    assert scenes("there", 7) == [Scene(file, (1,), (0, 2, 3))]
    federated = [{**one, "neg_category_ids": [40, 20]} for one in DatasetCatalog.get("there")]
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: federated)
    assert scenes("there", 7) == [Scene(file, (1,), (3,))]


def test_the_detectors_own_names_need_no_teacher():
    detector = Drawn()
    detector.vocabulary_of = lambda names: ("asked", names)
    own = vocabulary_for(detector, Categories(NAMES[3:5], [False] * 2))
    assert own.names == NAMES[3:5]
    others = Categories(["kite"], [True])
    assert vocabulary_for(detector, others) == ("asked", ["kite"])
