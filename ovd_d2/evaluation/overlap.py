"""Which detection lies on which object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pycocotools.mask as mask_utils

BoxRecord: TypeAlias = Mapping[str, Any]


def box_iou(
    boxes: Sequence[BoxRecord], others: Sequence[BoxRecord], *, crowds: bool = False
) -> np.ndarray:
    """(N, M) IoU of N with M records by their `bbox` (XYWH).

    With `crowds`, a record among `others` that has `iscrowd` set is a region: the share of the box
    that lies in it.
    """
    if not boxes or not others:
        return np.zeros((len(boxes), len(others)))
    flags = [int(bool(crowds and one.get("iscrowd", 0))) for one in others]
    return np.asarray(mask_utils.iou(_xywh(boxes), _xywh(others), flags))


def best_overlap(
    record: BoxRecord, detections: Sequence[BoxRecord]
) -> tuple[BoxRecord, float] | None:
    """The detection that overlaps `record` most and its IoU; None where none overlaps it.

    Detections whose IoU agrees to two decimals (one proposal scored for many names) are told apart
    by score.
    """
    overlaps = box_iou(detections, [record])[:, 0].tolist()  # N
    if not any(overlaps):
        return None
    best = max(
        range(len(detections)), key=lambda k: (round(overlaps[k], 2), detections[k]["score"])
    )
    return detections[best], overlaps[best]


def group_by_image(
    records: Iterable[BoxRecord], images: Collection[int] | None = None
) -> dict[int, list[BoxRecord]]:
    """Image id -> its records, in their order; of the given images only, if any are given."""
    grouped: dict[int, list[BoxRecord]] = defaultdict(list)
    for one in records:
        if images is None or one["image_id"] in images:
            grouped[one["image_id"]].append(one)
    return grouped


def _xywh(records: Sequence[BoxRecord]) -> np.ndarray:
    return np.array([one["bbox"] for one in records], dtype=np.float64).reshape(-1, 4)
