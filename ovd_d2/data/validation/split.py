"""Checks of the split: is there anything to train on, and is anything held out?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.categories import CategoryTable
from ovd_d2.data.findings import Findings
from ovd_d2.data.validation.table import AnnotationTable, DatasetUse, Source

SHOWN = 3  # examples in a message
_KEY = "annotations[].category_id"


def check_split(
    table: AnnotationTable,
    categories: CategoryTable,
    source: Source,
    use: DatasetUse,
    found: Findings,
) -> None:
    """A training set needs annotated base categories; an odd split is noted."""
    if not use.training:
        if table.num_annotations == 0:
            fix = "an evaluation without objects has no result: name another data set"
            found.one("annotations", "file has no annotations", expected="some", found="0", fix=fix)
        return
    novel = np.array(categories.is_novel, np.bool_)
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
