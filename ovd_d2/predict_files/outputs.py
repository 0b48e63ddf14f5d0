"""What is written of detections: drawings, `detections.json`, COCO and Label Studio; messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovd_d2.annotations_out import (
    Found,
    coco_dataset,
    coco_results,
    label_studio_tasks,
    polygons_of,
)
from ovd_d2.files import atomic_write, atomic_write_json
from ovd_d2.prediction import Prediction
from ovd_d2.visualization import draw_instances

DETECTIONS = "detections.json"
DATASET, RESULTS, TASKS = "coco.json", "coco_results.json", "label_studio.json"
DRAWINGS, COCO, LABEL_STUDIO = "drawings", "coco", "label-studio"
OUTPUTS = (DRAWINGS, COCO, LABEL_STUDIO)  # beside detections.json

Noted = dict[str, Any]  # of an image: height, width, objects, best


def noted(
    image: NDArray[np.uint8], found: Prediction, drawing: Path, outputs: Sequence[str]
) -> Noted:
    """What the journal keeps of an image; it is drawn where that is asked for.

    Args:
        image: (H, W, 3) uint8 BGR.
        found: in it.
        drawing: file of the drawing.
        outputs: some of `OUTPUTS`.
    """
    if DRAWINGS in outputs:
        categories = found.categories
        drawn = draw_instances(
            image[:, :, ::-1], found.instances, categories.names, categories.novel
        )
        with atomic_write(drawing) as temporary:
            Image.fromarray(drawn).save(temporary, format="PNG")
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "objects": records_of(found, polygons={COCO, LABEL_STUDIO} & {*outputs} != set()),
        "best": {
            name: round(score, 4)
            for name, score in zip(found.categories.names, found.best_scores, strict=True)
            if score > 0
        },
    }


def records_of(found: Prediction, *, polygons: bool) -> list[dict[str, Any]]:
    """`name`, `novel`, `score`, `box` (XYXY) of each detection; `presence` and `polygons` where
    there are some."""
    instances, categories = found.instances, found.categories
    records: list[dict[str, Any]] = [
        {
            "name": categories.names[k],
            "novel": categories.novel[k],
            "score": round(score, 4),
            "box": [round(value, 1) for value in box],
        }
        for k, score, box in zip(
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            instances.pred_boxes.tensor.tolist(),
            strict=True,
        )
    ]
    if instances.has("presence"):
        for record, presence in zip(records, instances.presence.tolist(), strict=True):
            record["presence"] = round(presence, 4)
    if polygons:
        for record, mask in zip(records, found.masks(), strict=False):  # there may be no masks
            record["polygons"] = polygons_of(mask)
    return records


def write(
    output: Path,
    found: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """`detections.json` and the other files that are asked for, each whole or not at all."""
    atomic_write_json(output / DETECTIONS, {key: shown_records(one) for key, one in found.items()})
    if not {COCO, LABEL_STUDIO} & {*outputs}:
        return
    images = [
        Found(file=key, height=one["height"], width=one["width"], objects=one["objects"])
        for key, one in found.items()
    ]
    if COCO in outputs:
        dataset = coco_dataset(images, names)
        atomic_write_json(output / DATASET, dataset)
        atomic_write_json(output / RESULTS, coco_results(dataset))
    if LABEL_STUDIO in outputs:
        atomic_write_json(output / TASKS, label_studio_tasks(images, "ovd_d2"))


def shown_records(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in one.items() if key != "polygons"}
        for one in content["objects"]
    ]


def best_scores_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for one in found.values():
        for name, score in one["best"].items():
            best[name] = max(score, best.get(name, 0.0))
    return best


def nothing_message(
    best_scores: Mapping[str, float],
    threshold: float,
    least_presence: float = 0.0,
    *,
    shown: int = 5,
) -> str:
    """Why nothing was found, and which threshold would show something."""
    ranked = sorted(best_scores.items(), key=lambda one: -one[1])[:shown]
    if not ranked:
        return "Nothing was found: no name has any score in any image."
    listed = ", ".join(f"{name} {score:.3g}" for name, score in ranked)
    if ranked[0][1] >= threshold:
        return (
            f"No name is likely enough to be there (--least-presence {least_presence:.3g}). The "
            f"best scores seen: {listed}."
        )
    lower = int(1000 * ranked[0][1]) / 1000
    return (
        f"Nothing scores {threshold:g} or more. The best scores seen: {listed}; "
        f"--threshold {lower:g} would show the first."
    )


def skipped_message(skipped: Mapping[str, str], total: int) -> str:
    """All files that could not be used, one per line."""
    lines = "\n".join(f"  {fault}" for fault in skipped.values())
    return f"{len(skipped)} of {total} images could not be used:\n{lines}"
