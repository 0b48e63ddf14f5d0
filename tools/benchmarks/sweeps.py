"""One setting at a time: how ViLD-ensemble's AP on Pictograms moves with it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tabulate import tabulate

from ovd_d2.files import atomic_write
from ovd_d2.pictograms.demo.report import read_results
from ovd_d2.pictograms.showcase import steps_of
from ovd_d2.pictograms.steps import (
    Run,
    prompts_step,
)
from ovd_d2.pipeline.step import Step
from ovd_d2.vild.showcase import SHOWCASE

METHOD = SHOWCASE.method("vild_ensemble")
LINES = {"AP50_base": ("base", "#1f77b4"), "AP50_novel": ("novel", "#e8590c")}

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One value of a setting.

    Attributes:
        shown: on the axis and in the JSON.
        options: `KEY VALUE` pairs that set it.
    """

    shown: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """One setting and the values it takes.

    Attributes:
        name: in the JSON.
        label: of the axis.
        points: in the order of the axis.
        default: which point is the configs' own value: the benchmark's model, nothing to run.
        trains: each point is trained; else the benchmark's model is evaluated again.
    """

    name: str
    label: str
    points: tuple[Point, ...]
    default: str
    trains: bool


def _points(key: str, *values: str) -> tuple[Point, ...]:
    return tuple(Point(value, (key, value)) for value in values)


def _ensemble_weight(text_for_base: float) -> Point:
    base, novel = f"{text_for_base:.3f}", f"{1 - text_for_base:.3f}"
    return Point(base, ("MODEL.OVD.BASE_WEIGHT", base, "MODEL.OVD.NOVEL_WEIGHT", novel))


PROMPTS = "prompts"  # its points need vocabularies of their own
SWEEPS = (
    Sweep(
        "distillation_weight",
        "distillation weight w",
        _points("MODEL.VILD.DISTILLATION.WEIGHT", "0.1", "0.5", "1.0", "2.0"),
        default="0.5",
        trains=True,
    ),
    Sweep(
        "proposals",
        "proposals per image, K",
        _points("MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE", "5", "12", "25"),
        default="25",
        trains=True,
    ),
    Sweep(
        PROMPTS,
        "prompt family",
        tuple(Point(family, ()) for family in ("single", "clip7", "vild63")),
        default="vild63",
        trains=False,
    ),
    Sweep(
        "ensemble_weight",
        "text branch's weight for base",
        tuple(_ensemble_weight(weight) for weight in (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)),
        default="0.667",
        trains=False,
    ),
    Sweep(
        "temperature",
        "temperature at test time",
        _points("MODEL.OVD.TEST_TEMPERATURE", "0.0125", "0.0175", "0.025", "0.035", "0.05"),
        default="0.025",
        trains=False,
    ),
)


def sweep_steps(folder: Path, seeds: Sequence[int], sweeps: Sequence[Sweep] = SWEEPS) -> list[Step]:
    """What has to be trained and evaluated, for several seeds."""
    runs = [Run(folder, seed) for seed in seeds]
    steps = steps_of(SHOWCASE, runs, [METHOD])
    steps += [
        prompts_step(folder, point.shown)
        for sweep in sweeps
        for point in sweep.points
        if sweep.name == PROMPTS and point.shown != sweep.default
    ]
    for run in runs:
        steps += [
            _step(run, sweep, point)
            for sweep in sweeps
            for point in sweep.points
            if point.shown != sweep.default
        ]
    return steps


def _output_name(sweep: Sweep, point: Point) -> str:
    return METHOD.name if point.shown == sweep.default else f"sweep_{sweep.name}_{point.shown}"


def _step(run: Run, sweep: Sweep, point: Point) -> Step:
    options, needs = point.options, tuple[str, ...]()
    if sweep.name == PROMPTS:
        vocabulary = prompts_step(run.folder, point.shown)
        options, needs = ("MODEL.OVD.VOCABULARY", str(vocabulary.product)), (vocabulary.name,)
    return METHOD.step(
        run,
        name=_output_name(sweep, point),
        about=f", {sweep.label} {point.shown}",
        options=options,
        needs=needs,
        weights_of="" if sweep.trains else METHOD.name,
    )


def collect_points(
    folder: Path, seeds: Sequence[int], sweeps: Sequence[Sweep] = SWEEPS
) -> list[Row]:
    """One row per sweep, point and seed: box AP50 of base and novel categories."""
    rows = []
    for sweep in sweeps:
        for point in sweep.points:
            for seed in seeds:
                box = read_results(Run(folder, seed).output(_output_name(sweep, point)))["bbox"]
                found = {metric: round(box[metric], 3) for metric in LINES}
                rows.append({"sweep": sweep.name, "value": point.shown, "seed": seed, **found})
    return rows


def range_table(rows: Sequence[Row], sweeps: Sequence[Sweep] = SWEEPS) -> str:
    """Markdown: between what the mean over seeds moves, and at which values."""
    header = ["setting", "configs"]
    header += [f"{label}, {end}" for label, _ in LINES.values() for end in ("least", "most")]
    body = []
    for sweep in sweeps:
        cells = [sweep.label, sweep.default]
        for metric in LINES:
            means = {point.shown: _mean(rows, sweep, point, metric) for point in sweep.points}
            for value in (min(means, key=means.__getitem__), max(means, key=means.__getitem__)):
                cells.append(f"{means[value]:.1f} at {value}")
        body.append(cells)
    return tabulate(body, header, tablefmt="pipe", disable_numparse=True)


def _mean(rows: Sequence[Row], sweep: Sweep, point: Point, metric: str) -> float:
    mine = (row for row in rows if (row["sweep"], row["value"]) == (sweep.name, point.shown))
    return statistics.mean(row[metric] for row in mine)


def plot(rows: Sequence[Row], path: Path, sweeps: Sequence[Sweep] = SWEEPS) -> None:
    """A panel per sweep: mean over seeds, a dot per seed, the configs' own value marked."""
    figure, axes = plt.subplots(1, len(sweeps), figsize=(3.1 * len(sweeps), 3.2), squeeze=False)
    for axis, sweep in zip(axes[0], sweeps, strict=True):
        _panel(axis, sweep, [row for row in rows if row["sweep"] == sweep.name])
    axes[0][0].set_ylabel("box AP50, percent (Pictograms)")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def _panel(axis: Axes, sweep: Sweep, rows: Sequence[Row]) -> None:
    shown = [point.shown for point in sweep.points]
    for metric, (label, colour) in LINES.items():
        by_point = [[row[metric] for row in rows if row["value"] == value] for value in shown]
        means = [_mean(rows, sweep, point, metric) for point in sweep.points]
        axis.plot(range(len(shown)), means, color=colour, label=label)
        for position, values in enumerate(by_point):
            axis.plot([position] * len(values), values, ".", color=colour, alpha=0.6)
    axis.axvline(shown.index(sweep.default), color="#adb5bd", linewidth=1, linestyle=":")
    axis.set_xticks(range(len(shown)), shown)
    axis.set_xlabel(sweep.label)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
