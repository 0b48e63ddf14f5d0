"""Registers the data sets this package adds to Detectron2's own."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json
from detectron2.structures import BoxMode

from ovd_d2.data import ov_coco
from ovd_d2.data.base_only import drop_annotations
from ovd_d2.data.categories import get_categories
from ovd_d2.data.coco_json import register_coco_json
from ovd_d2.data.own import register_from_environment
from ovd_d2.data.paths import datasets_root

logger = logging.getLogger(__name__)

PICTOGRAM_SETS = ("pictograms_v1", "pictograms_v1_mini")

# What a text encoder would not read as it is meant.
VOC_SPELLINGS = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}
OBJECTS365_SPELLINGS = {
    "Moniter/TV": "Monitor/TV",
    "Bakset": "Basket",
    "Ballon": "Balloon",
    "Dinning Table": "Dining Table",
    "Billards": "Billiards",
    "Cigar/Cigarette ": "Cigar/Cigarette",
    "Extention Cord": "Extension Cord",
    "Hotair ballon": "Hot air balloon",
    "Hamimelon": "Hami melon",
    "Mushroon": "Mushroom",
    "Tape Measur/ Ruler": "Tape Measure/Ruler",
    "Campel": "Camel",
    "Formula 1 ": "Formula 1",
    "Buttefly": "Butterfly",
    "Noddles": "Noodles",
    "Table Teniis paddle": "Table Tennis paddle",
    "Table Tennis ": "Table Tennis",
}


def _load_pictograms(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    from ovd_d2.data.pictograms import check_version  # what draws them: 0.1 s of an import

    table = get_categories(name)  # a clear error where the file is missing
    MetadataCatalog.get(name).set(thing_classes=table.names)
    check_version(json_file)
    # No data set name is passed on: Detectron2 would take every name with "v1" for LVIS v1. LVIS
    # has no crowds, Pictograms has.
    return load_lvis_json(json_file, image_root, None, extra_annotation_keys=["iscrowd"])


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

    The annotations are dropped when the official file is loaded; the file of that name, which
    datasets/prepare_lvis_base.py writes for other programs, is not read.
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


def _load_lvis_boxes(json_file: str, image_root: str) -> list[dict[str, Any]]:
    """LVIS-format annotations that need not have masks; Detectron2's own loader demands them."""
    table = json.loads(Path(json_file).read_text(encoding="utf-8"))
    annotations: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in table["images"]}
    for one in table["annotations"]:
        box = {"bbox": one["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        annotations[one["image_id"]].append({**box, "category_id": one["category_id"] - 1})
    return [
        {
            # LVIS takes its pictures from both splits of COCO; the address says from which.
            "file_name": str(Path(image_root, *image["coco_url"].split("/")[-2:])),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "neg_category_ids": image.get("neg_category_ids", []),
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "annotations": annotations[image["id"]],
        }
        for image in sorted(table["images"], key=lambda one: one["id"])
    ]


def register_lvis_minival(root: Path) -> None:
    """Registers `lvis_v1_minival`: the 4,809 images of LVIS val in COCO val2017, boxes only."""
    name = "lvis_v1_minival"
    json_file, image_root = str(root / "lvis" / f"{name}.json"), str(root / "coco")
    DatasetCatalog.register(name, partial(_load_lvis_boxes, json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="lvis",
        boxes_only=True,
        **get_lvis_instances_meta("lvis_v1"),
    )


def register_ov_coco(root: Path) -> None:
    """Registers the 48 / 17 split under the names of the field (`ovd_d2.data.ov_coco`)."""
    sets = {
        "coco_zeroshot_train_oriorder": ("train2017", ov_coco.TRAIN_FILE),
        "coco_generalized_zeroshot_val": ("val2017", ov_coco.VAL_FILE),
    }
    for name, (images, file) in sets.items():
        json_file = root / ov_coco.FOLDER / file
        image_root = str(root / "coco" / images)
        base = list(ov_coco.BASE_CLASSES)
        register_coco_json(name, str(json_file), image_root, base_classes=base)


def register_objects365(root: Path) -> None:
    """Registers `objects365_v2_val`, the official file with its names spelled out."""
    folder = root / "objects365"
    register_coco_json(
        "objects365_v2_val",
        str(folder / "annotations" / "zhiyuan_objv2_val.json"),
        str(folder / "val"),
        boxes_only=True,
        spellings=OBJECTS365_SPELLINGS,
    )


def complete_voc() -> None:
    """Detectron2 registers VOC; this adds what its metadata lacks for an open vocabulary."""
    for name in DatasetCatalog.list():
        if name.startswith("voc_"):
            MetadataCatalog.get(name).set(boxes_only=True, spellings=VOC_SPELLINGS)


def register_all(root: Path) -> None:
    """Registers every data set of this package below `root` (done once, on import)."""
    for folder in PICTOGRAM_SETS:
        for split in ("train", "train_all", "val"):
            register_pictograms(folder, split, root)
    register_lvis_base(root)
    register_lvis_minival(root)
    register_ov_coco(root)
    register_objects365(root)
    complete_voc()


register_all(datasets_root())
register_from_environment()
