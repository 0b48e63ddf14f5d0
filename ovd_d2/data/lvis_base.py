"""LVIS's open-vocabulary training file: the annotations of rare categories removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ovd_d2.data.annotation_files import keep_annotations, read_annotations, write_annotations

LVIS_V1_CATEGORIES = 1203
LVIS_V1_BASE, LVIS_V1_NOVEL = 866, 337


@dataclass(frozen=True)
class LVISBaseCounts:
    """What was kept and what was removed."""

    base: int
    novel: int
    annotations_kept: int
    annotations_removed: int


def write_lvis_base(source: Path, target: Path, *, overwrite: bool = False) -> LVISBaseCounts:
    """Writes `source` without the annotations of its rare categories; images and names stay.

    Args:
        source: LVIS format, e.g. the official `lvis_v1_train.json`.
        target: e.g. `lvis_v1_train_norare.json`.
        overwrite: replace a target that exists.

    Raises:
        FileNotFoundError, FileExistsError: of `source` and `target`.
        ValueError: categories without frequency, or LVIS v1's 1,203 categories in another split
            than 866 base and 337 novel.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces it")
    dataset = read_annotations(source)
    categories = dataset["categories"]
    without = [one.get("name") for one in categories if one.get("frequency") not in ("r", "c", "f")]
    if without:
        raise ValueError(
            f"{source}: not LVIS format: {len(without)} of {len(categories)} categories have no "
            f"frequency r / c / f, first '{without[0]}'"
        )
    base = [one["id"] for one in categories if one["frequency"] != "r"]
    novel = len(categories) - len(base)
    if len(categories) == LVIS_V1_CATEGORIES and (len(base), novel) != (
        LVIS_V1_BASE,
        LVIS_V1_NOVEL,
    ):
        raise ValueError(
            f"{source}: LVIS v1 has {LVIS_V1_BASE} base and {LVIS_V1_NOVEL} rare categories, found "
            f"{len(base)} and {novel}: this is not the official lvis_v1_train.json"
        )
    kept = keep_annotations(dataset, base)
    write_annotations(target, kept, overwrite=overwrite)
    removed = len(dataset["annotations"]) - len(kept["annotations"])
    return LVISBaseCounts(len(base), novel, len(kept["annotations"]), removed)
