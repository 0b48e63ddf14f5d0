"""Small annotation files in COCO's and LVIS's format, sound unless a test breaks them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ovd_d2.data.validation import DatasetUse, Report, Source, validate_file

TRAIN = DatasetUse(training=True, masks=True)
TRAIN_BOXES = DatasetUse(training=True, masks=False)
TRAIN_BITMASKS = DatasetUse(training=True, masks=True, mask_format="bitmask")
TEST = DatasetUse(training=False, masks=True)


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def sound_set(images: int = 4) -> dict[str, Any]:
    """Images of 64 x 48 with three objects each, of three categories."""
    boxes = [[5, 4, 20, 20], [37, 6, 20, 20], [15, 26, 20, 20]]
    annotations = [
        {
            "id": 3 * k + n + 1,
            "image_id": k + 1,
            "category_id": n + 1,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": rectangle(*box),
        }
        for k in range(images)
        for n, box in enumerate(boxes)
    ]
    return {
        "images": [
            {"id": k + 1, "file_name": f"{k + 1}.png", "width": 64, "height": 48}
            for k in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(("ant", "bee", "cat"))],
    }


def lvis_set() -> dict[str, Any]:
    dataset = sound_set()
    for image in dataset["images"]:
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
        image["neg_category_ids"] = image["not_exhaustive_category_ids"] = []
    for category, letter in zip(dataset["categories"], "rcf", strict=True):
        category["frequency"] = letter
    return dataset


def lvis_source(path: Path) -> Source:
    return Source(
        str(path), "lvis", demands_masks=True, url_names=True, tolerant=False, has_split=False
    )


def written(folder: Path, dataset: Any, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))
    return path


def checked(
    folder: Path, dataset: Any, use: DatasetUse = TRAIN, *, lvis: bool = False, d2: bool = False
) -> Report:
    """The report on a file with this content, read by LVIS's, Detectron2's or our own loader."""
    path = written(folder, dataset)
    source = None
    if lvis:
        source = lvis_source(path)
    elif d2:
        source = Source(str(path), tolerant=False, has_split=False)
    return validate_file(path, use, source=source, progress=False)


def only_problem(report: Report) -> str:
    assert len(report.problems) == 1, list(map(str, report.problems))
    return str(report.problems[0])
