"""Which file a registered data set has, and how it is loaded from it."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.utils.file_io import PathManager

from ovd_d2.data.categories import categories_of, get_categories, missing_file_problem
from ovd_d2.data.json_stream import AnnotationFileError, file_problem
from ovd_d2.data.public_sets import dataset_field
from ovd_d2.data.registration import known_names, register_data_sets
from ovd_d2.data.validation.records import record_problems
from ovd_d2.data.validation.reports import (
    Report,
    byte_order_mark_problem,
    read_table,
    report_on,
    table_of_records,
)
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source
from ovd_d2.vocabulary import Categories

# Public data sets as they are, which have a few boxes without area, say so by the metadata field
# `official`; those that Detectron2 registers are known by the beginnings of their names.
OFFICIAL = ("coco_", "lvis_", "voc_")


def validate_dataset(name: str, use: DatasetUse, *, progress: bool = True) -> Report:
    """Everything that is wrong with the annotations of a registered data set; opens no image.

    The raw annotation file is read once, before Detectron2's loader could hide its faults. A data
    set without file (PASCAL VOC, a function of the user's) is loaded and looked at in the same way.

    Args:
        name: as registered.
        use: what for.
        progress: show bars for what takes longer than two seconds.

    Raises:
        KeyError: the data set is not registered.
    """
    register_data_sets([name])
    if name not in DatasetCatalog:
        known = ", ".join(known_names())
        raise KeyError(f"data set '{name}' is not registered; registered: {known}")
    metadata = MetadataCatalog.get(name)
    if _has_segments(metadata):
        return _validate_records(name, replace(use, objects=False), progress=progress)
    if metadata.get("json_file", None) is None:
        return _validate_records(name, use, progress=progress)
    if problem := missing_file_problem(name):
        path = Path(PathManager.get_local_path(metadata.json_file))
        missing = file_problem(path, "is not there", "an annotation file", "none", problem)
        return Report(str(path), [missing])
    path = Path(PathManager.get_local_path(metadata.json_file))
    if _boxes_only(name):
        use = replace(use, masks=False)
    source = _source_of(name, str(path))
    return validate_file(
        path,
        use,
        source=source,
        categories=partial(_registered_categories, name),
        image_root=metadata.get("image_root", ""),
        progress=progress,
    )


def validate_file(
    path: Path,
    use: DatasetUse,
    *,
    source: Source | None = None,
    categories: Any = None,
    image_root: str = "",
    progress: bool = True,
) -> Report:
    """Everything that is wrong with an annotation file.

    Args:
        path: of the file.
        use: what for.
        source: what loads it; by default the loader of data sets of one's own (COCO format).
        categories: makes them of entries; by default the names alone, none of them novel.
        image_root: folder of the images, for `Report.images`.
        progress: show bars for what takes longer than two seconds.
    """
    source = source or Source(str(path), has_split=False)
    try:
        table, problems = read_table(path, progress=progress)
    except AnnotationFileError as error:
        return Report(str(path), [error.problem])
    except OSError as error:
        unreadable = file_problem(path, "cannot be read", "a file", str(error), "copy it again")
        return Report(str(path), [unreadable])
    if not (source.tolerant and use.training) and (mark := byte_order_mark_problem(path)):
        problems.append(mark)
    if problems:
        return Report(str(path), problems)
    join = partial(_image_path, image_root, source)
    return report_on(
        table,
        source,
        use,
        categories=categories or _names_alone,
        image_path=join,
        progress=progress,
    )


def _validate_records(name: str, use: DatasetUse, *, progress: bool) -> Report:
    try:
        records = DatasetCatalog.get(name)
        categories = get_categories(name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        what = "cannot be loaded"
        fix = "the function that is registered under this name, or a file it reads, is at fault"
        problem = file_problem(Path(name), what, "Detectron2's dicts", repr(error), fix)
        return Report(name, [problem])
    if problems := record_problems(f"data set '{name}'", records):
        return Report(name, problems)
    table = table_of_records(records, categories.names)
    del records
    official = _is_official(name)
    source = Source(f"data set '{name}'", "records", tolerant=False, official=official)
    return report_on(
        table,
        source,
        replace(use, masks=use.masks and not _boxes_only(name)),
        categories=lambda entries: categories,
        image_path=lambda table, row: table.image_name(row),
        progress=progress,
    )


def _has_segments(metadata: Metadata) -> bool:
    """Panoptic or semantic segmentation: no objects, and a file that is not in their format.

    The metadata field `segments` says so of other evaluator types.
    """
    known = metadata.get("evaluator_type", None) in ("coco_panoptic_seg", "sem_seg")
    return known or bool(metadata.get("segments", False))


def _boxes_only(name: str) -> bool:
    return bool(dataset_field(name, "boxes_only", False))


def _is_official(name: str) -> bool:
    return bool(MetadataCatalog.get(name).get("official", name.startswith(OFFICIAL)))


def _source_of(name: str, file: str) -> Source:
    """By the rules of Detectron2's registration: its LVIS loader serves the type "lvis"."""
    lvis = MetadataCatalog.get(name).get("evaluator_type", None) == "lvis"
    names = {one["id"]: one["name"] for one in LVIS_CATEGORIES}
    return Source(
        file,
        kind="lvis" if lvis else "coco",
        demands_masks=lvis and not _boxes_only(name),
        url_names=lvis,
        tolerant=not lvis and _has_own_loader(name),
        official=_is_official(name),
        names=names if name.startswith("lvis_v1") else {},
    )


def _has_own_loader(name: str) -> bool:
    """Whether this package's loader serves a data set, by the function that is registered."""
    function = DatasetCatalog.data[name]
    return getattr(function, "func", function).__module__.startswith("ovd_d2.")


def _registered_categories(name: str, entries: Any) -> Categories:
    return get_categories(name) if name.startswith("lvis_v1") else categories_of(entries, name)


def _names_alone(entries: Any) -> Categories:
    ordered = sorted(entries, key=lambda entry: entry["id"])
    names, ids = ([entry[key] for entry in ordered] for key in ("name", "id"))
    return Categories(names, [False] * len(ordered), ids)


def _image_path(root: str, source: Source, table: AnnotationTable, row: int) -> str:
    """As Detectron2 joins them; "" where the entry names no file."""
    if not source.url_names:
        name = table.images["file_name"].values[row]
        return os.path.join(root, name) if isinstance(name, str) and name else ""
    address = table.images["coco_url"].values[row]
    if not isinstance(address, str) or "/" not in address:
        return ""
    folder, file = address.split("/")[-2:]
    if source.demands_masks:  # Detectron2's loader appends the folder to the root as it is
        return os.path.join(root + folder, file)
    return os.path.join(root, folder, file)
