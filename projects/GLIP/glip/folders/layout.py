"""Where the splits of small detection sets are, in the layouts of ODinW and RF100-VL.

SET/{train,valid,test}/annotations_without_background.json    images beside it
SET/{train,valid,test}/_annotations.coco.json                  Roboflow's export
SET/{train,val,test}_annotations_without_background.json       images in SET
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.coco_json import register_coco_json
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write_json, fingerprint_json, read_text

TRAIN, VALID, TEST = "train", "valid", "test"
_CALLED = {TRAIN: ("train",), VALID: ("valid", "val"), TEST: ("test",)}
# Of a split's folder, the first that is there; the first is without Roboflow's group of all names.
_CLEAN = "annotations_without_background.json"
_FILES = (_CLEAN, "_annotations.coco.json")

# What tables of ODinW are over: beginnings of folders. The 13 have one variant of each.
BENCHMARKS = {
    "odinw13": (
        *("AerialMaritimeDrone/large", "Aquarium", "CottontailRabbits", "EgoHands/generic"),
        *("NorthAmericaMushrooms", "Packages", "PascalVOC", "pistols", "pothole", "Raccoon"),
        *("ShellfishOpenImages", "thermalDogsAndPeople", "VehiclesOpenImages/416x416"),
    ),
    "odinw35": (
        *("AerialMaritimeDrone/large", "AerialMaritimeDrone/tiled", "AmericanSignLanguageLetters"),
        *("Aquarium", "BCCD", "boggleBoards", "brackishUnderwater", "ChessPieces"),
        *("CottontailRabbits", "dice", "DroneControl", "EgoHands/generic", "EgoHands/specific"),
        *("HardHatWorkers", "MaskWearing", "MountainDewCommercial", "NorthAmericaMushrooms"),
        *("openPoetryVision", "OxfordPets/by-breed", "OxfordPets/by-species", "PKLot", "Packages"),
        *("PascalVOC", "pistols", "plantdoc/416x416", "pothole", "Raccoon", "selfdrivingCar"),
        *("ShellfishOpenImages", "ThermalCheetah", "thermalDogsAndPeople", "UnoCards"),
        *("VehiclesOpenImages/416x416", "websiteScreenshots", "WildfireSmoke"),
    ),
}


@dataclass(frozen=True)
class Split:
    """One annotation file in COCO's format, and the folder of its images."""

    json_file: Path
    image_root: Path


@dataclass(frozen=True)
class FolderSet:
    """A detection set below a folder.

    Attributes:
        name: its folder from there on, "EgoHands/generic".
        splits: "train", "valid", "test", as far as they are there.
    """

    name: str
    splits: dict[str, Split]

    def begins_with(self, beginning: str) -> bool:
        """Whether it is this folder, or one below it."""
        return f"{self.name}/".startswith(f"{beginning}/")

    @property
    def evaluated(self) -> str:
        """The split that is scored: "test", where it is there (PascalVOC has none)."""
        return TEST if TEST in self.splits else VALID

    @property
    def validated(self) -> str:
        """The split by which a training chooses its checkpoint."""
        return VALID if VALID in self.splits else TEST


def find_sets(root: Path) -> list[FolderSet]:
    """All sets below a folder, by name.

    Raises:
        SetupError: there is no such folder, or no set in it.
    """
    found = []
    for folder, below, _ in os.walk(root, followlinks=True):
        below.sort()
        splits = _splits(Path(folder))
        if VALID in splits or TEST in splits:
            found.append(FolderSet(Path(folder).relative_to(root).as_posix(), splits))
            below.clear()
    if not found:
        raise SetupError(
            [
                f"no data set below '{root}': expected folders with valid/ or test/, and in them "
                f"{' or '.join(_FILES)}"
            ]
        )
    return sorted(found, key=lambda one: one.name)


def _splits(folder: Path) -> dict[str, Split]:
    splits = {}
    for split, names in _CALLED.items():
        places = [Split(folder / name / file, folder / name) for name in names for file in _FILES]
        places += [Split(folder / f"{name}_{_CLEAN}", folder) for name in names]
        there = [one for one in places if one.json_file.is_file()]
        if there:
            splits[split] = there[0]
    return splits


def select_sets(sets: Sequence[FolderSet], wanted: Sequence[str]) -> list[FolderSet]:
    """Those of benchmarks ("odinw13", "odinw35") or below the folders named; all, of none.

    Raises:
        SetupError: something wanted is not there; all of it is listed.
    """
    beginnings = [part for one in wanted for part in BENCHMARKS.get(one.lower(), (one,))]
    missing = [one for one in beginnings if not any(each.begins_with(one) for each in sets)]
    if missing:
        known = ", ".join(one.name for one in sets)
        raise SetupError([f"--sets: no folder '{one}'; there are {known}" for one in missing])
    if not beginnings:
        return list(sets)
    return [one for one in sets if any(map(one.begins_with, beginnings))]


def register_split(
    one: FolderSet, split: str, folder: Path, images: Sequence[int] | None = None, tag: str = ""
) -> str:
    """Registers a split, or some of its images, and returns the name.

    The group that Roboflow's export puts first, the super-category of all others without a box, is
    no category: where it is there, or images are chosen, a copy of the annotation file is written.

    Args:
        one: the set.
        split: one of its splits.
        folder: where a copy goes.
        images: ids; None: all.
        tag: part of the name, of chosen images.

    Raises:
        SetupError: the file is not COCO's format.
    """
    source = one.splits[split]
    table = read_table(source.json_file)
    kept = without_group(table, _used_categories(one))
    if images is not None:
        kept = with_images(kept, images)
    path = source.json_file
    if kept is not table:
        path = folder / f"{split}.json"
        atomic_write_json(path, kept)
    name = re.sub(r"[^\w.-]", "_", "_".join(filter(None, (one.name, tag, split))))
    file = {"file": str(path)}
    if name in DatasetCatalog and MetadataCatalog.get(name).json_file != str(path):
        name += f"_{fingerprint_json(file)}"  # of another folder with a set of this name
    if name not in DatasetCatalog:
        register_coco_json(name, str(path), str(source.image_root))
    return name


def read_table(path: Path) -> dict[str, Any]:
    """COCO's.

    Raises:
        SetupError: it is none.
    """
    try:
        table = json.loads(read_text(path))
        if not all(isinstance(table[key], list) for key in ("images", "annotations", "categories")):
            raise TypeError("images, annotations and categories are lists")
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError([f"{path}: not COCO format ({error})"]) from error
    return dict(table)


def _used_categories(one: FolderSet) -> set[int]:
    tables = (read_table(split.json_file) for split in one.splits.values())
    return {box["category_id"] for table in tables for box in table["annotations"]}


def without_group(table: dict[str, Any], used: set[int]) -> dict[str, Any]:
    """A table without the category that is but the group of all others; the same if none is.

    Args:
        table: COCO's.
        used: categories that have a box in any split.
    """
    categories = table["categories"]
    for group in categories:
        others = [one for one in categories if one is not group]
        grouped = others and all(one.get("supercategory") == group["name"] for one in others)
        if grouped and group["id"] not in used:
            return {**table, "categories": others}
    return table


def with_images(table: dict[str, Any], images: Sequence[int]) -> dict[str, Any]:
    """A table of some images, by their ids, alone."""
    chosen = set(images)
    return {
        **table,
        "images": [one for one in table["images"] if one["id"] in chosen],
        "annotations": [one for one in table["annotations"] if one["image_id"] in chosen],
    }
