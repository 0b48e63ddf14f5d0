"""A miniature of LVIS v1, in its true format, under its true names, with what the real one has.

30 images of several sizes, all 1,203 categories annotated at least once in either split, images
whose only objects are rare (nothing is left of them in base-only training), images without any
object, tiny objects, a crowd (`iscrowd` 1 with polygons; the official files have none, and
Detectron2's LVIS loader drops the key). Images are noise with a rectangle for each object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter, dataset_fingerprint
from ovd_d2.data.categories import get_categories
from ovd_d2.data.paths import datasets_root
from ovd_d2.data.registration import register_data_sets
from ovd_d2.vocabulary import Vocabulary
from tests.catalog import forget
from tests.proposal_stores import random_proposals
from tests.tiny import random_units

TRAIN_IMAGES, VAL_IMAGES = 24, 6
ONLY_RARE, NO_OBJECT, CROWD = (3, 9, 15), (5, 12), 18  # training images, from 0
WITHOUT_BASE = len(ONLY_RARE) + len(NO_OBJECT)
SIZES = ((96, 128), (128, 96), (110, 147), (64, 64), (75, 180))  # height, width
NAMES = ("lvis_v1_train", "lvis_v1_val", "lvis_v1_train_norare", "lvis_v1_minival")
TEACHER, DIM = "mini-teacher", 512
PROPOSALS = 12  # per image


@dataclass(frozen=True)
class MiniLVIS:
    """`folder` is DETECTRON2_DATASETS; vocabulary and cache are where the recipes look."""

    folder: Path

    @property
    def vocabulary(self) -> Path:
        return self.folder / "lvis" / "vocabulary_vit_b32.safetensors"

    @property
    def cache(self) -> Path:
        return self.folder / "lvis" / "cache_vit_b32"


@contextmanager
def mini_lvis(folder: Path) -> Iterator[MiniLVIS]:
    """Writes it below `folder`; while in here, LVIS's names mean it."""
    home, place = datasets_root(), MiniLVIS(folder)
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        _register_below(folder)
        register_data_sets(NAMES)
        try:
            _vocabulary().save(place.vocabulary)
            _write_cache(place.cache)
            yield place
        finally:
            _register_below(home)


def _register_below(root: Path) -> None:
    forget(*NAMES)
    for name in NAMES[:2]:  # Detectron2's own
        path = str(root / "lvis" / f"{name}.json")
        register_lvis_instances(name, get_lvis_instances_meta("lvis_v1"), path, f"{root}/coco/")


def write_files(root: Path) -> None:
    """Annotation files and images."""
    rng = np.random.default_rng(0)
    train, val = _deal_train(rng), np.array_split(rng.permutation(1203) + 1, VAL_IMAGES)
    files = {
        "lvis_v1_train": _split(rng, root, 1, train, ("train2017",)),
        # Two thirds of LVIS's own val are images of COCO's train2017
        "lvis_v1_val": _split(rng, root, 101, val, ("train2017", "val2017")),
    }
    files["lvis_v1_minival"] = _minival(files["lvis_v1_val"])
    (root / "lvis").mkdir(parents=True)
    for name, content in files.items():
        (root / "lvis" / f"{name}.json").write_text(json.dumps(content))


def _deal_train(rng: np.random.Generator) -> list[np.ndarray]:
    """The category ids of each training image's objects; every category is in one or two."""
    rare = [one["id"] for one in LVIS_CATEGORIES if one["frequency"] == "r"]
    regular = [k for k in range(TRAIN_IMAGES) if k not in (*ONLY_RARE, *NO_OBJECT, CROWD)]
    contents = [np.zeros(0, np.int64)] * TRAIN_IMAGES
    for k, part in zip(
        regular, np.array_split(rng.permutation(1203) + 1, len(regular)), strict=True
    ):
        contents[k] = part
    for k in ONLY_RARE:
        contents[k] = rng.choice(rare, 4, replace=False)
    contents[CROWD] = np.array([1])
    return contents


def _split(
    rng: np.random.Generator,
    root: Path,
    first_id: int,
    contents: Sequence[np.ndarray],
    folders: Sequence[str],
) -> dict[str, Any]:
    """An annotation file in LVIS v1's format, whose images are written, too."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, categories in enumerate(contents):
        (height, width), folder = SIZES[k % len(SIZES)], folders[k % len(folders)]
        image_id = first_id + k
        objects = [_annotation(rng, int(category), height, width) for category in categories]
        for one in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **one})
        _write_image(rng, root / "coco" / folder / f"{image_id:012d}.jpg", (height, width), objects)
        absent = np.setdiff1d(np.arange(1, 1204), categories)
        images.append(
            {
                "id": image_id,
                "height": height,
                "width": width,
                "coco_url": f"http://images.cocodataset.org/{folder}/{image_id:012d}.jpg",
                "neg_category_ids": sorted(rng.choice(absent, 5, replace=False).tolist()),
                "not_exhaustive_category_ids": sorted(int(c) for c in categories[:2]),
                "license": 1,
            }
        )
    if first_id == 1:
        (crowd,) = (one for one in annotations if one["image_id"] == first_id + CROWD)
        crowd["iscrowd"] = 1
    table = [{**one, "image_count": 1, "instance_count": 1} for one in LVIS_CATEGORIES]
    return {"info": {}, "images": images, "annotations": annotations, "categories": table}


def _annotation(rng: np.random.Generator, category: int, height: int, width: int) -> dict[str, Any]:
    """A rectangle of 1 px up to half the image."""
    sides = np.exp(rng.uniform(0, np.log([width / 2, height / 2])))
    left, top = rng.uniform(0, [width - sides[0], height - sides[1]])
    right, bottom = left + sides[0], top + sides[1]
    return {
        "category_id": category,
        "bbox": [round(float(value), 2) for value in (left, top, *sides)],
        "area": round(float(sides.prod()), 2),
        "segmentation": [
            [round(float(v), 2) for v in (left, top, right, top, right, bottom, left, bottom)]
        ],
    }


def _write_image(
    rng: np.random.Generator, path: Path, size: tuple[int, int], objects: list[dict[str, Any]]
) -> None:
    pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    for one in objects:
        left, top, width, height = (round(value) for value in one["bbox"])
        pixels[top : top + height, left : left + width] = rng.integers(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"{path}: could not be written")


def _minival(val: dict[str, Any]) -> dict[str, Any]:
    """The images of COCO's val2017, without masks, as the file that goes around."""
    images = [one for one in val["images"] if "val2017" in one["coco_url"]]
    ids = {one["id"] for one in images}
    return {
        **val,
        "images": images,
        "annotations": [
            {key: value for key, value in one.items() if key != "segmentation"}
            for one in val["annotations"]
            if one["image_id"] in ids
        ],
    }


def _vocabulary() -> Vocabulary:
    table = get_categories("lvis_v1_train")
    units = random_units(len(table), dim=DIM)
    return Vocabulary(table.names, units, torch.tensor(table.novel), teacher=TEACHER)


def _write_cache(path: Path) -> None:
    """Random boxes and embeddings of every training image."""
    records = DatasetCatalog.get("lvis_v1_train_norare")
    manifest = Manifest(
        kind="embeddings",
        dataset=DatasetInfo("lvis_v1_train_norare", dataset_fingerprint(records), len(records)),
        proposals="p" * 16,
        teacher=TEACHER,
        embedding_dim=DIM,
    )
    with RecordWriter(path, manifest, images=records) as writer:
        for one in records:
            seed = one["image_id"]
            found = random_proposals(PROPOSALS, one["height"], one["width"], seed)
            writer.add(seed, {**found, "embeddings": random_units(PROPOSALS, seed, DIM)})
        writer.finish()
