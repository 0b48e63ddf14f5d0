"""Checks of the split: is there anything to train on, and is anything held out?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source
from ovd_d2.vocabulary import Categories

SHOWN = 3  # examples in a message
_KEY = "annotations[].category_id"


def check_split(
    table: AnnotationTable,
    categories: Categories,
    source: Source,
    use: DatasetUse,
    found: Findings,
) -> None:
    """A training set needs annotated base categories; an odd split is noted."""
    novel = np.array(categories.novel, np.bool_)
    if not use.training:
        _check_evaluated(table, novel, source, found)
        return
    if novel.all():
        found.one(
            "categories",
            f"data set has no base category: all {len(novel)} are novel",
            expected="a base category to train on",
            found="none",
            fix="name those with boxes in training as base",
        )
        return
    objects, crowds = _counts(table, len(novel))
    if not objects[~novel].any():
        _add_nothing_to_train(int((~novel).sum()), int(crowds.sum()), found)
        return
    if source.has_split and not novel.any():
        found.notices.append(f"{found.file}: has no novel category: AP_novel will be nan")
    absent = [categories.names[k] for k in np.flatnonzero(~novel & (objects == 0))]
    if absent:
        more = " ..." if len(absent) > SHOWN else ""
        found.notices.append(
            f"{found.file}: {len(absent)} base categories have no box in training: "
            f"{', '.join(absent[:SHOWN])}{more}"
        )


def _check_evaluated(
    table: AnnotationTable, novel: NDArray[np.bool_], source: Source, found: Findings
) -> None:
    """A test set needs objects; a part of the split without any has no number."""
    has_crowds = source.kind != "lvis"  # LVIS does not look at the key
    if table.num_annotations == 0 or (has_crowds and table.crowd.all()):
        there = f"{table.num_annotations:,}" + (", all crowds" if table.num_annotations else "")
        fix = "an evaluation without objects has no result: name another data set"
        what = "file has no annotations of single objects"
        found.one("annotations", what, expected="some", found=there, fix=fix)
        return
    objects, crowds = _counts(table, len(novel))
    objects = objects if has_crowds else objects + crowds
    for word, part in (("base", ~novel), ("novel", novel)):
        if part.any() and objects.any() and not objects[part].any():
            found.notices.append(
                f"{found.file}: none of its {int(part.sum())} {word} categories has an object: "
                f"AP_{word} will be nan"
            )


def _counts(table: AnnotationTable, num: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(num,) objects and crowds of each category, in the order of the categories' ids."""
    known = table.classes >= 0
    classes, crowd = table.classes[known], table.crowd[known]
    return np.bincount(classes[~crowd], minlength=num), np.bincount(classes[crowd], minlength=num)


def _add_nothing_to_train(base: int, crowds: int, found: Findings) -> None:
    crowded = f" that is not a crowd ({crowds:,} crowds)" if crowds else ""
    found.one(
        _KEY,
        f"training set: none of its {base} base categories has an annotation{crowded}",
        expected="objects to train on",
        found=f"{crowds:,} crowds alone" if crowds else "none",
        fix="crowds are never trained on: set iscrowd 0 where they are single objects"
        if crowds
        else "annotate them, or name other categories as base",
    )
