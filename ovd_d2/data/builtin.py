"""The data sets this package adds to Detectron2's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json
from detectron2.structures import BoxMode

from ovd_d2.data import ov_coco
from ovd_d2.data.base_only import drop_annotations
from ovd_d2.data.categories import get_categories
from ovd_d2.data.coco_json import load_coco_json
from ovd_d2.data.public_sets import OBJECTS365_V1, OBJECTS365_V2
from ovd_d2.data.registration import DataSet, offer
from ovd_d2.lvis_compat import patch_lvis

PICTOGRAM_SETS = ("pictograms_v1", "pictograms_v1_mini")
TUNING_SET = "pictograms_v1_tuning"


def _load_pictograms(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    from ovd_d2.pictograms.dataset import check_version  # what draws them: 0.1 s of an import

    names = get_categories(name).names  # a clear error where the file is missing
    MetadataCatalog.get(name).set(thing_classes=names)
    check_version(json_file)
    patch_lvis()  # before Detectron2 imports lvis
    # No data set name is passed on: Detectron2 would take every name with "v1" for LVIS v1. LVIS
    # has no crowds, Pictograms has.
    return load_lvis_json(json_file, image_root, None, extra_annotation_keys=["iscrowd"])


def pictograms(folder: str, split: str) -> DataSet:
    """`<folder>_<split>`: LVIS-format Pictograms in `folder`."""
    name = f"{folder}_{split}"
    # load_lvis_json appends the split folder without a slash
    json_file, image_root = f"{folder}/{name}.json", f"{folder}/"
    return DataSet(name, json_file, image_root, _load_pictograms, "lvis")


def _load_lvis_base(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    patch_lvis()  # before Detectron2 imports lvis
    dataset_dicts = load_lvis_json(json_file, image_root, "lvis_v1_train")
    return drop_annotations(dataset_dicts, get_categories("lvis_v1_train").novel)


def lvis_base() -> DataSet:
    """`lvis_v1_train_norare`: LVIS v1 train without the annotations of rare categories.

    The annotations are dropped when the official file is loaded; the file of that name, which
    datasets/prepare_lvis_base.py writes for other programs, is not read.
    """
    files = "lvis/lvis_v1_train.json", "coco/"
    metadata = get_lvis_instances_meta("lvis_v1")
    return DataSet("lvis_v1_train_norare", *files, _load_lvis_base, "lvis", metadata)


def _load_lvis_boxes(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    """LVIS-format annotations that need not have masks; Detectron2's own loader demands them."""
    table = json.loads(Path(json_file).read_text(encoding="utf-8"))
    annotations: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in table["images"]}
    for one in table["annotations"]:
        box = {"bbox": one["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        annotations[one["image_id"]].append({**box, "category_id": one["category_id"] - 1})
    return [
        {
            # LVIS takes its images from both splits of COCO; the address says from which.
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


def lvis_minival() -> DataSet:
    """`lvis_v1_minival`: the 4,809 images of LVIS val in COCO val2017, boxes only."""
    files = "lvis/lvis_v1_minival.json", "coco"
    metadata = {"boxes_only": True, **get_lvis_instances_meta("lvis_v1")}
    return DataSet("lvis_v1_minival", *files, _load_lvis_boxes, "lvis", metadata)


def ov_coco_sets() -> list[DataSet]:
    """The 48 / 17 split under the names of the field (`ovd_d2.data.ov_coco`)."""
    sets = {
        ov_coco.TRAIN_SET: (ov_coco.TRAIN_FILE, "coco/train2017"),
        ov_coco.VAL_SET: (ov_coco.VAL_FILE, "coco/val2017"),
    }
    return [
        DataSet(name, f"{ov_coco.FOLDER}/{file}", images, load_coco_json, "coco")
        for name, (file, images) in sets.items()
    ]


def objects365_sets() -> list[DataSet]:
    """The official files; :mod:`ovd_d2.data.public_sets` spells their names out."""
    files = {OBJECTS365_V1: ("objects365v1/objects365_train.json", "objects365v1/train")}
    for name in OBJECTS365_V2:
        split = name.rpartition("_")[2]
        annotations = f"objects365/annotations/zhiyuan_objv2_{split}.json"
        files[name] = (annotations, f"objects365/{split}")
    return [
        DataSet(name, *places, load_coco_json, "coco", {"official": True})
        for name, places in files.items()
    ]


for _folder in PICTOGRAM_SETS:
    for _split in ("train", "train_all", "val"):
        offer(pictograms(_folder, _split))
for _split in ("train", "choose", "choose_old", "val", "val_old"):
    offer(pictograms(TUNING_SET, _split))
for _data_set in (lvis_base(), lvis_minival(), *ov_coco_sets(), *objects365_sets()):
    offer(_data_set)
