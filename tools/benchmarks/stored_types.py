"""What the stored type costs: ViLD-ensemble on Pictograms from a float16 and an int8 cache."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.tables import spread
from ovd_d2.pictograms.demo.report import read_results
from ovd_d2.pictograms.showcase import steps_of
from ovd_d2.pictograms.steps import (
    Run,
)
from ovd_d2.pipeline.step import Step
from ovd_d2.vild.showcase import SHOWCASE, cache_step

METHOD = SHOWCASE.method("vild_ensemble")
# float16: the benchmark's own training
RUNS = {"float16": METHOD.name, "int8": f"{METHOD.name}_int8"}
METRICS = {  # column: task and metric
    "box AP50_base": ("bbox", "AP50_base"),
    "box AP50_novel": ("bbox", "AP50_novel"),
    "mask APr": ("segm", "APr"),
}

Row = dict[str, Any]


def stored_type_steps(folder: Path, seeds: Sequence[int]) -> list[Step]:
    """What has to be built and trained, for several seeds."""
    runs = [Run(folder, seed) for seed in seeds]
    steps = steps_of(SHOWCASE, runs, [METHOD])
    for run in runs:
        cache = cache_step(run, name="cache_int8", options=("--dtype", "int8"))
        assert cache.folder is not None
        trained = METHOD.step(
            run,
            name=RUNS["int8"],
            about=" from an int8 cache",
            options=("MODEL.VILD.DISTILLATION.CACHE", str(cache.folder)),
            needs=(cache.name,),
        )
        steps += [cache, trained]
    return steps


def collect_rows(folder: Path, seeds: Sequence[int]) -> list[Row]:
    """One row per stored type and seed."""
    rows = []
    for stored_type, name in RUNS.items():
        for seed in seeds:
            results = read_results(Run(folder, seed).output(name))
            found = {
                column: round(results[task][key], 3) for column, (task, key) in METRICS.items()
            }
            rows.append({"stored_type": stored_type, "seed": seed, **found})
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: mean and deviation over seeds, and the mean of the seeds' differences."""
    by_type = {
        stored_type: sorted(
            (row for row in rows if row["stored_type"] == stored_type), key=lambda row: row["seed"]
        )
        for stored_type in RUNS
    }
    body = [
        [stored_type, *(spread([row[column] for row in of_type]) for column in METRICS)]
        for stored_type, of_type in by_type.items()
    ]
    pairs = list(zip(by_type["float16"], by_type["int8"], strict=True))
    differences = [statistics.mean(b[column] - a[column] for a, b in pairs) for column in METRICS]
    body.append(["int8 - float16", *(f"{difference:+.1f}" for difference in differences)])
    header = ["stored type", *METRICS]
    return tabulate(body, header, tablefmt="pipe", disable_numparse=True)
