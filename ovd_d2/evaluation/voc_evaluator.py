"""PASCAL VOC by COCO's measure, without the objects that VOC marks as difficult."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ovd_d2.evaluation.coco_evaluator import OpenVocabularyCOCOEvaluator
from ovd_d2.evaluation.overlap import BoxRecord, box_iou
from ovd_d2.evaluation.protocols import Detection

FOUND_IOU = 0.5  # VOC's own


class OpenVocabularyVOCEvaluator(OpenVocabularyCOCOEvaluator):
    """The COCO evaluator, to which difficult objects are neither found nor missed.

    As in VOC's development kit, a detection whose nearest object of its category is difficult
    (IoU > 0.5) counts neither for nor against the model. What differs from VOC is the mean over
    recall: 101 points (COCO), not 11 (2007) or the area (2010 on).
    """

    streams = False

    def __init__(self, dataset_name: str, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            dataset_name: registered by Detectron2's `register_pascal_voc`.
            args, kwargs: of :class:`OpenVocabularyCOCOEvaluator`.

        Raises:
            ValueError: an XML file and what Detectron2 has read from it differ.
        """
        super().__init__(dataset_name, *args, **kwargs)
        self._all_objects = self._dataset["annotations"]
        folder = Path(
            PathManager.get_local_path(MetadataCatalog.get(dataset_name).dirname), "Annotations"
        )
        self._difficult = difficult_objects(self._all_objects, folder)
        easy = [one for one in self._all_objects if one["id"] not in self._difficult]
        self._dataset = {**self._dataset, "annotations": easy}

    def _countable(self, detections: list[dict[str, Any]]) -> Sequence[Detection]:
        return without_difficult(detections, self._all_objects, self._difficult)


def difficult_objects(objects: Sequence[Mapping[str, Any]], folder: Path) -> set[int]:
    """Ids of the annotations that VOC's files mark as difficult; Detectron2 does not read it.

    Args:
        objects: what Detectron2 has made of the files, the objects of an image in their order.
        folder: VOC's "Annotations", one `<image id>.xml` per image.
    """
    ids_of: dict[str, list[int]] = defaultdict(list)
    for one in objects:
        ids_of[one["image_id"]].append(one["id"])
    found: set[int] = set()
    for image_id, ids in ids_of.items():
        path = folder / f"{image_id}.xml"
        marks = [one.findtext("difficult", "0") for one in ElementTree.parse(path).iter("object")]
        if len(marks) != len(ids):
            raise ValueError(
                f"{path} has {len(marks)} objects, but Detectron2 read {len(ids)} from it: was it "
                "changed meanwhile?"
            )
        found.update(number for number, mark in zip(ids, marks, strict=True) if int(mark))
    return found


def without_difficult(
    detections: Sequence[Detection], objects: Sequence[BoxRecord], difficult: Collection[int]
) -> list[Detection]:
    """The detections that count, in their old order.

    Args:
        detections: with `image_id`, `category_id` and `bbox` (XYWH).
        objects: all annotations, with `id` besides.
        difficult: ids of those to be ignored.
    """
    near: dict[tuple[Any, int], list[BoxRecord]] = defaultdict(list)
    for one in objects:
        near[one["image_id"], one["category_id"]].append(one)
    return [
        one
        for one in detections
        if not _is_ignored(one, near[one["image_id"], one["category_id"]], difficult)
    ]


def _is_ignored(
    detection: Detection, objects: Sequence[BoxRecord], difficult: Collection[int]
) -> bool:
    if not any(one["id"] in difficult for one in objects):
        return False
    overlaps = box_iou([detection], objects)[0]
    nearest = int(overlaps.argmax())
    return bool(overlaps[nearest] > FOUND_IOU) and objects[nearest]["id"] in difficult
