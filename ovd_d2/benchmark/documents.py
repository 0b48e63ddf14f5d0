"""What the JSON of every benchmark holds, and how a page names its origin."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ovd_d2.demo.steps import repository_root

Document = Mapping[str, Any]  # command, date, commit, rows


def make_document(command: str, rows: Sequence[Mapping[str, Any]]) -> Document:
    """The rows with the command that measured them, today's date and the commit of the code."""
    today = datetime.date.today().isoformat()
    return {"command": command, "date": today, "commit": current_commit(), "rows": list(rows)}


def current_commit() -> str:
    """Short hash of the checkout, "unknown" outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=repository_root(),
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def origin(document: Document) -> str:
    """The sentence that says where the rows come from, in Markdown."""
    return (
        f"Written by `{document['command']}`\n"
        f"on {document['date']}, with the code of {document['commit']}"
    )
