"""Many requests of several users to the web page, and the memory that its server takes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ovd_d2.errors import SetupError
from ovd_d2.pipeline.pipeline import repository_root

USERS = 4
OPENS = 5  # every so-manieth request of a user is a file, the others ask about it
BROKEN = 4  # every so-manieth file is none
NAMES = ("kite", "kite, red anchor", "sofa | couch", "bell, moon, sun", "")
THRESHOLDS = (0.1, 0.25, 0.5)
PRINTED = re.compile(r"the page is at (\S+)")


@contextmanager
def server(model: str, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """tools/web_demo.py as a process of its own: its address and process id.

    Raises:
        SetupError: it ends before it serves; it has printed why.
    """
    tool = repository_root() / "tools" / "web_demo.py"
    command = [sys.executable, str(tool), "--model", model, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout or ())
            found = next(filter(None, map(PRINTED.search, lines)), None)
            if found is None:
                raise SetupError([f"{' '.join(command)} ended before it served anything"])
            yield found[1], process.pid
        finally:
            process.terminate()


def measure(
    address: str, process: int, images: Sequence[Path], requests: int, reports: int = 10
) -> Iterator[dict[str, Any]]:
    """Asks one request after another, of `USERS` users in turn.

    Args:
        address: of the page.
        process: id of its server, on this machine.
        images: files that are uploaded in turn.
        requests: how many.
        reports: how many rows.

    Yields:
        `requests` so far, `MiB` that the server's process has in memory, and `seconds`.
    """
    from gradio_client import Client, handle_file

    start = time.perf_counter()
    clients = [Client(address, verbose=False) for _ in range(USERS)]
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.png"
        broken.write_bytes(images[0].read_bytes()[:-64])
        for number in range(requests):
            arguments, name = question(number, [*images], broken)
            given = [handle_file(one) if isinstance(one, Path) else one for one in arguments]
            clients[number % USERS].predict(*given, api_name=name)
            if (number + 1) % max(1, requests // reports) == 0:
                seconds = round(time.perf_counter() - start, 1)
                yield {"requests": number + 1, "MiB": memory_of(process), "seconds": seconds}


def question(number: int, images: Sequence[Path], broken: Path) -> tuple[tuple[Any, ...], str]:
    """What the page is asked, and where."""
    turn, threshold = number // USERS, THRESHOLDS[number % len(THRESHOLDS)]
    names = NAMES[number % len(NAMES)]
    file, place = divmod(turn, OPENS)
    if place == 0:
        is_broken = file % BROKEN == BROKEN - 1
        image = broken if is_broken else images[(file + number % USERS) % len(images)]
        return (image, names, threshold), "/open"
    if place % 2:
        return (names, threshold), "/find"
    return (threshold,), "/threshold"


def memory_of(process: int) -> int:
    """MiB of its pages in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return round(int(found[1]) / 1024)
