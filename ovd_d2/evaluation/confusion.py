"""What the detector calls the novel objects that it gets wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.overlap import BoxRecord, best_overlap, group_by_image
from ovd_d2.evaluation.protocols import Detection
from ovd_d2.files import atomic_write_json
from ovd_d2.vocabulary import Categories

MAX_NAMES_SHOWN = 3
CONFUSION_FILE = "novel_confusion.json"


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
    ground_truth: GroundTruth,
    detections: Sequence[Detection],
    categories: Categories,
    ap50: Sequence[float],
    *,
    iou: float = 0.5,
    score_threshold: float = 0.05,
) -> list[CategoryConfusion]:
    """What the objects of each novel category were called, lowest box AP50 first.

    Each ground truth object takes the name of the detection that overlaps it best; detections whose
    IoU agrees to two decimals (one proposal scored for many names) are told apart by score.

    Args:
        ground_truth: the annotations; crowds are left out.
        detections: COCO-style results (`image_id`, `category_id` of the data set, `bbox` XYWH,
            `score`).
        categories: of the data set.
        ap50: C box AP50 in the order of `categories`; nan without ground truth.
        iou: least overlap that counts as found.
        score_threshold: detections below it are not looked at (AP50 uses all).

    Returns:
        One entry a novel category that has ground truth.
    """
    objects = [
        one
        for one in ground_truth.annotations
        if one["category_id"] in categories.novel_ids and not one.get("iscrowd")
    ]
    called = _names_of_objects(objects, detections, categories, iou, score_threshold)
    numbers = Counter(one["category_id"] for one in objects)
    found = [
        _confusion(categories.name_of[one], value, numbers[one], called[one])
        for one, value in zip(categories.ids, ap50, strict=True)
        if one in categories.novel_ids and not math.isnan(value)
    ]
    return sorted(found, key=lambda one: one.ap50)


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


def write_confusion(confusions: Sequence[CategoryConfusion], output_folder: str | Path) -> Path:
    """Writes `novel_confusion.json` into the folder. Returns its path."""
    path = Path(output_folder) / CONFUSION_FILE
    atomic_write_json(path, [asdict(one) for one in confusions])
    return path


def read_confusion(output_folder: str | Path) -> list[CategoryConfusion]:
    """Reads what `write_confusion` wrote.

    Raises:
        FileNotFoundError: no evaluation has written there.
    """
    path = Path(output_folder) / CONFUSION_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: every evaluation with boxes writes it; evaluate again with "
            "tools/train_net.py --eval-only"
        )
    records = json.loads(path.read_text())
    return [
        CategoryConfusion(**{**one, "predicted": [tuple(pair) for pair in one["predicted"]]})
        for one in records
    ]


def _names_of_objects(
    objects: Sequence[BoxRecord],
    detections: Sequence[Detection],
    categories: Categories,
    iou: float,
    score_threshold: float,
) -> dict[int, Counter[str]]:
    """Category id -> names that its objects were called."""
    confident = [one for one in detections if one["score"] >= score_threshold]
    by_image = group_by_image(confident, {one["image_id"] for one in objects})
    called: dict[int, Counter[str]] = {one: Counter() for one in categories.novel_ids}
    for one in objects:
        best = best_overlap(one, by_image.get(one["image_id"], []))
        if best is not None and best[1] >= iou:
            called[one["category_id"]][categories.name_of[best[0]["category_id"]]] += 1
    return called


def _confusion(category: str, ap50: float, number: int, called: Counter[str]) -> CategoryConfusion:
    predicted = sorted(called.items(), key=lambda pair: (-pair[1], pair[0]))
    return CategoryConfusion(category, ap50, number, predicted, number - sum(called.values()))
