"""Registers the data sets this package adds to Detectron2's own."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json

from ovd_d2.data.base_only import drop_annotations
from ovd_d2.data.categories import get_categories
from ovd_d2.data.paths import datasets_root

logger = logging.getLogger(__name__)

PICTOGRAM_SETS = ("pictograms_v1", "pictograms_v1_mini")


def _load_pictograms(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    table = get_categories(name)  # a clear error where the file is missing
    MetadataCatalog.get(name).set(thing_classes=table.names)
    # No data set name is passed on: Detectron2 would take every name with "v1" for LVIS v1.
    return load_lvis_json(json_file, image_root, dataset_name=None)


def register_pictograms(folder: str, split: str, root: Path) -> None:
    """Registers `<folder>_<split>`: LVIS-format Pictograms under `root/<folder>`."""
    name = f"{folder}_{split}"
    json_file = str(root / folder / f"{name}.json")
    image_root = f"{root / folder}/"  # load_lvis_json appends the split folder without a slash
    DatasetCatalog.register(name, partial(_load_pictograms, name, json_file, image_root))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis")


def _load_lvis_base(json_file: str, image_root: str) -> list[dict[str, Any]]:
    dataset_dicts = load_lvis_json(json_file, image_root, "lvis_v1_train")
    return drop_annotations(dataset_dicts, get_categories("lvis_v1_train").is_novel)


def register_lvis_base(root: Path) -> None:
    """Registers `lvis_v1_train_norare`: LVIS v1 train without the annotations of rare categories.

    The annotations are dropped when the official file is loaded; no second JSON is needed.
    """
    name = "lvis_v1_train_norare"
    json_file = str(root / "lvis" / "lvis_v1_train.json")
    image_root = f"{root / 'coco'}/"
    DatasetCatalog.register(name, partial(_load_lvis_base, json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="lvis",
        **get_lvis_instances_meta("lvis_v1"),
    )


def register_all(root: Path) -> None:
    """Registers every data set of this package below `root` (done once, on import)."""
    for folder in PICTOGRAM_SETS:
        for split in ("train", "val"):
            register_pictograms(folder, split, root)
    register_lvis_base(root)


register_all(datasets_root())
