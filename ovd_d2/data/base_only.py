"""Base-only training labels: novel categories are neither positives nor negatives by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)


def drop_annotations(
    dataset_dicts: list[dict[str, Any]], novel: Sequence[bool]
) -> list[dict[str, Any]]:
    """Removes the annotations of novel categories; the images stay.

    Args:
        dataset_dicts: Detectron2's dicts with contiguous `category_id`; not changed. One without
            "annotations" gets an empty list.
        novel: one flag per category, in the order of contiguous ids.
    """
    kept, dropped = [], 0
    for record in dataset_dicts:
        present = record.get("annotations", ())
        annotations = [a for a in present if not novel[a["category_id"]]]
        dropped += len(present) - len(annotations)
        kept.append({**record, "annotations": annotations})
    if dropped:
        logger.info(
            "Dropped %d annotations of novel categories: they are never trained on.", dropped
        )
    return kept
