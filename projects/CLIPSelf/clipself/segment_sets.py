"""Data sets of segments in COCO's panoptic format, and how instance masks become one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ovd_d2.data.builtin import PICTOGRAM_SETS
from ovd_d2.data.categories import get_categories
from ovd_d2.data.paths import datasets_root
from ovd_d2.data.registration import DataSet, register_data_sets
from ovd_d2.files import atomic_write_json

REGIONS = "region_classification"  # evaluator_type
PANOPTIC = "coco_panoptic_seg"  # evaluator_type, Detectron2's
SEMANTIC = "sem_seg"  # evaluator_type, Detectron2's
COCO_FILES = ("coco/annotations/panoptic_val2017.json", "coco/val2017", "coco/panoptic_val2017")


@dataclass(frozen=True)
class SegmentFiles:
    """Where the segments of a data set are.

    Attributes:
        json_file: in COCO's panoptic format.
        panoptic_root: folder of the PNGs with the id of each pixel's segment.
        sem_seg_root: folder of the PNGs with the class of each pixel.
    """

    json_file: Path
    panoptic_root: Path
    sem_seg_root: Path

    @classmethod
    def beside(cls, folder: Path, name: str) -> SegmentFiles:
        """Of instance masks that are in `folder` under the name `name`."""
        split = name.rpartition("_")[2]
        parts = (f"panoptic_{split}", f"sem_seg_{split}")
        return cls(folder / f"{name}_panoptic.json", *(folder / one for one in parts))


def write_panoptic(dataset_name: str, files: SegmentFiles, *, progress: bool = True) -> int:
    """Makes a panoptic data set, and one of semantic segmentation, of instance masks.

    There is no stuff in it: pixels of no mask have no segment. Where masks overlap, the later
    annotation is seen.

    Args:
        dataset_name: registered, with masks.
        files: where it goes.
        progress: show a bar.

    Returns:
        The number of segments.
    """
    register_data_sets([dataset_name])
    categories = get_categories(dataset_name)
    table = _table_of_categories(dataset_name)
    ignored = ignore_label(len(categories))
    for folder in (files.panoptic_root, files.sem_seg_root):
        folder.mkdir(parents=True, exist_ok=True)
    records = DatasetCatalog.get(dataset_name)
    annotations, images = [], []
    for record in tqdm(records, desc="segments", unit="image", disable=not progress):
        id_map, entries = _segments_of(record, categories.ids)
        name = f"{record['image_id']:012d}.png"
        Image.fromarray(ids_to_rgb(id_map)).save(files.panoptic_root / name)
        _write_classes(files.sem_seg_root / name, id_map, entries, categories.ids, ignored)
        annotations.append(
            {"image_id": record["image_id"], "file_name": name, "segments_info": entries}
        )
        images.append(_image_entry(record, files.json_file.parent))
    content = {"images": images, "annotations": annotations, "categories": table}
    atomic_write_json(files.json_file, content)
    return sum(len(one["segments_info"]) for one in annotations)


def ignore_label(categories: int) -> int:
    """The class of pixels without one, in images of 8 bits where there is room."""
    return 255 if categories < 255 else 65535


def ids_to_rgb(id_map: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(H, W) ids below 2^24 -> (H, W, 3), COCO's panoptic format."""
    parts = [id_map // 256**k % 256 for k in range(3)]
    return np.stack(parts, axis=2).astype(np.uint8)


def _table_of_categories(dataset_name: str) -> list[dict[str, Any]]:
    """Things, with the frequencies by which LVIS tells what is novel."""
    categories = get_categories(dataset_name)
    table: list[dict[str, Any]] = [
        {"id": one, "name": name, "supercategory": "", "isthing": 1}
        for one, name in zip(categories.ids, categories.names, strict=True)
    ]
    for entry, letter in zip(table, categories.frequencies or (), strict=False):
        entry["frequency"] = letter
    return table


def _segments_of(
    record: Mapping[str, Any], ids: Sequence[int]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """(H, W) ids of the segments, and `segments_info`; what is covered whole is left out."""
    id_map = np.zeros((record["height"], record["width"]), dtype=np.int32)
    for number, one in enumerate(record["annotations"], start=1):
        id_map[_mask(one["segmentation"], *id_map.shape)] = number
    counts = np.bincount(id_map.ravel(), minlength=len(record["annotations"]) + 1)
    entries = [
        {
            "id": number,
            "category_id": ids[one["category_id"]],
            "bbox": [float(side) for side in one["bbox"]],
            "area": int(counts[number]),
            "iscrowd": int(one.get("iscrowd", 0)),
        }
        for number, one in enumerate(record["annotations"], start=1)
        if counts[number]
    ]
    return id_map, entries


def _mask(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """COCO's polygons or RLE -> (H, W)."""
    if isinstance(segmentation, list):
        parts = coco_mask.frPyObjects(segmentation, height, width)
        segmentation = coco_mask.merge(parts)
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    found: NDArray[np.bool_] = coco_mask.decode(segmentation).astype(bool)
    return found


def _write_classes(
    path: Path,
    id_map: NDArray[np.int32],
    entries: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    ignored: int,
) -> None:
    kind = np.uint8 if ignored == 255 else np.uint16
    classes = np.full(id_map.max() + 1, ignored, dtype=kind)
    place = {one: k for k, one in enumerate(ids)}
    for entry in entries:
        classes[entry["id"]] = place[entry["category_id"]]
    Image.fromarray(classes[id_map]).save(path)


def _image_entry(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    file = Path(record["file_name"])
    inside = file.is_relative_to(folder)
    return {
        "id": record["image_id"],
        "file_name": str(file.relative_to(folder) if inside else file.absolute()),
        "height": record["height"],
        "width": record["width"],
    }


def load_panoptic(
    panoptic_root: str, json_file: str, image_root: str, name: str
) -> list[dict[str, Any]]:
    """Detectron2's dicts of a panoptic file; categories are numbered in the order of their ids.

    Unlike Detectron2's own loader it takes the images' names from the file, whatever their format,
    and the categories, too, which go into the metadata.

    Args:
        panoptic_root: folder of the PNGs, below that of all data sets.
        json_file, image_root, name: of the data set.
    """
    table = json.loads(Path(json_file).read_text(encoding="utf-8"))
    categories = sorted(table["categories"], key=lambda one: one["id"])
    root = datasets_root() / panoptic_root
    _describe(name, categories, json_file, str(root))
    place = {one["id"]: k for k, one in enumerate(categories)}
    images = {one["id"]: one for one in table["images"]}
    records = []
    for one in table["annotations"]:
        image = images[one["image_id"]]
        records.append(
            {
                "file_name": str(Path(image_root, image["file_name"])),
                "image_id": one["image_id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": str(root / one["file_name"]),
                "segments_info": [
                    {
                        **entry,
                        "category_id": place[entry["category_id"]],
                        "isthing": bool(categories[place[entry["category_id"]]]["isthing"]),
                    }
                    for entry in one["segments_info"]
                ],
            }
        )
    return records


def load_semantic(
    sem_seg_root: str, json_file: str, image_root: str, name: str
) -> list[dict[str, Any]]:
    """The same images with the class of each pixel (`sem_seg_file_name`); arguments likewise."""
    records = load_panoptic(sem_seg_root, json_file, image_root, name)
    for one in records:
        one["sem_seg_file_name"] = one.pop("pan_seg_file_name")
        del one["segments_info"]
    return records


def _describe(
    name: str, categories: Sequence[Mapping[str, Any]], json_file: str, root: str
) -> None:
    """Detectron2's metadata of a "standard" panoptic data set."""
    names = [one["name"] for one in categories]
    places = list(enumerate(categories))
    metadata = MetadataCatalog.get(name)
    by_pixel = metadata.evaluator_type == SEMANTIC  # which knows no things
    metadata.set(
        thing_classes=names,
        stuff_classes=names,
        thing_dataset_id_to_contiguous_id={c["id"]: k for k, c in places if c["isthing"]},
        stuff_dataset_id_to_contiguous_id={
            c["id"]: k for k, c in places if by_pixel or not c["isthing"]
        },
        ignore_label=ignore_label(len(names)),
        label_divisor=1000,
    )
    if not by_pixel:
        metadata.set(panoptic_json=json_file, panoptic_root=root)


def segment_sets() -> list[DataSet]:
    """`coco_2017_val_regions`, and of Pictograms `..._regions`, `..._panoptic`, `..._semantic`."""
    found = [_data_set("coco_2017_val_regions", REGIONS, load_panoptic, COCO_FILES)]
    for folder in PICTOGRAM_SETS:
        source = f"{folder}_val"
        files = SegmentFiles.beside(Path(folder), source)
        of_segments = (str(files.json_file), folder, str(files.panoptic_root))
        of_pixels = (str(files.json_file), folder, str(files.sem_seg_root))
        for kind, evaluator_type, loader, where in (
            ("regions", REGIONS, load_panoptic, of_segments),
            ("panoptic", PANOPTIC, load_panoptic, of_segments),
            ("semantic", SEMANTIC, load_semantic, of_pixels),
        ):
            found.append(_data_set(f"{source}_{kind}", evaluator_type, loader, where))
    return found


def _data_set(name: str, evaluator_type: str, loader: Any, files: tuple[str, str, str]) -> DataSet:
    """Of files and folders below that of all data sets: JSON, images, PNGs."""
    json_file, image_root, root = files
    source = name.rpartition("_")[0]
    command = f"python projects/CLIPSelf/tools/write_panoptic.py --dataset {source}"
    metadata: dict[str, Any] = {"segments": True}
    if name.startswith(PICTOGRAM_SETS):
        metadata["prepare_command"] = command
    load = partial(loader, root)
    return DataSet(name, json_file, image_root, load, evaluator_type, metadata)


def has_evaluator_type(dataset_name: str, evaluator_type: str) -> bool:
    """Of a registered data set's metadata."""
    found = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    return bool(found == evaluator_type)
