"""A small data set with known difficulties, and a noisy detector for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.structures import Boxes, Instances

HEIGHT, WIDTH = 240, 320
# The last name has no ground truth at all; ids have a gap, as COCO's have.
NAMES = ["anchor", "bell", "cloud", "drum", "envelope", "fork", "ghost"]
NOVEL = [True, False, False, True, False, True, True]
FREQUENCIES = ["r", "c", "f", "r", "f", "r", "r"]
COCO_IDS = [1, 2, 3, 5, 8, 13, 21]


def rle_of_box(box: np.ndarray) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    x0, y0, x1, y1 = box.round().astype(int)
    mask[y0:y1, x0:x1] = 1
    rle = mask_utils.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) XYXY of small, medium and large objects."""
    size = rng.choice([20, 60, 120], count)[:, None] * rng.uniform(0.8, 1.2, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - size - 2)
    return np.concatenate([corner, corner + size], axis=1).round()


def make_dataset(ids: list[int], seed: int = 0, images: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    records, annotations = [], []
    for image_id in range(1, images + 1):
        classes = rng.integers(0, len(ids) - 1, 4)
        absent = [ids[k] for k in range(len(ids)) if k not in classes]
        records.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "file_name": f"val/{image_id}.png",
                "neg_category_ids": absent[:2],
                "not_exhaustive_category_ids": [ids[int(classes[0])]] if image_id % 3 == 0 else [],
            }
        )
        for k, box in zip(classes, random_boxes(rng, 4), strict=True):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[int(k)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "segmentation": rle_of_box(box),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": ids[k], "name": NAMES[k], "frequency": FREQUENCIES[k]} for k in range(len(ids))
    ]
    return {"images": records, "annotations": annotations, "categories": categories}


def noisy_detections(
    dataset: dict[str, Any], ids: list[int], seed: int = 1
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(input, output) pairs as a model gives them: shifted boxes, some wrong classes and extras."""
    rng = np.random.default_rng(seed)
    pairs = []
    for image in dataset["images"]:
        truth = [one for one in dataset["annotations"] if one["image_id"] == image["id"]]
        boxes = np.array([one["bbox"] for one in truth], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), random_boxes(rng, 3)])
        boxes = boxes.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        classes = [ids.index(one["category_id"]) for one in truth]
        wrong = rng.integers(0, len(ids), len(boxes))
        use_wrong = (rng.uniform(size=len(boxes)) < 0.25) | (np.arange(len(boxes)) >= len(truth))
        classes = np.where(use_wrong, wrong, np.pad(classes, (0, 3)))
        output = make_instances(boxes, rng.uniform(0.05, 1, len(boxes)), classes)
        pairs.append(({"image_id": image["id"]}, {"instances": output}))
    return pairs


def make_instances(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> Instances:
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, np.round(boxes).astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))),
        scores=torch.as_tensor(np.asarray(scores, dtype=np.float32)),
        pred_classes=torch.as_tensor(np.asarray(classes, dtype=np.int64)),
        pred_masks=torch.as_tensor(masks),
    )


def no_detections(dataset: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    nothing = make_instances(np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    return [({"image_id": one["id"]}, {"instances": nothing}) for one in dataset["images"]]


def feed(evaluator: Any, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    evaluator.reset()
    for one_input, one_output in pairs:
        evaluator.process([one_input], [one_output])
    return evaluator.evaluate()
