"""Scenes as LVIS v1 JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from .captions import caption_of
from .glyphs import PictogramCategory
from .scenes import Scene

_TRACE_SCALE = 2  # contours are traced at twice the size: see mask_to_polygons
_TOLERANCE = 0.3  # px by which a polygon may leave its contour; a third of the file's size
_DECIMALS = 2
_CAPTIONS = 20_000  # begins the seeds of their orders

NOTES = (
    "Drawn by code; numbers on it say whether a method works, not how well it does on photographs."
    " Masks are visible silhouettes: holes inside a glyph count as part of it. Rare categories"
    " ('r') are in the training pictures but have no annotation in the training file; their"
    " image_count and instance_count say what is in the training pictures, while those of common"
    " and frequent categories say what is annotated (which is all there is). The validation file"
    " annotates everything and repeats the counts of training. Captions name annotated objects"
    " only. The last training pictures have no base object: rare ones alone, none at all, or one"
    " crowd (iscrowd 1, its polygons around all members, its category not exhaustively annotated)."
    " The part of speech 'p' in synset means pictogram: none is a WordNet synset."
)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The polygons of a non-empty mask, bool (H, W): a list of [x0, y0, x1, y1, ...].

    Contours run through pixel centres, so a polygon of the plain mask would lose half a pixel on
    every side. Traced at twice the size and moved by half a sub-pixel they run a quarter pixel
    inside the mask's edge, and rasterising them gives the mask back but for the staircases that
    _TOLERANCE smooths. COCO polygons know no holes:
    a part with a hole is cut in two through the hole. RLE is no way out here, since Detectron2's
    LVIS loader takes polygons only.
    """
    left, top, width, height = (int(value) for value in mask_to_box(mask))
    grown = mask[top : top + height, left : left + width].astype(np.uint8)
    grown = grown.repeat(_TRACE_SCALE, axis=0).repeat(_TRACE_SCALE, axis=1)
    polygons = []
    for contour in _solid_contours(grown, (left * _TRACE_SCALE, top * _TRACE_SCALE)):
        smooth = cv2.approxPolyDP(contour, _TOLERANCE * _TRACE_SCALE, closed=True)[:, 0]
        contour = smooth if len(smooth) >= 3 else contour
        points = (contour.astype(np.float64) + 0.5) / _TRACE_SCALE
        polygons.append([round(value, _DECIMALS) for value in points.ravel().tolist()])
    return polygons


def _solid_contours(mask: np.ndarray, offset: tuple[int, int]) -> list[np.ndarray]:
    """Outer contours, (N, 2) of (x, y), of a mask cut until no part has a hole."""
    contours, hierarchy = cv2.findContours(
        mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset
    )
    if hierarchy is None:
        return []
    holes = [
        contour for contour, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0
    ]
    if not holes:
        return [contour[:, 0] for contour in contours]
    # Cut on a pixel border of the plain mask, through the middle of the first hole.
    left, width = holes[0][:, 0, 0].min() - offset[0], np.ptp(holes[0][:, 0, 0])
    column = int(left + width / 2) // _TRACE_SCALE * _TRACE_SCALE
    right_offset = (offset[0] + column, offset[1])
    return [
        *_solid_contours(np.ascontiguousarray(mask[:, :column]), offset),
        *_solid_contours(np.ascontiguousarray(mask[:, column:]), right_offset),
    ]


def mask_to_box(mask: np.ndarray) -> list[float]:
    """The tight box of a non-empty mask, bool (H, W): [x, y, width, height], px."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return [float(columns[0]), float(rows[0]), float(width), float(height)]


def describe_scene(
    rng: np.random.Generator, scene: Scene, num_categories: int, negative_share: float
) -> dict[str, Any]:
    """What the JSON needs of a scene, without the ids that only the whole split can give.

    Args:
        rng: chooses the negatives.
        scene: with the visible mask of every object.
        num_categories: C.
        negative_share: this part of the categories is listed as negative (as far as so many are
            absent); 1 lists every absent one.

    Returns:
        {"objects": [{category, colour, segmentation, bbox, area, iscrowd}], "negatives":
        [category]}, categories 0-based; plain Python values.
    """
    objects = [
        {
            "category": item.category,
            "colour": item.colour,
            "segmentation": mask_to_polygons(item.mask),
            "bbox": mask_to_box(item.mask),
            "area": float(item.mask.sum()),
            "iscrowd": int(item.is_crowd),
        }
        for item in scene.objects
    ]
    present = {item.category for item in scene.objects}
    absent = np.array([index for index in range(num_categories) if index not in present], int)
    count = min(len(absent), round(negative_share * num_categories))
    negatives = sorted(rng.choice(absent, count, replace=False).tolist())
    return {"objects": objects, "negatives": negatives}


def lvis_categories(
    categories: Sequence[PictogramCategory],
    frequencies: Sequence[str],
    train_records: Iterable[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The "categories" of both files; counts are taken from the training pictures."""
    images = np.zeros(len(categories), np.int64)
    instances = np.zeros(len(categories), np.int64)
    for record in train_records:
        found = [item["category"] for item in record["objects"]]
        instances += np.bincount(found, minlength=len(categories))
        images[sorted(set(found))] += 1
    return [
        {
            "id": index + 1,
            "name": category.name,
            "synset": category.synset,
            "synonyms": [category.name],
            "def": category.definition,
            "frequency": frequencies[index],
            "image_count": int(images[index]),
            "instance_count": int(instances[index]),
            "glyph": category.glyph.name,
            "colour": category.colour,
        }
        for index, category in enumerate(categories)
    ]


class LVISBuilder:
    """Collects the records of one split, in image order, into an LVIS v1 dictionary.

    Args:
        name: folder of the data set, first part of coco_url.
        split: "train" or "val", the folder of the pictures.
        categories: as in the JSON.
        hide_rare: leave the rare categories' objects without annotation.
        side: of the pictures, px.
    """

    def __init__(
        self,
        name: str,
        split: str,
        categories: list[dict[str, Any]],
        *,
        hide_rare: bool,
        side: int,
    ) -> None:
        self._name, self._split, self._side = name, split, side
        self._categories = categories
        self._hidden = {
            category["id"] for category in categories if hide_rare and category["frequency"] == "r"
        }
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._captions: list[dict[str, Any]] = []

    def add(self, image_id: int, file_name: str, record: dict[str, Any]) -> None:
        """Add one image and what `describe_scene` said of it."""
        present = {item["category"] + 1 for item in record["objects"]}
        crowds = {item["category"] + 1 for item in record["objects"] if item["iscrowd"]}
        self._images.append(
            {
                "id": image_id,
                "file_name": f"{self._split}/{file_name}",
                "coco_url": f"{self._name}/{self._split}/{file_name}",
                "height": self._side,
                "width": self._side,
                "license": 1,
                "neg_category_ids": [index + 1 for index in record["negatives"]],
                "not_exhaustive_category_ids": sorted(present & self._hidden | crowds),
            }
        )
        shown = [item for item in record["objects"] if item["category"] + 1 not in self._hidden]
        first = len(self._annotations) + 1
        for number, item in enumerate(shown):
            self._annotations.append(self._annotation(first + number, image_id, item))
        self._captions.append(self._caption(image_id, first, shown))

    def _annotation(self, number: int, image_id: int, item: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": image_id,
            "category_id": item["category"] + 1,
            "bbox": item["bbox"],
            "area": item["area"],
            "segmentation": item["segmentation"],
            "iscrowd": item["iscrowd"],
            "colour": item["colour"],
        }

    def _caption(
        self, image_id: int, first_annotation: int, shown: list[dict[str, Any]]
    ) -> dict[str, Any]:
        # Objects are drawn the largest first: in that order, a phrase's place would tell its size.
        order = np.random.default_rng([_CAPTIONS, image_id]).permutation(len(shown)).tolist()
        items = [shown[k] for k in order]
        named = [
            (item["category"], item["colour"], self._categories[item["category"]]["glyph"])
            for item in items
        ]
        crowds = [position for position, item in enumerate(items) if item["iscrowd"]]
        caption, phrases = caption_of(named, crowds)
        return {
            "id": len(self._captions) + 1,
            "image_id": image_id,
            "caption": caption,
            "phrases": [
                {
                    "span": list(phrase.span),
                    "category_id": phrase.category + 1,
                    "annotation_ids": sorted(first_annotation + order[k] for k in phrase.objects),
                }
                for phrase in phrases
            ],
        }

    def build(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The whole file; `arguments` of the generation go into "info"."""
        return {
            "info": {
                "description": f"Pictograms ({self._name}), {self._split}",
                "version": "1",
                "year": 2026,
                "contributor": "ovd_d2",
                "notes": NOTES,
                "rare_annotated": not self._hidden,
                "arguments": arguments,
            },
            "licenses": [
                {
                    "id": 1,
                    "name": "Apache-2.0; glyph shapes from DejaVu Sans (Bitstream Vera licence)",
                    "url": "https://dejavu-fonts.github.io/License.html",
                }
            ],
            "categories": self._categories,
            "images": self._images,
            "annotations": self._annotations,
            "captions": self._captions,
        }
