"""Tables of methods over several seeds, as JSON and as a page."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from ovd_d2.engine.build import build_open_vocabulary_model, build_test_loader, classify_crops
from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.demo.pictograms import VAL_SET, Run
from ovd_d2.pictograms.demo.report import read_results

# In the order of the paper's table. (A method whose weights another takes comes before it.)
DEMO_METHODS = ("supervised_base", "clip_crops", "vild_text", "vild", "vild_ensemble")
PAPER_METHODS = (
    "supervised_base",
    "supervised_rfs",
    "clip_crops_no_objectness",
    "clip_crops",
    "vild_text",
    "text_and_clip_crops",
    "vild_image",
    "vild",
    "vild_ensemble",
)
METRICS = ("AP", "APr", "APc", "APf", "AP50_base", "AP50_novel")
TIMED_IMAGES, WARM_UP_IMAGES = 30, 5

EQUAL_WITHIN = 0.05

Row = dict[str, Any]


def collect_rows(folder: Path, seeds: Sequence[int], methods: Sequence[str]) -> list[Row]:
    """One row a method and seed, from the evaluations in `folder`; every model is timed here."""
    rows = []
    for seed in seeds:
        run = Run(folder, seed)
        for method in methods:
            results = read_results(run.output(method))
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "box": _metrics(results["bbox"]),
                    "segm": _metrics(results["segm"]),
                    "ms_per_image": round(_milliseconds_per_image(run, method), 1),
                }
            )
    return rows


def _metrics(values: Mapping[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(values[k]) else round(values[k], 3) for k in METRICS}


def load_method(run: Run, method: str, device: str = "cpu") -> tuple[CfgNode, nn.Module]:
    """Config and trained model, in eval mode, as it is evaluated."""
    options = ["MODEL.WEIGHTS", str(run.weights(method)), "MODEL.DEVICE", device]
    cfg: CfgNode = load_config(f"configs/pictograms/{method}.yaml", options)
    model = build_open_vocabulary_model(cfg)
    classify_crops(cfg, model)
    return cfg, model


def _milliseconds_per_image(run: Run, method: str) -> float:
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


def mean_of(rows: Sequence[Row], method: str, task: str, metric: str) -> float:
    """Mean over seeds, nan where a seed has no number."""
    values = [row[task][metric] for row in rows if row["method"] == method]
    if not values or None in values:
        return float("nan")
    return statistics.mean(values)


def expectations(rows: Sequence[Row]) -> list[tuple[str, float, bool]]:
    """What a faithful ViLD must show, what was measured, and whether it holds."""
    novel = {m: mean_of(rows, m, "box", "AP50_novel") for m in DEMO_METHODS}
    base = {m: mean_of(rows, m, "box", "AP50_base") for m in DEMO_METHODS}
    rare = {m: mean_of(rows, m, "segm", "APr") for m in DEMO_METHODS}
    ratios = [
        ("novel box AP50, ViLD-ensemble / ViLD-text >= 1.25", novel, 1.25),
        ("novel (rare) mask AP, ViLD-ensemble / ViLD-text >= 1.25", rare, 1.25),
        ("base box AP50, ViLD-ensemble / ViLD-text >= 0.95", base, 0.95),
    ]
    found = []
    for claim, values, least in ratios:
        text = values["vild_text"]
        ratio = values["vild_ensemble"] / text if text else float("inf")
        found.append((claim, ratio, ratio >= least))
    supervised = novel["supervised_base"]
    found.append(("novel box AP50, supervised on base = 0", supervised, round(supervised, 1) == 0))
    return found


def table_of(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, Markdown."""
    header = [
        "method",
        *(f"box {m}" for m in METRICS),
        *(f"mask {m}" for m in METRICS),
        "ms / image",
    ]
    body = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        cells = [
            spread([row[task][m] for row in mine]) for task in ("box", "segm") for m in METRICS
        ]
        body.append([method, *cells, f"{statistics.mean(row['ms_per_image'] for row in mine):.0f}"])
    alignment = ("left", *["right"] * (len(header) - 1))
    return tabulate(body, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{deviation}"


def expectations_table(rows: Sequence[Row]) -> str:
    """`expectations` as Markdown."""
    body = [
        [claim, f"{value:.2f}", "yes" if ok else "NO"] for claim, value, ok in expectations(rows)
    ]
    return tabulate(body, ["expected", "measured", "holds"], tablefmt="pipe", disable_numparse=True)


def orderings(rows: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """The orderings of the paper's tables 2 and 3: what is claimed, what was measured, if it holds.

    Of means over seeds, mask AP; 5 % are taken for equal.
    """
    rare = {row["method"]: mean_of(rows, row["method"], "segm", "APr") for row in rows}
    frequent = {row["method"]: mean_of(rows, row["method"], "segm", "APf") for row in rows}
    time_of = {
        row["method"]: statistics.mean(
            one["ms_per_image"] for one in rows if one["method"] == row["method"]
        )
        for row in rows
    }
    claims = [
        ("APr: supervised on base < ViLD-text", "supervised_base", "<", "vild_text", rare),
        ("APr: ViLD-text < ViLD", "vild_text", "<", "vild", rare),
        ("APr: ViLD <= ViLD-ensemble", "vild", "<=", "vild_ensemble", rare),
        ("APr: ViLD-text < ViLD-text + CLIP", "vild_text", "<", "text_and_clip_crops", rare),
        ("APr: ViLD-image < ViLD", "vild_image", "<", "vild", rare),
        ("APr: Supervised-RFS < ViLD", "supervised_rfs", "<", "vild", rare),
        ("APf: ViLD <= ViLD-ensemble", "vild", "<=", "vild_ensemble", frequent),
        ("APf: ViLD-text = ViLD-ensemble", "vild_text", "=", "vild_ensemble", frequent),
        ("APf: ViLD-image < ViLD-text", "vild_image", "<", "vild_text", frequent),
        ("time: ViLD < CLIP on crops", "vild", "<", "clip_crops", time_of),
    ]
    return [
        (claim, f"{of[left]:.1f}, {of[right]:.1f}", _holds(of[left], relation, of[right]))
        for claim, left, relation, right, of in claims
    ]


def failed_orderings(rows: Sequence[Row]) -> list[str]:
    """The claims of `orderings` that do not hold."""
    return [claim for claim, _, holds in orderings(rows) if not holds]


def _holds(left: float, relation: str, right: float) -> bool:
    equal = abs(left - right) <= EQUAL_WITHIN * max(left, right)
    return {"<": left < right, "<=": left < right or equal, "=": equal}[relation]


def orderings_table(rows: Sequence[Row]) -> str:
    """`orderings` as Markdown."""
    body = [[claim, found, "holds" if ok else "DOES NOT"] for claim, found, ok in orderings(rows)]
    return tabulate(body, ["the paper", "here", ""], tablefmt="pipe", disable_numparse=True)
