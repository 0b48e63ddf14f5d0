"""Five images of one's own, from a COCO-format JSON to a table, by the commands users type."""

import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from tests.programs import run_program

TEACHER = ["--architecture", "Pictogram-RN", "--pretrained", "shipped"]
NAMES = ["heavy large circle", "black square", "black diamond"]
COLOURS = [(60, 60, 200), (60, 160, 60), (200, 80, 60)]
YAML = """
own_train:
  json_file: own.json
  image_root: images
  base: &base [heavy large circle, black square]
own_val:
  json_file: own.json
  image_root: images
  base: *base
own_boxes:
  json_file: other_names.json
  image_root: images
own_others:
  json_file: other_names.json
  image_root: images
  base: [black square shape]
"""


def shape(category, x, y, size):
    """A polygon, [x0, y0, x1, y1, ...]."""
    corners = [32, 4, 4][category]
    turn = [0, np.pi / 4, 0][category]
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    return np.stack([x + size * np.cos(angles), y + size * np.sin(angles)], axis=1).ravel()


def draw(folder):
    """Writes five images of 96 px and the COCO JSON of what they show."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for image_id in range(1, 6):
        pixels = rng.integers(200, 240, (96, 96, 3), dtype=np.uint8)
        for k, (x, y) in enumerate([(26, 26), (70, 30), (40, 70)]):
            category = (image_id + k) % 3
            polygon = shape(category, x, y, 18).round(1)
            points = polygon.reshape(-1, 1, 2).round().astype(np.int32)
            cv2.fillPoly(pixels, [points], COLOURS[category])
            rle = mask_utils.frPyObjects([polygon.tolist()], 96, 96)[0]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 10 + category,
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": float(mask_utils.area(rle)),
                    "iscrowd": 0,
                    "segmentation": [polygon.tolist()],
                }
            )
        cv2.imwrite(str(folder / "images" / f"{image_id}.png"), pixels)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 96, "width": 96})
    categories = [{"id": 10 + k, "name": name} for k, name in enumerate(NAMES)]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "own.json").write_text(json.dumps(dataset))
    others = [{**one, "name": f"{one['name']} shape"} for one in categories]
    (folder / "other_names.json").write_text(json.dumps({**dataset, "categories": others}))
    (folder / "own.yaml").write_text(YAML)


class Workplace:
    def __init__(self, folder):
        self.folder = folder

    def run(self, script, *arguments):
        done = run_program(
            f"tools/{script}",
            *arguments,
            DETECTRON2_DATASETS=self.folder / "empty",
            OVD_DATASETS=self.folder / "own.yaml",
        )
        assert done.status == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    @property
    def weights(self):
        return "MODEL.WEIGHTS", self.folder / "trained" / "model_final.pth"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("own"))
    draw(place.folder)
    vocabulary = place.folder / "vocabulary.safetensors"
    place.run("build_vocabulary.py", "--dataset", "own_train", *TEACHER, "--output", vocabulary)
    place.run(
        "train_net.py",
        *("--config-file", "configs/pictograms/vild_text.yaml"),
        *("OUTPUT_DIR", place.folder / "trained", "MODEL.OVD.VOCABULARY", vocabulary),
        *("DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 2),
        *("SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
    )
    return place


def test_the_evaluator_knows_base_and_novel(workplace):
    results = json.loads((workplace.folder / "trained/inference/results.json").read_text())
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP50_base", "AP50_novel"} <= set(results[task])
        assert None not in (results[task]["AP50_base"], results[task]["AP50_novel"])


def test_transfer_prints_one_table_and_leaves_the_training_alone(workplace):
    config = workplace.folder / "trained" / "config.yaml"
    before = config.read_text()
    printed = workplace.run(
        "evaluate_transfer.py",
        *("--config-file", "configs/pictograms/vild_text.yaml"),
        *("--datasets", "own_val", "own_boxes", *workplace.weights),
        *("OUTPUT_DIR", workplace.folder / "trained", "DATALOADER.NUM_WORKERS", 0),
    )
    rows = [line for line in printed.splitlines() if line.startswith("| own_")]
    words = [[cell.strip() for cell in row.strip("|").split("|")][:4] for row in rows]
    assert words == [
        ["own_val", "box", "5", "3"],
        ["own_val", "mask", "5", "3"],
        ["own_boxes", "box", "5", "3"],
        ["own_boxes", "mask", "5", "3"],
    ]
    assert all("COCO (best 100 detections per image and category)" in row for row in rows)
    report = json.loads((workplace.folder / "trained/transfer/results.json").read_text())
    assert list(report["data_sets"]) == ["own_val", "own_boxes"]
    assert report["prompts"] == "vild63"
    assert report["data_sets"]["own_boxes"]["bbox"]["AP_novel"] is None  # nothing is held out
    assert config.read_text() == before


def test_weights_between_two_trainings(workplace):
    """The share 0 is the model before, 1 the one after, and what is taken can be evaluated."""
    folder = workplace.folder
    options = ("SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0)
    workplace.run(
        "train_net.py",
        *("--config-file", folder / "trained" / "config.yaml"),
        *("OUTPUT_DIR", folder / "tuned", *workplace.weights, "DATASETS.TEST", "()", *options),
        *("SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 2),
    )
    printed = workplace.run(
        "keep_zero_shot.py",
        *("--config-file", folder / "tuned" / "config.yaml"),
        *("--new", "own_val", "--old", "own_others", "--shares", 0.5),
    )
    assert printed.count("| 0.5 ") == 1 and "(before)" in printed and "(after)" in printed
    kept = folder / "tuned" / "kept"
    found = json.loads((kept / "results.json").read_text())
    assert [one["share"] for one in found["mixtures"]] == [0.0, 0.5, 1.0]
    before, after, taken = (
        torch.load(path, weights_only=True)["model"]
        for path in (
            workplace.weights[1],
            folder / "tuned" / "model_final.pth",
            kept / "model_kept.pth",
        )
    )
    assert taken.keys() == after.keys()
    words = [key for key in after if key.endswith("vocabulary")]
    assert len(words) == 1 and torch.equal(taken[words[0]], after[words[0]])
    name = next(key for key in after if key.endswith("bbox_pred.weight"))
    assert not torch.equal(before[name], after[name])
    expected = before[name].lerp(after[name], found["taken"])
    torch.testing.assert_close(taken[name], expected)
