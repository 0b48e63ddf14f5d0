"""What a pipeline runs: a command, as a user would type it, and what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_OPTION = "--config-file"


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Attributes:
        name: a short unique name, also of its record under `steps/`.
        purpose: what the user gets from it, in one line.
        script: path of the script below the repository root.
        arguments: its arguments.
        product: the file that exists when the step is done.
        needs: names of the steps that must be done before.
        folder: what the step alone fills, if it is such. Emptied before a step that was begun in
            another form starts over, so that no half of one run is taken up by another.
        inputs: files that the arguments do not name; with another content the step is another.
        settings: values, as JSON has them, that the script takes from the code; likewise.
    """

    name: str
    purpose: str
    script: str
    arguments: tuple[str, ...]
    product: Path
    needs: tuple[str, ...] = ()
    folder: Path | None = None
    inputs: tuple[Path, ...] = ()
    settings: Mapping[str, Any] | None = None
