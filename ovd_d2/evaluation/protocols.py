"""Which detections count: the limits that a benchmark sets before anything is matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Rules: TypeAlias = Literal["lvis", "coco"]
Detection: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """A benchmark's rules of matching and its limits on detections, None for no limit.

    Attributes:
        name: as printed.
        rules: "lvis": federated annotation (a detection counts where its category was looked for,
            see arXiv 1908.03195); "coco": everything is annotated, crowds are regions.
        per_image: best-scored detections of an image, across categories.
        per_category: best-scored detections of a category, over the whole data set.
        per_image_and_category: best-scored detections of each category in each image.
    """

    name: str
    rules: Rules
    per_image: int | None = None
    per_category: int | None = None
    per_image_and_category: int | None = None

    @property
    def title(self) -> str:
        """One line: the name and every limit."""
        limits = [
            f"best {limit:,} {scope}"
            for limit, scope in (
                (self.per_image, "detections per image"),
                (self.per_category, "detections per category"),
                (self.per_image_and_category, "detections per image and category"),
            )
            if limit is not None
        ]
        return f"{self.name} ({', '.join(limits) or 'all detections'})"


# LVIS's own (arXiv 1908.03195, lvisdataset.org).
FEDERATED = Protocol("LVIS federated", "lvis", per_image=300)
# "LVIS fixed AP" (arXiv 2102.01066): categories no longer compete for places in an image.
FIXED = Protocol("LVIS fixed AP", "lvis", per_category=10_000)
# cocodataset.org; also the generalised open-vocabulary COCO.
COCO = Protocol("COCO", "coco", per_image_and_category=100)

# A model's own limit that makes fixed AP feasible; docs/evaluation.md has the costs.
FIXED_DETECTIONS_PER_IMAGE = 1_000

LVIS_PROTOCOLS = {"federated": FEDERATED, "fixed": FIXED}


def lvis_protocol(name: str) -> Protocol:
    """The protocol of that name ("federated" or "fixed") for LVIS-format data sets.

    Raises:
        ValueError: there is none.
    """
    if name not in LVIS_PROTOCOLS:
        raise ValueError(f"TEST.OVD.PROTOCOL is '{name}', expected one of {sorted(LVIS_PROTOCOLS)}")
    return LVIS_PROTOCOLS[name]


def fixed_ap_problems(protocol: str, detections_per_image: int) -> list[str]:
    """Why fixed AP cannot be taken with these settings; one message, or none.

    Args:
        protocol: `TEST.OVD.PROTOCOL`.
        detections_per_image: `TEST.DETECTIONS_PER_IMAGE`; negative: no limit.
    """
    if protocol != "fixed" or detections_per_image >= 0:
        return []
    return [
        f"TEST.DETECTIONS_PER_IMAGE is {detections_per_image} (no limit) with TEST.OVD.PROTOCOL "
        "fixed: at a score threshold of 0 an image of LVIS has up to 361,000 detections, 300 "
        "regions times 1,203 names, each with a mask of the image's size; set it to "
        f"{FIXED_DETECTIONS_PER_IMAGE} (docs/evaluation.md has what each number costs)"
    ]


def select(detections: Sequence[Detection], protocol: Protocol) -> list[Detection]:
    """The detections that count, in their old order.

    Of equal scores the earlier detection stays, as in the `lvis` package and pycocotools.

    Args:
        detections: with `image_id`, `category_id` and a finite `score` each.
        protocol: its limits are applied one after the other: image, category, both.
    """
    kept = list(detections)
    for keys, limit in (
        (("image_id",), protocol.per_image),
        (("category_id",), protocol.per_category),
        (("image_id", "category_id"), protocol.per_image_and_category),
    ):
        if limit is not None and kept:
            kept = [kept[k] for k in _best_of_each_group(kept, keys, limit)]
    return kept


def _best_of_each_group(
    detections: Sequence[Detection], keys: tuple[str, ...], limit: int
) -> np.ndarray:
    """Ascending indices of the `limit` best-scored detections of each group."""
    scores = np.array([one["score"] for one in detections], dtype=np.float64)
    columns = [np.array([one[key] for one in detections]) for key in keys]
    order = np.lexsort((-scores, *columns))  # by group, then score; stable
    starts_group = np.ones(len(order), dtype=bool)
    starts_group[1:] = np.any([one[order][1:] != one[order][:-1] for one in columns], axis=0)
    starts = np.flatnonzero(starts_group)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[rank < limit])
