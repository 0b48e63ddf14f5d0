"""One line that shows how far several commands are."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

TAIL_BYTES = 2000
QUIET_PERIOD = 30.0  # seconds between two lines where there is no terminal


def last_progress(log: Path) -> str:
    """The newest progress bar in a log (tqdm writes them over one another with `\\r`), or ""."""
    with log.open("rb") as stream:
        stream.seek(0, 2)
        stream.seek(max(0, stream.tell() - TAIL_BYTES))
        text = stream.read().decode(errors="replace")
    bars = [part.strip() for part in text.replace("\r", "\n").split("\n") if "%|" in part]
    return bars[-1] if bars else ""


class StatusLine:
    """Shows the progress bars of running commands side by side, below what is printed.

    On a terminal the line is rewritten in place; elsewhere a new one is printed now and then.
    """

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def print(self, text: str) -> None:
        """A lasting line."""
        self._clear()
        print(text, flush=True)

    def show(self, logs: Mapping[str, Path]) -> None:
        """Shows the newest progress bar of each log."""
        bars = {name: last_progress(log) for name, log in logs.items()}
        parts = [f"{name} {_short(bar)}" for name, bar in bars.items() if bar]
        if not parts:
            return
        line = "  ".join(parts)
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + line[:width])
            sys.stderr.flush()
            self._shown = True
        elif time.monotonic() - self._last > QUIET_PERIOD:
            self._last = time.monotonic()
            print("  " + line, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False


def _short(bar: str) -> str:
    """ "name: 45%|####  | 9/20 [00:10<00:12, 2.2it/s]" -> "45% 9/20 [00:10<00:12, 2.2it/s]"."""
    before, _, after = bar.partition("%|")
    percent = before.rsplit(" ", 1)[-1].rsplit(":", 1)[-1]
    return f"{percent}% {after.partition('| ')[2]}"
