"""A detector is asked for names that are in images and that are not: what its scores are worth."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from detectron2.data import DatasetCatalog
from torch import Tensor
from tqdm import tqdm

from ovd_d2.data.categories import get_categories
from ovd_d2.prediction import Prediction
from ovd_d2.predictor import THRESHOLD, OpenVocabularyPredictor
from ovd_d2.presence import Presence, calibration_error, fit_presence, least_presence
from ovd_d2.vocabulary import Categories, Vocabulary

ABSENT_NAMES = 10  # of a query whose false boxes are counted
# Per absent name, at most, on training images: one in twenty images of such queries. The aim is one
# in ten on images that the detector has not seen, where more is taken for what it is not.
FALSE_BOXES = 0.005
Row: TypeAlias = tuple[float, float, int, bool, bool]  # a pair of :class:`Answers`


class Scene(NamedTuple):
    """What is known of an image.

    Attributes:
        file: of the image.
        present, absent: categories by their places; of the others nothing is known.
    """

    file: str
    present: tuple[int, ...]
    absent: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """P pairs of an image and a name, and what a detector says to them.

    Attributes:
        best: (P,) float, the best score of the name in the image.
        crops: (P,) float, what the teacher says of the crop of the best box; 0 where it was not
            asked.
        boxes: (P,) int64, how many boxes reach the threshold.
        present: (P,) bool, whether the image shows one.
        novel: (P,) bool, whether the name is novel.
    """

    best: Tensor
    crops: Tensor
    boxes: Tensor
    present: Tensor
    novel: Tensor

    def where(self, kept: Tensor) -> Answers:
        """The pairs of a (P,) bool."""
        return Answers(*(getattr(self, one.name)[kept] for one in fields(self)))

    def presences(self, presence: Presence) -> Tensor:
        """(P,) float64, by a calibration."""
        return presence.of(self.best, self.crops)


def scenes(dataset: str, count: int, seed: int = 0) -> list[Scene]:
    """What is known of `count` images of a data set, drawn by `seed`.

    Where annotations are federated (LVIS), only the names that an image is known to lack are
    absent; otherwise all that it has no object of.
    """
    categories = get_categories(dataset)
    place = {one: k for k, one in enumerate(categories.ids)}
    records = list(DatasetCatalog.get(dataset))
    drawn = random.Random(seed).sample(records, min(count, len(records)))
    return [_scene(one, place) for one in drawn]


def _scene(record: Mapping[str, Any], place: Mapping[int, int]) -> Scene:
    present = {int(one["category_id"]) for one in record["annotations"]}
    lacking = [place[one] for one in record.get("neg_category_ids", place)]
    absent = tuple(k for k in lacking if k not in present)
    return Scene(record["file_name"], tuple(sorted(present)), absent)


def vocabulary_for(predictor: OpenVocabularyPredictor, categories: Categories) -> Vocabulary:
    """The names of a data set as the detector takes them: its own where it knows them all."""
    known = predictor.vocabulary
    if known is not None and set(categories.names) <= set(known.names):
        return known.select(categories.names)
    return predictor.vocabulary_of(categories.names)


def answers(
    predictor: OpenVocabularyPredictor,
    vocabulary: Vocabulary,
    shown: Sequence[Scene],
    threshold: float = THRESHOLD,
) -> Answers:
    """What the detector says to all names in each image.

    Args:
        predictor: the detector.
        vocabulary: C names, in the order of the scenes' categories.
        shown: images.
        threshold: of the boxes that are counted.
    """
    rows: list[Row] = []
    for one in tqdm(shown, "all names", unit="image", disable=len(shown) < 2):
        found = predictor(one.file, vocabulary, threshold)
        rows += _rows(found, [*one.present, *one.absent], len(one.present), vocabulary.novel)
    return _as_answers(rows)


def absent_answers(
    predictor: OpenVocabularyPredictor,
    vocabulary: Vocabulary,
    shown: Sequence[Scene],
    threshold: float = THRESHOLD,
    *,
    names: int = ABSENT_NAMES,
    seed: int = 0,
) -> Answers:
    """What it says where an image is asked for nothing but names that it lacks.

    Args:
        predictor, vocabulary, shown, threshold: as :func:`answers`.
        names: per query, drawn by `seed`; images that are known to lack fewer are left out.
        seed: a whole number.
    """
    draw = random.Random(seed)
    rows: list[Row] = []
    asked = [one for one in shown if len(one.absent) >= names]
    for one in tqdm(asked, f"{names} absent names", unit="image", disable=len(asked) < 2):
        places = draw.sample(one.absent, names)
        found = predictor(
            one.file, vocabulary.select([vocabulary.names[k] for k in places]), threshold
        )
        rows += _rows(found, range(names), 0, vocabulary.novel[places])
    return _as_answers(rows)


def _rows(found: Prediction, places: Sequence[int], present: int, novel: Tensor) -> Iterator[Row]:
    """Of names by their places; the first ones are present."""
    counts = torch.bincount(found.instances.pred_classes, minlength=len(found.categories))
    crops = found.crop_scores or (0.0,) * len(found.categories)
    for row, k in enumerate(places):
        yield found.best_scores[k], crops[k], int(counts[k]), row < present, bool(novel[k])


def _as_answers(rows: Sequence[Row]) -> Answers:
    best, crops, boxes, present, novel = zip(*rows, strict=True) if rows else ((),) * 5
    return Answers(
        torch.tensor(best, dtype=torch.float64),
        torch.tensor(crops, dtype=torch.float64),
        torch.tensor(boxes, dtype=torch.int64),
        torch.tensor(present, dtype=torch.bool),
        torch.tensor(novel, dtype=torch.bool),
    )


def calibrated(seen: Answers, *, crops: bool = False) -> Presence:
    """Fitted to what a detector says on images that it was trained with.

    Novel names are left out, which have no boxes there. The least presence is the smallest from
    which on absent names give at most `FALSE_BOXES` boxes each.

    Args:
        seen: of :func:`answers`.
        crops: fit to what the teacher says, too.

    Raises:
        SetupError: as :func:`ovd_d2.presence.fit_presence`.
    """
    base = seen.where(~seen.novel)
    fitted = fit_presence(base.best, base.present, base.crops if crops else None)
    absent = base.where(~base.present)
    least = least_presence(absent.presences(fitted), absent.boxes, FALSE_BOXES)
    return replace(fitted, least=least)


def report(
    presence: Presence, seen: Answers, lacking: Answers, threshold: float = THRESHOLD
) -> list[dict[str, Any]]:
    """A row for all names, for base and for novel ones.

    Args:
        presence: the calibration.
        seen: of :func:`answers`, of images that it was not fitted to.
        lacking: of :func:`absent_answers`, of such images.
        threshold: of boxes.

    Returns:
        Per row `names`, `present` and `absent` (pairs), `calibration_error`, `recall` and
        `recall_calibrated` (of present names, found at all), `false_boxes` and
        `false_boxes_calibrated` (of ten images, each asked for ten absent names). Rows without
        present or without absent names are left out.
    """
    groups = {"all": torch.ones_like(seen.novel), "base": ~seen.novel, "novel": seen.novel}
    asked = {"all": torch.ones_like(lacking.novel), "base": ~lacking.novel, "novel": lacking.novel}
    rows = []
    for name, kept in groups.items():
        some, none = seen.where(kept), lacking.where(asked[name])
        if some.present.any() and not some.present.all() and len(none.best):
            rows.append({"names": name, **_row(presence, some, none, threshold)})
    return rows


def _row(presence: Presence, seen: Answers, lacking: Answers, threshold: float) -> dict[str, Any]:
    said = seen.presences(presence)
    found = (seen.best >= threshold)[seen.present]
    kept = (said >= presence.least)[seen.present]
    believed = lacking.presences(presence) >= presence.least
    queries = 10 * ABSENT_NAMES / len(lacking.best)
    return {
        "present": int(seen.present.sum()),
        "absent": int((~seen.present).sum()),
        "calibration_error": round(calibration_error(said, seen.present), 4),
        "recall": round(float(found.double().mean()), 4),
        "recall_calibrated": round(float((found & kept).double().mean()), 4),
        "false_boxes": round(queries * int(lacking.boxes.sum()), 3),
        "false_boxes_calibrated": round(queries * int(lacking.boxes[believed].sum()), 3),
    }
