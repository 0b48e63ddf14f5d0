"""The worst mistakes about novel categories: false positives and missed objects, told by box."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from ovd_d2.evaluation.ground_truth import GroundTruth
from ovd_d2.evaluation.overlap import BoxRecord, best_overlap, box_iou, group_by_image
from ovd_d2.evaluation.protocols import Detection

FOUND_IOU = 0.5  # as AP50
TOUCHING_IOU = 0.1
SHOWN_PER_CATEGORY = 3  # so that one bad category does not fill a sheet

Key = tuple[int, int]  # image id, category id


@dataclass(frozen=True)
class Mistake:
    """One false positive or one missed object of a novel category.

    Attributes:
        image_id: where.
        detection: the false positive; of a missed object the detection that overlaps it best, or
            None.
        truth: the missed object; of a false positive the object that is really there, or None.
        iou: of the two boxes.
        reason: in words.
    """

    image_id: int
    detection: BoxRecord | None
    truth: BoxRecord | None
    iou: float
    reason: str


@dataclass(frozen=True)
class Matching:
    """Who found whom, at box IoU 0.5, surest detection first, as AP50 counts it.

    Attributes:
        false_positives: detections of novel categories that AP50 counts as wrong.
        missed: novel objects that no detection of their category found.
    """

    false_positives: list[Detection]
    missed: list[BoxRecord]


def match_novel(
    ground_truth: GroundTruth, detections: Sequence[Detection], novel_ids: AbstractSet[int]
) -> Matching:
    """Matches the detections and objects of the novel categories.

    Under LVIS's rules a detection counts only where its category was looked for, and an unmatched
    one only where all of its objects were annotated; under COCO's, crowds swallow detections.

    Args:
        ground_truth: the annotations and their rules.
        detections: those that count by the protocol.
        novel_ids: category ids of the data set.
    """
    objects = _by_key(one for one in ground_truth.annotations if one["category_id"] in novel_ids)
    found = _by_key(one for one in detections if one["category_id"] in novel_ids)
    counts = _who_counts(ground_truth, objects)
    wrong: list[Detection] = []
    missed: list[BoxRecord] = []
    for key in sorted(objects.keys() | found.keys()):
        unmatched, left_over = _match(found.get(key, []), objects.get(key, []))
        missed += left_over
        if counts(key):
            wrong += unmatched
    return Matching(wrong, missed)


def worst_false_positives(
    matching: Matching, ground_truth: GroundTruth, count: int
) -> list[Mistake]:
    """The highest-scored false positives, each with what was really there.

    At most `SHOWN_PER_CATEGORY` of one category, unless there is nothing else.
    """
    ranked = sorted(matching.false_positives, key=lambda one: -one["score"])
    chosen = _spread(ranked, count)
    truths = group_by_image(ground_truth.annotations, {one["image_id"] for one in chosen})
    return [_explain_false_positive(one, truths.get(one["image_id"], [])) for one in chosen]


def worst_misses(matching: Matching, detections: Sequence[Detection], count: int) -> list[Mistake]:
    """Missed objects, each with the best overlapping detection: those surely called something else
    first, then those that nothing overlaps, the largest first.

    At most `SHOWN_PER_CATEGORY` of one category, unless there is nothing else.
    """
    found = group_by_image(detections, {one["image_id"] for one in matching.missed})
    mistakes = [_explain_miss(one, found.get(one["image_id"], [])) for one in matching.missed]

    def rank(mistake: Mistake) -> tuple[float, float]:
        called = mistake.detection if mistake.iou >= FOUND_IOU else None
        size = mistake.truth["bbox"][2] * mistake.truth["bbox"][3] if mistake.truth else 0.0
        return -called["score"] if called else 0.0, -size

    ranked = sorted(mistakes, key=rank)
    by_truth = {id(one.truth): one for one in ranked}
    return [by_truth[id(one)] for one in _spread([one.truth for one in ranked if one.truth], count)]


def _by_key(records: Iterable[BoxRecord]) -> dict[Key, list[BoxRecord]]:
    grouped: dict[Key, list[BoxRecord]] = defaultdict(list)
    for one in records:
        grouped[one["image_id"], one["category_id"]].append(one)
    return grouped


def _who_counts(
    ground_truth: GroundTruth, objects: Mapping[Key, list[BoxRecord]]
) -> Callable[[Key], bool]:
    """Whether an unmatched detection of (image, category) is a false positive."""
    if ground_truth.rules == "coco":
        return lambda key: True
    absent = {(one["id"], k) for one in ground_truth.images for k in one["neg_category_ids"]}
    partial = {
        (one["id"], k) for one in ground_truth.images for k in one["not_exhaustive_category_ids"]
    }
    return lambda key: (key in absent or key in objects) and key not in partial


def _match(
    detections: Sequence[Detection], objects: Sequence[BoxRecord]
) -> tuple[list[Detection], list[BoxRecord]]:
    """Detections that found nothing and objects that were not found, crowds and ignored aside."""
    ranked = sorted(detections, key=lambda one: -one["score"])
    overlaps = box_iou(ranked, objects, crowds=True)  # (N, M)
    aside = np.array([bool(o.get("iscrowd") or o.get("ignore")) for o in objects], dtype=bool)
    free = ~aside
    unmatched = []
    for k, detection in enumerate(ranked):
        candidates = np.where(free, overlaps[k], 0.0)
        if candidates.size and candidates.max() >= FOUND_IOU:
            free[candidates.argmax()] = False
        elif not (overlaps[k][aside] >= FOUND_IOU).any():
            unmatched.append(detection)
    return unmatched, [objects[k] for k in np.flatnonzero(free).tolist()]


def _spread(records: Sequence[BoxRecord], count: int) -> list[BoxRecord]:
    """The first `count`; more than a few of one category only where the others do not suffice."""
    seen: Counter[int] = Counter()
    first: list[BoxRecord] = []
    rest: list[BoxRecord] = []
    for one in records:
        seen[one["category_id"]] += 1
        (first if seen[one["category_id"]] <= SHOWN_PER_CATEGORY else rest).append(one)
    return (first + rest)[:count]


def _explain_false_positive(detection: Detection, truths: Sequence[BoxRecord]) -> Mistake:
    own = [one for one in truths if one["category_id"] == detection["category_id"]]
    others = [one for one in truths if one["category_id"] != detection["category_id"]]
    own_best, other_best = _nearest(detection, own), _nearest(detection, others)
    for (truth, iou), least, reason in (
        (own_best, FOUND_IOU, "second box on one object"),
        (other_best, FOUND_IOU, "wrong name"),
        (own_best, TOUCHING_IOU, "box is off"),
        (other_best, TOUCHING_IOU, "wrong name, box is off"),
    ):
        if truth is not None and iou >= least:
            return Mistake(detection["image_id"], detection, truth, iou, reason)
    return Mistake(detection["image_id"], detection, None, 0.0, "nothing annotated here")


def _explain_miss(truth: BoxRecord, detections: Sequence[Detection]) -> Mistake:
    best = best_overlap(truth, detections)
    if best is None or best[1] < TOUCHING_IOU:
        return Mistake(truth["image_id"], None, truth, 0.0, "nothing detected here")
    detection, iou = best
    same = detection["category_id"] == truth["category_id"]
    if iou >= FOUND_IOU:  # of the same category: it found another object
        reason = "its detection counts for another object" if same else "called something else"
    else:
        reason = "box is off" if same else "called something else, box is off"
    return Mistake(truth["image_id"], detection, truth, iou, reason)


def _nearest(detection: Detection, truths: Sequence[BoxRecord]) -> tuple[BoxRecord | None, float]:
    if not truths:
        return None, 0.0
    overlaps = box_iou([detection], truths)[0]
    best = int(overlaps.argmax())
    return truths[best], float(overlaps[best])
