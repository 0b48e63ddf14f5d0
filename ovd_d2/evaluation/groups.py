"""From a precision array to AP per category, and from there to means over groups of categories."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd_d2.files import atomic_write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CategoryAP:
    """AP of every category, in percent; nan for a category without ground truth.

    Attributes:
        names: C category names in contiguous class order.
        novel: (C,) bool.
        ap: (C,) float64, mean over IoU 0.50:0.95 and 101 recall points.
        ap50: (C,) float64, the same at IoU 0.50.
    """

    names: list[str]
    novel: np.ndarray
    ap: np.ndarray
    ap50: np.ndarray

    @classmethod
    def from_precision(
        cls, names: Sequence[str], novel: Sequence[bool], precision: np.ndarray
    ) -> CategoryAP:
        """Args:
        names, novel: C names and flags.
        precision: (T, R, C) over IoU thresholds (the first one is 0.50), recall points and
            categories, as LVISEval and COCOeval keep it for one area range and one limit of
            detections; -1 marks a category without ground truth.
        """
        check_novel_flags(novel, len(names))
        if precision.ndim != 3 or precision.shape[2] != len(names):
            raise ValueError(
                f"precision has shape {precision.shape}, expected (thresholds, recalls, "
                f"{len(names)} categories)"
            )
        return cls(
            list(names),
            np.asarray(novel, dtype=bool),
            _mean_over_recall(precision),
            _mean_over_recall(precision[:1]),
        )

    def group_means(self) -> dict[str, float]:
        """`AP_base`, `AP_novel`, `AP50_base`, `AP50_novel`: means over the categories that have
        ground truth; nan (with a log line) where a group has none."""
        means: dict[str, float] = {}
        for metric, values in (("AP", self.ap), ("AP50", self.ap50)):
            for group, members in (("base", ~self.novel), ("novel", self.novel)):
                means[f"{metric}_{group}"] = _mean_of_known(values[members])
        for group in ("base", "novel"):
            if math.isnan(means[f"AP_{group}"]):
                logger.info("No %s category has ground truth: AP_%s is nan.", group, group)
        return means

    def as_dict(self) -> dict[str, float | None]:
        """`{"AP-<name>": ..., "AP50-<name>": ...}`; None (JSON has no nan) without ground truth."""
        values = zip(self.names, self.ap.tolist(), self.ap50.tolist(), strict=True)
        flat: dict[str, float | None] = {}
        for name, ap, ap50 in values:
            flat[f"AP-{name}"] = None if math.isnan(ap) else ap
            flat[f"AP50-{name}"] = None if math.isnan(ap50) else ap50
        return flat


def check_novel_flags(novel: Sequence[bool], num_categories: int) -> None:
    if len(novel) != num_categories:
        raise ValueError(
            f"{len(novel)} novel flags for {num_categories} categories; pass one flag per "
            "category in contiguous class order (ovd_d2.data.categories.get_categories)"
        )


def write_per_category(tasks: Mapping[str, CategoryAP], output_folder: str | Path) -> Path:
    """Writes `per_category.json`, one `CategoryAP.as_dict` per IoU type. Returns its path."""
    path = Path(output_folder) / "per_category.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, {task: table.as_dict() for task, table in tasks.items()})
    logger.info("AP of each category: %s", path)
    return path


def read_per_category(path: str | Path) -> dict[str, dict[str, float | None]]:
    """Reads what `write_per_category` wrote."""
    return json.loads(Path(path).read_text())


def percent(fraction: float) -> float:
    """A fraction in [0, 1] as percent; the libraries' -1 for "no ground truth" as nan."""
    return float(fraction) * 100 if fraction > -1 else float("nan")


def _mean_over_recall(precision: np.ndarray) -> np.ndarray:
    by_category = np.moveaxis(precision, 2, 0)  # (C, T, R)
    return np.array([percent(one.mean() if (one > -1).all() else -1) for one in by_category])


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
