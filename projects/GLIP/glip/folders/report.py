"""The tables and the JSON of an evaluation over folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from ovd_d2.files import atomic_write_json
from ovd_d2.projects.glip.evaluation.settings import names_per_caption

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MEAN = "mean"
_ZERO = "0"


def write_report(report: dict[str, Any], path: Path) -> None:
    """What was measured, with the means over sets, as JSON."""
    shots = _shots(report)
    means = {one: {c: _mean_over_sets(report, one, c) for c in COLUMNS} for one in shots}
    atomic_write_json(path, {**report, MEAN: means})


def folders_table(report: dict[str, Any]) -> str:
    """Markdown: how it was measured, the prompts, and a row per set with the mean as the last.

    Without a training all numbers of COCO; with trainings AP by shots, mean and standard deviation
    over seeds.
    """
    settings, shots = report["settings"], _shots(report)
    per_caption = names_per_caption(settings["names_per_caption"])
    head = [
        f"weights: {settings['weights']}; protocol: {report['protocol']}; names per caption: "
        f"{per_caption}"
    ]
    if shots != [_ZERO]:
        head.append(f"tuning: {settings['tuning']}; columns: AP by images per category")
    prompts = [f"{one['set']}: {' | '.join(one['captions'])}" for one in _firsts(report)]
    table = _zero_shot_table(report) if shots == [_ZERO] else _by_shots(report, shots)
    return "\n".join([*head, "", "prompts:", *prompts, "", table])


def _zero_shot_table(report: dict[str, Any]) -> str:
    rows = [[*_begin(one), *(_cell(one.get(c)) for c in COLUMNS)] for one in report["runs"]]
    means = [_cell(_mean_over_sets(report, _ZERO, c)) for c in COLUMNS]
    return _table([*rows, [MEAN, *[""] * 4, *means]], COLUMNS)


def _by_shots(report: dict[str, Any], shots: Sequence[str]) -> str:
    rows = []
    for one in _firsts(report):
        numbers = [_values(report, one["set"], k, "AP") for k in shots]
        rows.append([*_begin(one), *map(_spread, numbers)])
    means = [_cell(_mean_over_sets(report, one, "AP")) for one in shots]
    return _table([*rows, [MEAN, *[""] * 4, *means]], shots)


def _begin(one: dict[str, Any]) -> list[Any]:
    return [one["set"], one["split"], one["images"], one["names"], len(one["captions"])]


def _table(rows: list[list[Any]], columns: Sequence[str]) -> str:
    headers = ["data set", "split", "images", "names", "captions", *columns]
    aligned = ["left"] * 2 + ["right"] * (len(headers) - 2)
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=aligned, disable_numparse=True)


def _shots(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(one["shots"] for one in report["runs"]))


def _firsts(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One run per set."""
    return list({one["set"]: one for one in reversed(report["runs"])}.values())[::-1]


def _values(report: dict[str, Any], name: str, shots: str, column: str) -> list[float]:
    runs = (one for one in report["runs"] if one["set"] == name and one["shots"] == shots)
    return [one[column] for one in runs if one.get(column) is not None]


def _mean_over_sets(report: dict[str, Any], shots: str, column: str) -> float | None:
    """Of the means over seeds; of all sets that have a number."""
    values = (_values(report, one["set"], shots, column) for one in _firsts(report))
    return _mean(mean(one) for one in values if one)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return mean(found) if found else None


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _cell(_mean(values))
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
