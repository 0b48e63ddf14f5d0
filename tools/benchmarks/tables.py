"""Tables of the methods of all systems over several seeds, as JSON and as a page."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from benchmarks.documents import Document
from ovd_d2.engine.build import build_open_vocabulary_model, build_test_loader, classify_crops
from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.demo.report import read_results
from ovd_d2.pictograms.showcase import Expectation, Gap, Method, Ordering, showcases
from ovd_d2.pictograms.steps import VAL_SET, Run
from ovd_d2.pipeline.pipeline import repository_root

METRICS = ("AP", "APr", "APc", "APf", "AP50_base", "AP50_novel")
TIMED_IMAGES, WARM_UP_IMAGES = 30, 5

EQUAL_WITHIN = 0.05

Row = dict[str, Any]
Documents = Mapping[str, Document]  # by the name of the system


def collect_rows(folder: Path, seeds: Sequence[int], methods: Sequence[Method]) -> list[Row]:
    """One row per method and seed, from the evaluations in `folder`; every model is timed here."""
    rows = []
    for seed in seeds:
        run = Run(folder, seed)
        for method in methods:
            results = read_results(run.output(method.name))
            rows.append(
                {
                    "method": method.name,
                    "seed": seed,
                    "box": _metrics(results["bbox"]),
                    "segm": _metrics(results.get("segm", {})),
                    "ms_per_image": round(_milliseconds_per_image(run, method), 1),
                }
            )
    return rows


def _metrics(values: Mapping[str, float]) -> dict[str, float | None]:
    """None for what is undefined, or not measured: masks of a detector of boxes."""
    found = {name: values.get(name, math.nan) for name in METRICS}
    return {k: None if math.isnan(value) else round(value, 3) for k, value in found.items()}


def load_method(run: Run, method: Method, device: str = "cpu") -> tuple[CfgNode, nn.Module]:
    """Config and trained model, in eval mode, as it is evaluated."""
    options = ["MODEL.WEIGHTS", str(method.weights(run)), "MODEL.DEVICE", device]
    cfg: CfgNode = load_config(str(repository_root() / method.config), options)
    model = build_open_vocabulary_model(cfg)
    classify_crops(cfg, model)
    return cfg, model


def _milliseconds_per_image(run: Run, method: Method) -> float:
    """Median time of one image through the trained model, reading not counted."""
    cfg, model = load_method(run, method)
    times = []
    for number, inputs in enumerate(build_test_loader(cfg, VAL_SET)):
        start = time.perf_counter()
        with torch.no_grad():
            model(inputs)
        times.append(1000 * (time.perf_counter() - start))
        if number + 1 == WARM_UP_IMAGES + TIMED_IMAGES:
            break
    return statistics.median(times[WARM_UP_IMAGES:])


def rows_of(documents: Documents) -> list[Row]:
    """The rows of all systems."""
    return [row for document in documents.values() for row in document["rows"]]


def mean_of(rows: Sequence[Row], method: str, metric: str) -> float:
    """Mean over seeds, nan where a seed has no number.

    Args:
        metric: "box AP", "segm APr", ..., "ms_per_image".
    """
    values = [_value(row, metric) for row in rows if row["method"] == method]
    if not values or None in values:
        return math.nan
    return statistics.mean(values)


def _value(row: Row, metric: str) -> Any:
    for key in metric.split():
        row = row[key]
    return row


def expectations_about(rows: Sequence[Row]) -> dict[str, list[Expectation]]:
    """Name of a system -> its expectations, of those whose methods have rows."""
    shown = {"", *(row["method"] for row in rows)}
    found = {
        name: [one for one in showcase.expectations if {one.method, one.over} <= shown]
        for name, showcase in showcases().items()
    }
    return {name: expected for name, expected in found.items() if expected}


def orderings_about(rows: Sequence[Row]) -> list[Ordering]:
    """The orderings of all systems, of those whose methods have rows."""
    shown = {row["method"] for row in rows}
    return [
        one
        for showcase in showcases().values()
        for one in showcase.orderings
        if one.methods <= shown
    ]


def check_expectations(
    rows: Sequence[Row], expected: Iterable[Expectation]
) -> list[tuple[str, float, bool]]:
    """What a faithful implementation must show, what was measured, and whether it holds."""
    found = []
    for one in expected:
        value = mean_of(rows, one.method, one.metric)
        if one.over:
            under = mean_of(rows, one.over, one.metric)
            value = value / under if under else math.inf
        found.append((one.claim, value, one.least <= value <= one.most))
    return found


def table_of(rows: Sequence[Row]) -> str:
    """AP, mean and standard deviation over seeds, Markdown.

    Without `ms_per_image`: these times come from different hours, and one model's differ between
    tables. The orderings compare them within one run; :mod:`benchmarks.speed` measures properly.
    """
    header = ["method", *(f"box {m}" for m in METRICS), *(f"mask {m}" for m in METRICS)]
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [
            spread([row[task][m] for row in mine]) for task in ("box", "segm") for m in METRICS
        ]
        body.append([method, *cells])
    alignment = ("left", *["right"] * (len(header) - 1))
    return tabulate(body, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean ± standard deviation of what was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def expectations_table(rows: Sequence[Row], expected: Iterable[Expectation]) -> str:
    """`check_expectations` as Markdown."""
    body = [
        [claim, f"{value:.2f}", "yes" if ok else "NO"]
        for claim, value, ok in check_expectations(rows, expected)
    ]
    return tabulate(body, ["expected", "measured", "holds"], tablefmt="pipe", disable_numparse=True)


def check_orderings(
    rows: Sequence[Row], claims: Iterable[Ordering]
) -> list[tuple[Ordering, str, bool]]:
    """The orderings of the papers: what is claimed, what was measured, whether it holds.

    Of means over seeds; for "<=" and "=" 5 % are taken for equal.
    """
    found = []
    for one in claims:
        left, right = (_side(rows, side, one.metric) for side in (one.left, one.right))
        found.append((one, f"{left:.1f}, {right:.1f}", _holds(left, one.relation, right)))
    return found


def _side(rows: Sequence[Row], side: str | Gap | float, metric: str) -> float:
    if isinstance(side, Gap):
        return mean_of(rows, side.higher, metric) - mean_of(rows, side.lower, metric)
    return mean_of(rows, side, metric) if isinstance(side, str) else side


def _holds(left: float, relation: str, right: float) -> bool:
    equal = abs(left - right) <= EQUAL_WITHIN * max(left, right)
    return {"<": left < right, "<=": left < right or equal, "=": equal}[relation]


def orderings_table(
    rows: Sequence[Row], claims: Iterable[Ordering], source: str = "the paper"
) -> str:
    """`check_orderings` as Markdown; `source`: whose claims they are."""
    body = [
        [one.claim, found, "holds" if ok else "DOES NOT"]
        for one, found, ok in check_orderings(rows, claims)
    ]
    return tabulate(body, [source, "here", ""], tablefmt="pipe", disable_numparse=True)


def reasons_of(rows: Sequence[Row], claims: Iterable[Ordering]) -> Iterator[str]:
    """A sentence per ordering that does not hold, Markdown."""
    for one, _, holds in check_orderings(rows, claims):
        if not holds:
            yield f"**{one.claim}** does not hold. {one.reason or 'Not looked into.'}"
