"""What the dense features of a CLIP ViT know of regions and pixels, before and after CLIPSelf."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from tabulate import tabulate

from benchmarks.documents import Document, current_commit, origin
from benchmarks.tables import spread
from ovd_d2.files import atomic_write
from ovd_d2.pictograms.showcase import only_once
from ovd_d2.pictograms.steps import (
    DATASET,
    VAL_SET,
    Run,
    clip_options,
    data_step,
    datasets_folder,
    vocabulary_step,
)
from ovd_d2.pictograms.teacher import SHIPPED_TAG, VIT_ARCHITECTURE
from ovd_d2.pipeline.step import CONFIG_OPTION, Step
from ovd_d2.projects.clipself.showcase import FOLDER, distillation_step, refined
from ovd_d2.vild.showcase import proposal_steps

SIZES = (160, 240, 320)  # of the training, 1.5 and 2 times it
SEGMENTED = SIZES[0]
WINDOW = ("--window", "6")  # as in clipself_windowed.yaml
WINDOW_OPTIONS = ("MODEL.DENSE_CLIP.WINDOW_SIZE", "6")
KINDS = ("boxes", "masks")

Row = dict[str, Any]


@dataclass(frozen=True)
class Student:
    """A CLIP whose dense features are looked at.

    Attributes:
        name: of the row, and of the config that refines it; "original": as it is.
        windowed: attention within windows.
    """

    name: str
    windowed: bool = False

    @property
    def is_refined(self) -> bool:
        return not self.name.startswith("original")

    def weights(self, run: Run) -> str:
        return str(refined(run, self.name)) if self.is_refined else SHIPPED_TAG


STUDENTS = (
    Student("original"),
    Student("clipself_patches"),
    Student("clipself_proposals"),
    Student("original_windowed", windowed=True),
    Student("clipself_windowed", windowed=True),
)


def steps(folder: Path, seeds: Sequence[int], students: Sequence[Student] = STUDENTS) -> list[Step]:
    """Refining by the config of each student, and all evaluations."""
    found = []
    for run, student in _runs(folder, seeds, students):
        found += [*proposal_steps(run), vocabulary_step(VIT_ARCHITECTURE), _segments_step()]
        if student.is_refined:
            found.append(distillation_step(run, student.name))
        found += [_regions_step(run, student), _segmentation_step(run, student)]
    return only_once(found)


def named(names: Sequence[str]) -> tuple[Student, ...]:
    """Those of :data:`STUDENTS` with these names."""
    return tuple(one for one in STUDENTS if one.name in names)


def _runs(
    folder: Path, seeds: Sequence[int], students: Sequence[Student]
) -> list[tuple[Run, Student]]:
    """Every refined CLIP with every seed; one as it is has none, and is looked at once."""
    return [
        (Run(folder, seed), student)
        for student in students
        for seed in (seeds if student.is_refined else seeds[:1])
    ]


def _segments_step() -> Step:
    return Step(
        "segments",
        "Write the masks as segments and as classes of pixels",
        "projects/CLIPSelf/tools/write_panoptic.py",
        ("--dataset", VAL_SET),
        datasets_folder() / DATASET / f"{VAL_SET}_panoptic.json",
        needs=(data_step().name,),
    )


def _needs(run: Run, student: Student) -> tuple[str, ...]:
    needs = (_segments_step().name, vocabulary_step(VIT_ARCHITECTURE).name)
    return (*needs, run.step(student.name)) if student.is_refined else needs


def _regions_step(run: Run, student: Student) -> Step:
    name = f"regions_{student.name}"
    output = run.output(name)
    ceiling = ("--crop-scale", "1") if student.name == "original" else ("--crops", "none")
    return Step(
        run.step(name),
        f"Name regions by their dense features: {student.name}, seed {run.seed}",
        "projects/CLIPSelf/tools/evaluate_regions.py",
        (
            *("--dataset", f"{VAL_SET}_regions"),
            *clip_options(student.weights(run), VIT_ARCHITECTURE),
            *("--sizes", *map(str, SIZES), *ceiling, *(WINDOW if student.windowed else ())),
            *("--device", "cpu", "--output", str(output)),
        ),
        output / "results.json",
        needs=_needs(run, student),
        folder=output,
    )


def _segmentation_step(run: Run, student: Student) -> Step:
    name = f"segmentation_{student.name}"
    output = run.output(name)
    return Step(
        run.step(name),
        f"Name pixels by their dense features: {student.name}, seed {run.seed}",
        "tools/train_net.py",
        (
            *(CONFIG_OPTION, f"{FOLDER}/dense_clip.yaml", "--eval-only"),
            *("OUTPUT_DIR", str(output), "MODEL.OVD.TEACHER.PRETRAINED", student.weights(run)),
            *(WINDOW_OPTIONS if student.windowed else ()),
        ),
        output / "inference" / "results.json",
        needs=_needs(run, student),
        folder=output,
    )


def collect_rows(
    folder: Path, seeds: Sequence[int], students: Sequence[Student] = STUDENTS
) -> list[Row]:
    """One row per student and seed, percent; crops are those of the CLIP as it is."""
    rows = []
    for run, student in _runs(folder, seeds, students):
        regions = _read(_regions_step(run, student).product)
        pixels = _read(_segmentation_step(run, student).product)["sem_seg"]
        found = {
            f"{kind} {size}": regions[str(size)][f"{kind}-things-top1"]
            for kind in KINDS
            for size in SIZES
        }
        found["mIoU"] = pixels["mIoU"]
        found["crops"] = regions[str(SIZES[0])].get("crops-things-top1", math.nan)
        known = {name: round(value, 2) for name, value in found.items() if not math.isnan(value)}
        origin = {"student": student.name, "seed": run.seed, "commit": current_commit()}
        rows.append({**origin, **known})
    return rows


def joined(rows: Sequence[Row], before: Sequence[Row]) -> list[Row]:
    """New rows, and those of earlier ones whose students were not measured again."""
    again = {row["student"] for row in rows}
    found = [*rows, *(row for row in before if row["student"] not in again)]
    order = [student.name for student in STUDENTS]
    return sorted(found, key=lambda row: (order.index(row["student"]), row["seed"]))


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def table_of(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, Markdown."""
    columns = [*(f"{kind} {size}" for kind in KINDS for size in SIZES), "mIoU"]
    body = []
    for name in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == name]
        values = (spread([row[column] for row in mine]) for column in columns)
        body.append([name, *values, mine[0]["commit"]])
    alignment = ("left", *["right"] * len(columns), "left")
    header = ["features", *columns, "commit"]
    return tabulate(body, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def gap_closed(rows: Sequence[Row], student: str, column: str) -> float:
    """Share of the way from the original's accuracy to that of crops, mean over seeds."""
    original = next(row for row in rows if row["student"] == "original")
    after = statistics.mean(row[column] for row in rows if row["student"] == student)
    return (after - original[column]) / (original["crops"] - original[column])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of boxes and of masks against the size of the image, crops as a line."""
    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 3.4), sharey=True)
    for axis, kind in zip(axes, KINDS, strict=True):
        for name in dict.fromkeys(row["student"] for row in rows):
            mine = [row for row in rows if row["student"] == name]
            means = [statistics.mean(row[f"{kind} {size}"] for row in mine) for size in SIZES]
            style = "--" if name.endswith("windowed") else "-"
            axis.plot(SIZES, means, style, marker="o", label=name)
        axis.axhline(rows[0]["crops"], color="grey", linestyle=":", label="image crops")
        axis.set_title(kind)
        axis.set_xlabel("longest side of the image, pixels")
        axis.set_xticks(SIZES)
        axis.set_ylim(0, 100)
    axes[0].set_ylabel("mAcc, percent (Pictograms)")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def section(document: Document) -> str:
    """Of docs/results-clipself.md."""
    rows = document["rows"]
    seeds = len({row["seed"] for row in rows})
    measured = {row["student"] for row in rows}
    gaps = [
        [one.name, *(f"{100 * gap_closed(rows, one.name, f'boxes {s}'):.0f} %" for s in SIZES)]
        for one in STUDENTS
        if one.name != "original" and one.name in measured
    ]
    shares = tabulate(gaps, ["boxes", *map(str, SIZES)], tablefmt="pipe", disable_numparse=True)
    return f"""## Regions and pixels

Percent, mean ± standard deviation over {seeds} seeds of the self-distillation. mAcc of boxes
(RoIAlign) and masks by dense features at three sizes of the image, and mIoU of pixels within masks
at {SEGMENTED} pixels. "windowed": attention within windows of 6 x 6 patches.

{table_of(rows)}

The ceiling, image crops by the CLS embedding: {rows[0]["crops"]:.1f}.

How much of the way from the original to image crops is made:

{shares}

The paper's tables have most of the gap closed, and more of it the larger the image. Here a ViT
that learns from 1,000 steps of 4 images, all of them of {SIZES[0]} pixels, closes a part, and
less of it on images larger than any it has learnt from. Patches of a grid show mostly ground: they
teach less than proposals do. Windows without training make most of the way that the student with
windows makes.

![mAcc of boxes and masks against image size](clipself_regions.png)

{origin(document)}; numbers: [results/clipself_regions.json](results/clipself_regions.json).
"""
