"""What a step of CLIPSelf's self-distillation costs beside the student's own passes, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.cache_building import Workload, load_teacher
from benchmarks.speed import (
    Row,
    Timed,
    operations_of,
    ratio_of,
    time_alternately,
    training_step,
)
from ovd_d2.data.mapper import no_objects
from ovd_d2.engine.run import load_config
from ovd_d2.projects.clipself.grids import grid_cells
from ovd_d2.projects.clipself.model import CLIPSelf
from ovd_d2.projects.clipself.passengers import Regions, attach_regions

CONFIG = "projects/CLIPSelf/configs/clipself_eva_b16_patches.yaml"


@dataclass(frozen=True)
class Distillation:
    """A step on one image.

    Attributes:
        architecture: of teacher and student, with random weights.
        side: of the student's square, pixels.
        crops: that the teacher sees, of as many columns of the image.
        rounds: that are counted.
    """

    architecture: str
    side: int
    crops: int
    rounds: int


# Five crops of such an image are to its patches what the recipe's 20 are to those of 1024 px. A
# smaller student would do so little that the optimizer's walk through all weights shows.
CASES = (Distillation("ViT-S-16", 512, crops=5, rounds=5),)


def measure(cases: Sequence[Distillation] = CASES) -> list[Row]:
    """A row per case: `step_over`, the step's time over the student's passes alone;
    `step_operations`, the same of operations; `step_over_sum`, over student and teacher alone."""
    return [_row(case) for case in cases]


def _row(case: Distillation) -> Row:
    things = _things(case)
    title = f"{case.architecture}, {case.side} px, {case.crops} crops"
    operations = {name: operations_of(partial(thing, 0)) for name, thing in things.items()}
    seconds = time_alternately(things, case.rounds, f"distillation, {title}")
    alone = [a + b for a, b in zip(seconds["student"], seconds["teacher"], strict=True)]
    return {
        "name": title,
        "step_over": round(ratio_of(seconds, "step", "student"), 3),
        "step_operations": round(operations["step"] / operations["student"], 3),
        "step_over_sum": round(ratio_of({**seconds, "sum": alone}, "step", "sum"), 3),
    }


def _things(case: Distillation) -> dict[str, Timed]:
    """A whole step with the optimizer; the passes of the student and of the teacher in it."""
    teacher = load_teacher(Workload(case.architecture, "", (case.side, case.side), 1, 0, 1, 1))
    model = CLIPSelf(teacher=teacher, image_size=case.side, alpha=0.7)
    batch = [_record(case, teacher.image_size[0])]
    images = torch.randn(1, 3, case.side, case.side)
    crops = torch.randn(case.crops, 3, *teacher.image_size)

    def student(_: int) -> None:
        model.zero_grad()
        model.student(images).sum().backward()

    return {
        "student": student,
        "teacher": lambda _: teacher.encode_images(crops),
        "step": training_step(load_config(CONFIG), model, [batch] * (case.rounds + 1)),
    }


def _record(case: Distillation, crop: int) -> dict[str, Any]:
    """A training input of random pixels."""
    boxes = grid_cells(1, case.crops, 1, 1)
    crops = torch.randint(256, (len(boxes), 3, crop, crop), dtype=torch.uint8)
    instances = no_objects((case.side, case.side), None)
    attach_regions(instances, Regions(torch.from_numpy(np.float32(boxes)), crops))
    image = torch.randint(256, (3, case.side, case.side), dtype=torch.uint8)
    return {"image": image, "instances": instances}


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown, of the rows that are of this."""
    body = [
        [
            row["name"],
            f"{row['step_over']:.2f}",
            f"{row['step_operations']:.2f}",
            f"{100 * row['step_over'] / row['step_operations']:.0f} %",
            f"{row['step_over_sum']:.2f}",
        ]
        for row in rows
        if "step_over" in row
    ]
    heads = (
        *("tower, image", "step / student alone, time", "operations", "of predicted"),
        "step / student and teacher alone, time",
    )
    return tabulate(body, heads, tablefmt="pipe", disable_numparse=True)
