"""What the demo leaves to look at: tables, pictures, confusions, timings."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_utils
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from tabulate import tabulate

from ovd_d2.data.categories import get_categories
from ovd_d2.evaluation import confusion_table, read_confusion, results_table
from ovd_d2.files import atomic_write
from ovd_d2.visualization import SheetRow, picture_sheet
from ovd_d2.vocabulary import Categories

NUM_SCENES = 6
NUM_CONFUSIONS = 5


def detections_path(output: Path, dataset_name: str) -> Path:
    """Where the evaluator of `tools/train_net.py` saved the detections of a run."""
    return output / "inference" / dataset_name / "lvis_instances_results.json"


def read_results(output: Path) -> dict[str, Any]:
    """The numbers of a run; an undefined one is nan again."""
    text = (output / "inference" / "results.json").read_text()
    return {
        task: {k: float("nan") if v is None else v for k, v in metrics.items()}
        for task, metrics in json.loads(text).items()
    }


def write_report(
    folder: Path, dataset_name: str, runs: Mapping[str, Path], seconds: Mapping[str, float]
) -> str:
    """Writes report.txt and pictures.png into `folder`.

    Args:
        folder: of one system's demo; made if it is not there.
        dataset_name: the evaluated data set.
        runs: title of a method -> its output folder; the first one is drawn and its confusions
            are told.
        seconds: of every step.

    Returns:
        The text of report.txt.
    """
    categories = get_categories(dataset_name)
    title, output = next(iter(runs.items()))
    detections = json.loads(detections_path(output, dataset_name).read_text())
    confusions = read_confusion(detections_path(output, dataset_name).parent)[:NUM_CONFUSIONS]
    text = "\n\n".join(
        [
            f"AP on {dataset_name} (Pictograms, not photographs), percent",
            results_table({name: read_results(path) for name, path in runs.items()}),
            f"The worst novel categories of {title}",
            confusion_table(confusions),
            "Time",
            _time_table(seconds),
        ]
    )
    with atomic_write(folder / "report.txt") as temporary:
        temporary.write_text(text + "\n")
    _draw_scenes(folder / "pictures.png", dataset_name, title, detections, categories)
    return text


def _time_table(seconds: Mapping[str, float]) -> str:
    rows = [[name, f"{value:.0f} s"] for name, value in seconds.items()]
    rows.append(["sum (two run at a time)", f"{sum(seconds.values()):.0f} s"])
    return tabulate(rows, tablefmt="plain", colalign=("left", "right"))


def _draw_scenes(
    path: Path,
    dataset_name: str,
    title: str,
    detections: Sequence[Mapping[str, Any]],
    categories: Categories,
) -> None:
    dataset_dicts = DatasetCatalog.get(dataset_name)
    least = score_of_as_many(detections, sum(len(one["annotations"]) for one in dataset_dicts))
    by_image = defaultdict(list)
    for detection in detections:
        if detection["score"] >= least:
            by_image[detection["image_id"]].append(detection)
    rows = []
    for record in scenes_with_novel(dataset_dicts, categories.novel, NUM_SCENES):
        size = (record["height"], record["width"])
        rows.append(
            SheetRow(
                read_image(record["file_name"], "RGB"),
                record["annotations"],
                to_instances(by_image[record["image_id"]], size),
            )
        )
    picture_sheet(
        rows,
        path,
        f"{title} on {dataset_name}, scores from {least:.2f}",
        names=categories.names,
        novel=categories.novel,
        score_threshold=least,
    )


def score_of_as_many(detections: Sequence[Mapping[str, Any]], objects: int) -> float:
    """The score that as many detections reach as there are objects, down to two digits.

    Systems score on scales of their own, which one number for all would not fit.
    """
    scores = sorted((one["score"] for one in detections), reverse=True)[: max(objects, 1)]
    return math.floor(100 * scores[-1]) / 100 if scores else 0.0


def scenes_with_novel(
    dataset_dicts: Sequence[Mapping[str, Any]], novel: Sequence[bool], count: int
) -> list[Mapping[str, Any]]:
    """The first `count` scenes with at least two novel objects and one base object."""
    chosen = []
    for record in dataset_dicts:
        flags = [novel[one["category_id"]] for one in record["annotations"]]
        if sum(flags) >= 2 and not all(flags):
            chosen.append(record)
    return chosen[:count]


def scene_for(names: str, dataset_name: str) -> Path:
    """The image in which most of the comma-separated names may be found, at their largest.

    A name may be found where all words of a category are among its own ("red anchor": anchor).
    """
    wanted = [set(name.lower().split()) for name in names.split(",")]
    categories = [set(name.lower().split()) for name in get_categories(dataset_name).names]

    def found(record: Mapping[str, Any]) -> tuple[int, float]:
        area: dict[int, float] = {}
        for one in record["annotations"]:
            for k, name in enumerate(wanted):
                if categories[one["category_id"]] <= name:
                    area[k] = max(area.get(k, 0.0), one["bbox"][2] * one["bbox"][3])
        return len(area), sum(area.values())

    return Path(max(DatasetCatalog.get(dataset_name), key=found)["file_name"])


def to_instances(detections: Sequence[Mapping[str, Any]], image_size: tuple[int, int]) -> Instances:
    """COCO-style results of one image (ids from 1 on) as Detectron2 predictions."""
    instances = Instances(image_size)
    boxes = [BoxMode.convert(d["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for d in detections]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([d["score"] for d in detections], dtype=torch.float32)
    classes = [d["category_id"] - 1 for d in detections]
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if all("segmentation" in d for d in detections):  # not of a detector of boxes
        masks = [mask_utils.decode(d["segmentation"]) for d in detections]
        stacked = np.stack(masks) if masks else np.zeros((0, *image_size), dtype=np.uint8)
        instances.pred_masks = torch.from_numpy(stacked).bool()
    return instances
