"""From a precision array to AP per category, and from there to means over groups of categories."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovd_d2.files import atomic_write, atomic_write_json
from ovd_d2.vocabulary import Categories

logger = logging.getLogger(__name__)

AREAS = {"APs": 1, "APm": 2, "APl": 3}  # places on the area axis; 0 is all areas
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}
CSV_TITLES = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class CategoryAP:
    """AP of every category, in percent; nan for a category without ground truth.

    Attributes:
        categories: C of them.
        ap: (C,) float64, mean over IoU 0.50:0.95 and 101 recall points.
        ap50: (C,) float64, the same at IoU 0.50.
    """

    categories: Categories
    ap: np.ndarray
    ap50: np.ndarray

    @classmethod
    def from_precision(cls, categories: Categories, precision: np.ndarray) -> CategoryAP:
        """
        Args:
            categories: C of them.
            precision: (T, R, C) over IoU thresholds (the first one is 0.50), recall points and
                categories, as LVISEval and COCOeval keep it for one area range and one limit of
                detections; -1 marks a category without ground truth.
        """
        if precision.ndim != 3 or precision.shape[2] != len(categories):
            raise ValueError(
                f"precision has shape {precision.shape}, expected (thresholds, recalls, "
                f"{len(categories)} categories)"
            )
        return cls(
            categories,
            _mean_over_recall(precision),
            _mean_over_recall(precision[:1]),
        )

    def group_means(self) -> dict[str, float]:
        """`AP_base`, `AP_novel`, `AP50_base`, `AP50_novel`: means over the categories that have
        ground truth; nan (with a log line) where a group has none."""
        means: dict[str, float] = {}
        novel = np.array(self.categories.novel, dtype=bool)
        for metric, values in (("AP", self.ap), ("AP50", self.ap50)):
            for group, members in (("base", ~novel), ("novel", novel)):
                means[f"{metric}_{group}"] = _mean_of_known(values[members])
        for group in ("base", "novel"):
            if math.isnan(means[f"AP_{group}"]):
                logger.info("No %s category has ground truth: AP_%s is nan.", group, group)
        return means

    def as_dict(self) -> dict[str, float | None]:
        """`{"AP-<name>": ..., "AP50-<name>": ...}`; None (JSON has no nan) without ground truth."""
        values = zip(self.categories.names, self.ap.tolist(), self.ap50.tolist(), strict=True)
        flat: dict[str, float | None] = {}
        for name, ap, ap50 in values:
            flat[f"AP-{name}"] = None if math.isnan(ap) else ap
            flat[f"AP50-{name}"] = None if math.isnan(ap50) else ap50
        return flat


def named_metrics(
    precision: np.ndarray, frequencies: Sequence[str] | None = None
) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl, and APr, APc, APf where there are frequencies.

    The means that lvis and pycocotools take: over everything that has ground truth.

    Args:
        precision: (T, R, C, A) as :class:`ovd_d2.evaluation.engines.Engine` returns it.
        frequencies: C letters r / c / f; None where the data set does not say.

    Returns:
        Percent; nan where nothing has ground truth.
    """
    everywhere = precision[..., 0]  # (T, R, C)
    metrics = {
        "AP": _mean_of_defined(everywhere),
        "AP50": _mean_of_defined(everywhere[0]),
        "AP75": _mean_of_defined(everywhere[5]),
    }
    for name, area in AREAS.items():
        metrics[name] = _mean_of_defined(precision[..., area])
    if frequencies is not None:
        for name, letter in FREQUENCIES.items():
            members = [k for k, one in enumerate(frequencies) if one == letter]
            metrics[name] = _mean_of_defined(everywhere[:, :, members])
    return metrics


def write_per_category(tasks: Mapping[str, CategoryAP], output_folder: str | Path) -> Path:
    """Writes `per_category.json`, one `CategoryAP.as_dict` per IoU type. Returns its path."""
    path = Path(output_folder) / "per_category.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, {task: table.as_dict() for task, table in tasks.items()})
    logger.info("AP of each category: %s", path)
    return path


def write_category_csv(
    tasks: Mapping[str, CategoryAP],
    output_folder: str | Path,
    categories: Categories,
    objects: Mapping[int, int],
) -> Path:
    """Writes `per_category.csv`: novel categories first, in each group the lowest AP first.

    Args:
        tasks: IoU type -> AP of every category; the last one orders the rows.
        output_folder: is made if missing.
        categories: in the order of the tables.
        objects: data set id -> number of annotated objects.

    Returns:
        Its path. A category without ground truth has empty cells and comes last in its group.
    """
    header = ["category", "group", "frequency", "objects"]
    header += [f"{CSV_TITLES[task]} {name}" for task in tasks for name in ("AP", "AP50")]
    order_by = list(tasks.values())[-1].ap

    def rank(k: int) -> tuple[bool, bool, float, str]:
        unknown = math.isnan(order_by[k])
        return (
            not categories.novel[k],
            unknown,
            0.0 if unknown else float(order_by[k]),
            categories.names[k],
        )

    letters = categories.frequencies or [""] * len(categories)
    path = Path(output_folder) / "per_category.csv"
    with atomic_write(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for k in sorted(range(len(categories)), key=rank):
            values = [value for table in tasks.values() for value in (table.ap[k], table.ap50[k])]
            writer.writerow(
                [
                    categories.names[k],
                    "novel" if categories.novel[k] else "base",
                    letters[k],
                    objects.get(categories.ids[k], 0),
                    *("" if math.isnan(value) else f"{value:.3f}" for value in values),
                ]
            )
    return path


def read_per_category(path: str | Path) -> dict[str, dict[str, float | None]]:
    """Reads what `write_per_category` wrote."""
    return json.loads(Path(path).read_text())


def percent(fraction: float) -> float:
    """A fraction in [0, 1] as percent; the libraries' -1 for "no ground truth" as nan."""
    return float(fraction) * 100 if fraction > -1 else float("nan")


def _mean_of_defined(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return percent(defined.mean() if defined.size else -1)


def _mean_over_recall(precision: np.ndarray) -> np.ndarray:
    by_category = np.moveaxis(precision, 2, 0)  # (C, T, R)
    return np.array([percent(one.mean() if (one > -1).all() else -1) for one in by_category])


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
