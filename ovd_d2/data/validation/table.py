"""An annotation file as columns, and how its data set is loaded from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.categories import describe_category
from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.columns import (
    MISSING,
    BoxColumn,
    Column,
    CrowdColumn,
    IntegerColumn,
    ListColumn,
    NumberColumn,
    ObjectColumn,
)
from ovd_d2.data.validation.segmentations import SegmentationColumn

FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


class AnnotationTable:
    """The columns of an annotation file.

    Attributes:
        images, annotations: key -> column.
        categories: the entries themselves; there are few.
        not_objects: part -> how many of its entries are no JSON objects (left out), and the first.
    """

    def __init__(self) -> None:
        self.images: dict[str, Column] = {
            "id": IntegerColumn(),
            "file_name": ObjectColumn(),
            "coco_url": ObjectColumn(),
            "height": IntegerColumn(),
            "width": IntegerColumn(),
            **{key: ListColumn() for key in FEDERATED},
        }
        self.segmentations = SegmentationColumn()
        self.boxes = BoxColumn()
        self.annotations: dict[str, Column] = {
            "id": IntegerColumn(),
            "image_id": IntegerColumn(),
            "category_id": IntegerColumn(),
            "bbox": self.boxes,
            "iscrowd": CrowdColumn(),
            "ignore": CrowdColumn(),
            "area": NumberColumn(),
            "segmentation": self.segmentations,
        }
        self.categories: list[dict[str, Any]] = []
        self.not_objects: dict[str, tuple[int, str]] = {}

    def add(self, part: str, batch: Sequence[Any]) -> None:
        """Adds entries of `images`, `annotations` or `categories`."""
        entries = [entry for entry in batch if type(entry) is dict]
        if len(entries) < len(batch):
            first = next(entry for entry in batch if type(entry) is not dict)
            count, shown = self.not_objects.get(part, (0, str(first)[:60]))
            self.not_objects[part] = (count + len(batch) - len(entries), shown)
        if part == "categories":
            self.categories += entries
            return
        for key, column in getattr(self, part).items():
            column.add(entries, key)

    @property
    def num_images(self) -> int:
        return self.images["id"].rows

    @property
    def num_annotations(self) -> int:
        return self.annotations["id"].rows

    @cached_property
    def category_ids(self) -> IntegerColumn:
        """The ids of the categories, as a column."""
        column = IntegerColumn()
        column.add(self.categories, "id")
        return column

    @cached_property
    def image_rows(self) -> NDArray[np.int64]:
        """(A,) the row of each annotation's image, -1 where there is none of its id."""
        return _rows_of(self.annotations["image_id"], self.images["id"])

    @cached_property
    def category_rows(self) -> NDArray[np.int64]:
        """(A,) the row of each annotation's category, -1 where there is none of its id."""
        return _rows_of(self.annotations["category_id"], self.category_ids)

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """(A,) the place of each annotation's category in the order of ids, -1 where unknown."""
        order = np.argsort([entry["id"] for entry in self.categories], kind="stable")
        places = np.full(len(order) + 1, -1, np.int64)  # the last row serves -1
        places[order] = np.arange(len(order))
        return places[self.category_rows]

    @cached_property
    def crowd(self) -> NDArray[np.bool_]:
        """(A,) which annotations are crowds."""
        return self.annotations["iscrowd"].values == 1

    @cached_property
    def image_sizes(self) -> NDArray[np.float64]:
        """(A, 2) width and height of each annotation's image, NaN where it is not known."""
        sizes = np.full((self.num_images + 1, 2), np.nan)  # the last row serves -1
        for k, key in enumerate(("width", "height")):
            values = self.images[key].values
            sizes[:-1, k] = np.where(values > 0, values, np.nan)
        return sizes[self.image_rows]

    def add_to(self, found: Findings, key: str) -> Callable[..., bool]:
        """`found.add` for a key of the annotations; what, rows, expected, found are to be given."""
        where = f"annotations[].{key}"
        return partial(found.add, where, total=self.num_annotations, first=self.annotation)

    def annotation(self, row: int) -> str:
        """ "annotation 7 of image 3", for messages."""
        own = self.annotations["id"].raw(row)
        own = f"number {row + 1}" if own is MISSING else shown(own)
        return f"annotation {own} of image {shown(self.annotations['image_id'].raw(row))}"

    def image(self, row: int) -> str:
        """ "image 3 (3.png)", for messages."""
        own = self.images["id"].raw(row)
        name = self.image_name(row)
        named = f" ({name})" if name else ""
        return f"image {f'number {row + 1}' if own is MISSING else shown(own)}{named}"

    def image_name(self, row: int) -> str:
        """The file name of an image, or what else says which file is meant."""
        values = (self.images[key].values[row] for key in ("file_name", "coco_url"))
        return next((value for value in values if isinstance(value, str)), "")

    def category(self, row: int) -> str:
        """ "category 3 (cat)", for messages."""
        return describe_category(self.categories[row], row)


@dataclass(frozen=True)
class Source:
    """Where annotations come from and what reads them.

    Attributes:
        file: for messages: the annotation file, or the data set where it has none.
        kind: "coco" or "lvis", whose rules the evaluation follows; "records" for a data set that
            is a function, whose annotations need no ids.
        demands_masks: the loader stops at annotations without polygons (Detectron2's for LVIS).
        url_names: the loader takes the file names from `coco_url` (LVIS).
        tolerant: our own loader: it takes `iscrowd` null for 0, and keeps boxes whose polygons it
            cannot use. Detectron2's loses both.
        official: a public data set as it is: boxes that Detectron2 leaves out are only noted.
        has_split: something says which categories are novel; a file by itself need not.
        names: id -> name that the categories must have; empty where the file itself decides.
    """

    file: str
    kind: str = "coco"
    demands_masks: bool = False
    url_names: bool = False
    tolerant: bool = True
    official: bool = False
    has_split: bool = True
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetUse:
    """What a data set is for.

    Attributes:
        training: trained on; False: evaluated on.
        masks: MODEL.MASK_ON.
        mask_format: INPUT.MASK_FORMAT, "polygon" or "bitmask".
        masks_key, format_key: what the config calls them, for messages.
        objects: False where only the images are used, and stored by their ids.
    """

    training: bool
    masks: bool
    mask_format: str = "polygon"
    masks_key: str = "MODEL.MASK_ON"
    format_key: str = "INPUT.MASK_FORMAT"
    objects: bool = True


def shown(value: Any) -> str:
    """A value of the file for a message, as JSON spells it, cut."""
    if value is None:
        return "null"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def raw_of(column: Column) -> Callable[[int], str]:
    """What gives a row's value for a message."""
    return lambda row: shown(column.raw(row))


def _rows_of(keys: Column, ids: Column) -> NDArray[np.int64]:
    """(keys.rows,) the row in `ids` of each key, the first of equal ones; -1: none."""
    order = np.argsort(ids.values, kind="stable")
    ordered = ids.values[order]
    if len(order) == 0:
        return np.full(keys.rows, -1, np.int64)
    places = np.searchsorted(ordered, keys.values).clip(max=len(ordered) - 1)
    rows = np.where(ordered[places] == keys.values, order[places], -1)
    rows[keys.values < 0] = -1
    if keys.odd:
        known = {_hashable(ids.raw(row)): row for row in reversed(range(ids.rows))}
        known.pop(MISSING, None)
        for row, value in keys.odd.items():
            rows[row] = known.get(_hashable(value), -1)
    return rows


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, _MISSING_TYPE)) else repr(value)


_MISSING_TYPE = type(MISSING)
