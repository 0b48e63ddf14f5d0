"""What the detector calls the novel objects that it gets wrong."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
from tabulate import tabulate

from ovd_d2.evaluation.groups import CategoryAP, check_novel_flags
from ovd_d2.evaluation.lvis_runner import InMemoryLVIS, run_lvis_eval

Detection = Mapping[str, Any]
MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class CategoryConfusion:
    """One novel category: how often its objects were called what.

    Attributes:
        category: its name.
        ap50: box AP at IoU 0.50, percent.
        num_objects: ground truth objects.
        predicted: (name, objects called so), most frequent first; its own name counts as well.
        missed: objects that no detection overlapped enough.
    """

    category: str
    ap50: float
    num_objects: int
    predicted: list[tuple[str, int]]
    missed: int


def novel_confusion(
    gt_json: str | os.PathLike[str] | Mapping[str, Any],
    predictions: Sequence[Detection],
    class_names: Sequence[str],
    novel: Sequence[bool],
    *,
    iou: float = 0.5,
    score_threshold: float = 0.05,
    top: int = 5,
) -> list[CategoryConfusion]:
    """The `top` novel categories of the lowest box AP50, and what their objects were called.

    Each ground truth object takes the name of the detection that overlaps it best; detections whose
    IoU agrees to two decimals (one proposal scored for many names) are told apart by score.

    Args:
        gt_json: annotations in LVIS or COCO format: a path or the loaded dictionary.
        predictions: COCO-style results (`image_id`, `category_id` of the data set, `bbox` XYWH,
            `score`), as the evaluators save them.
        class_names, novel: C names and flags in the order of ascending category ids.
        iou: least overlap that counts as found.
        score_threshold: detections below it are not looked at (AP50 uses all).
        top: number of categories.

    Returns:
        Worst category first; categories without ground truth do not appear.
    """
    dataset = _load(gt_json)
    category_ids = sorted(category["id"] for category in dataset["categories"])
    check_novel_flags(novel, len(category_ids))
    if len(class_names) != len(category_ids):
        raise ValueError(
            f"{len(class_names)} class names for {len(category_ids)} categories in the annotations"
        )
    names = dict(zip(category_ids, class_names, strict=True))
    novel_ids = [one for one, flag in zip(category_ids, novel, strict=True) if flag]
    worst = _lowest_ap50(dataset, predictions, novel_ids, names)[:top]
    confident = _by_image([one for one in predictions if one["score"] >= score_threshold])
    annotations = _by_category(dataset, {category_id for category_id, _ in worst})
    return [
        _confusion_of(names, category_id, ap50, annotations[category_id], confident, iou)
        for category_id, ap50 in worst
    ]


def confusion_table(confusions: Sequence[CategoryConfusion]) -> str:
    """The confusions as a Markdown table, without a final line break."""
    body = [
        [
            one.category,
            f"{one.ap50:.1f}",
            str(one.num_objects),
            ", ".join(f"{name} ({count})" for name, count in one.predicted[:MAX_NAMES_SHOWN]),
            str(one.missed),
        ]
        for one in confusions
    ]
    return tabulate(
        body,
        headers=["novel category", "AP50", "objects", "called", "missed"],
        tablefmt="pipe",
        colalign=("left", "right", "right", "left", "right") if body else None,
        disable_numparse=True,
    )


def _load(gt_json: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(gt_json, Mapping):
        return gt_json
    return json.loads(Path(gt_json).read_text())


def _lowest_ap50(
    dataset: Mapping[str, Any],
    predictions: Sequence[Detection],
    novel_ids: Sequence[int],
    names: Mapping[int, str],
) -> list[tuple[int, float]]:
    """(category id, AP50) of novel categories that have ground truth, lowest first."""
    if not novel_ids:
        return []
    lvis_eval = run_lvis_eval(InMemoryLVIS(dataset), predictions, "bbox", category_ids=novel_ids)
    precision = lvis_eval.eval["precision"][:, :, :, 0]  # (T, R, novel categories), all areas
    table = CategoryAP.from_precision(
        [names[one] for one in novel_ids], [True] * len(novel_ids), precision
    )
    known = [
        (category_id, ap50)
        for category_id, ap50 in zip(novel_ids, table.ap50.tolist(), strict=True)
        if not np.isnan(ap50)
    ]
    return sorted(known, key=lambda pair: (pair[1], pair[0]))


def _by_image(detections: Sequence[Detection]) -> dict[int, list[Detection]]:
    grouped: dict[int, list[Detection]] = defaultdict(list)
    for detection in detections:
        grouped[detection["image_id"]].append(detection)
    return grouped


def _by_category(dataset: Mapping[str, Any], wanted: set[int]) -> dict[int, list[Detection]]:
    grouped: dict[int, list[Detection]] = defaultdict(list)
    for annotation in dataset["annotations"]:
        if annotation["category_id"] in wanted and not annotation.get("iscrowd", 0):
            grouped[annotation["category_id"]].append(annotation)
    return grouped


def _confusion_of(
    names: Mapping[int, str],
    category_id: int,
    ap50: float,
    annotations: Sequence[Detection],
    detections: Mapping[int, list[Detection]],
    iou: float,
) -> CategoryConfusion:
    called: Counter[str] = Counter()
    for annotation in annotations:
        best = _best_overlap(annotation, detections.get(annotation["image_id"], []), iou)
        if best is not None:
            called[names[best["category_id"]]] += 1
    predicted = sorted(called.items(), key=lambda pair: (-pair[1], pair[0]))
    missed = len(annotations) - sum(called.values())
    return CategoryConfusion(names[category_id], ap50, len(annotations), predicted, missed)


def _best_overlap(
    annotation: Detection, detections: Sequence[Detection], iou: float
) -> Detection | None:
    if not detections:
        return None
    boxes = np.array([one["bbox"] for one in detections], dtype=np.float64)  # (N, 4) XYWH
    target = np.array([annotation["bbox"]], dtype=np.float64)
    overlaps = mask_utils.iou(boxes, target, [0])[:, 0]  # (N,)
    best = max(
        range(len(detections)), key=lambda k: (round(overlaps[k], 2), detections[k]["score"])
    )
    return detections[best] if overlaps[best] >= iou else None
