"""Evaluation results as text tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

COLUMNS = {
    "AP": "AP",
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "AP50_base": "AP50 base",
    "AP50_novel": "AP50 novel",
}
ALL_COLUMNS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "APs",
    "APm": "APm",
    "APl": "APl",
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "AP_base": "AP base",
    "AP_novel": "AP novel",
    "AP50_base": "AP50 base",
    "AP50_novel": "AP50 novel",
}
TASKS = {"box": ("bbox", "box"), "mask": ("segm",)}


def results_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, one row per method, in percent.

    Args:
        rows: method name -> what the evaluator returned (`{"bbox": {...}, "segm": {...}}`; "box" is
            accepted for "bbox"). A missing or undefined number is shown as "-"; mask columns are
            left out where no method has masks.

    Returns:
        The table, without a final line break.
    """
    tasks = [
        (title, keys)
        for title, keys in TASKS.items()
        if title == "box" or any(key in metrics for metrics in rows.values() for key in keys)
    ]
    header = ["method"]
    for title, _ in tasks:  # "box AP" opens the six box columns; repeating it would widen them all
        header += [f"{title} {name}" if name == "AP" else name for name in COLUMNS.values()]
    body = [
        [method] + [_cell(_of_task(metrics, keys).get(key)) for _, keys in tasks for key in COLUMNS]
        for method, metrics in rows.items()
    ]
    return _markdown(header, body)


def evaluation_table(description: Mapping[str, str], results: Mapping[str, Any]) -> str:
    """One evaluation in full: a line that says what the numbers are, then box and mask, percent.

    Args:
        description: title -> text, e.g. data set, protocol, engine.
        results: what the evaluator returned; columns and rows without any number are left out.

    Returns:
        Heading and Markdown table, without a final line break.
    """
    rows = {title: _of_task(results, keys) for title, keys in TASKS.items()}
    rows = {title: metrics for title, metrics in rows.items() if metrics}
    columns = [key for key in ALL_COLUMNS if any(key in metrics for metrics in rows.values())]
    header = ["percent", *(ALL_COLUMNS[key] for key in columns)]
    body = [
        [title, *(_cell(metrics.get(key)) for key in columns)] for title, metrics in rows.items()
    ]
    return f"{heading(description)}\n\n{_markdown(header, body)}"


def heading(description: Mapping[str, str]) -> str:
    """A line that says what the numbers of a table are."""
    return "; ".join(f"{title}: {text}" for title, text in description.items())


def _markdown(header: list[str], body: list[list[str]]) -> str:
    alignment = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(
        body, headers=header, tablefmt="pipe", colalign=alignment, disable_numparse=True
    )


def _of_task(metrics: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, float]:
    return next((metrics[key] for key in keys if key in metrics), {})


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
