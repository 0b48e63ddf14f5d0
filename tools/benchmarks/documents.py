"""What the JSON of every benchmark holds, and how a page names its origin."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ovd_d2.pictograms.dataset import GENERATOR_VERSION
from ovd_d2.pipeline.pipeline import repository_root

Document = Mapping[str, Any]  # command, date, commit, pictograms, rows
CODE = ("ovd_d2", "tools", "configs", "datasets")  # what a measurement depends on


def make_document(command: str, rows: Sequence[Mapping[str, Any]]) -> Document:
    """The rows with the command that measured them, and what it measured: day, code, data."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": current_commit(),
        "pictograms": GENERATOR_VERSION,
        "rows": list(rows),
    }


def current_commit() -> str:
    """Short hash of the checkout, and whether its code was changed; "unknown" outside of one."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(
        command, cwd=repository_root(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def origin(document: Document) -> str:
    """The sentence that says where the rows come from, in Markdown."""
    return (
        f"Written by `{document['command']}`\non {document['date']} at commit {document['commit']}"
    )


def table(rows: Sequence[Mapping[str, Any]], **columns: str) -> str:
    """Markdown, of the rows that have all columns: key -> what stands above it."""
    body = [[row[key] for key in columns] for row in rows if columns.keys() <= row.keys()]
    return tabulate(body, list(columns.values()), tablefmt="pipe", intfmt=",")
