"""Runs a tool as `python tools/NAME.py` does, without the seconds that its imports take.

A server that has imported what tools import, and done nothing else, forks for each run
(multiprocessing's forkserver). So a tool has its own process, environment and streams, and finds
nothing that the tests have changed in theirs.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


@dataclass
class Program:
    """How it ended and what it wrote."""

    status: int
    stdout: str
    stderr: str


def run_program(script: Path | str, *arguments: object, **environment: object) -> Program:
    """Run a Python script from the root of the repository.

    Args:
        script: its path, relative to the root or absolute.
        arguments: of its command line.
        environment: variables, beside those of this process.
    """
    with _started(script, arguments, environment) as (process, streams):
        process.join()
        return Program(process.exitcode, *(one.read_text() for one in streams))


@contextmanager
def serving_program(
    script: Path | str, *arguments: object, until: str, seconds: float = 120, **environment: object
) -> Iterator[str]:
    """A script that goes on until the block is left, once it has printed `until`.

    Yields:
        What it has printed.
    """
    with _started(script, arguments, environment) as (process, (stdout, stderr)):
        try:
            end = time.monotonic() + seconds
            while not (stdout.exists() and until in stdout.read_text()):
                assert process.is_alive() and time.monotonic() < end, stderr.read_text()
                time.sleep(0.1)
            yield stdout.read_text()
        finally:
            process.terminate()
            process.join()


@contextmanager
def _started(
    script: Path | str, arguments: tuple[object, ...], environment: Mapping[str, object]
) -> Iterator[tuple[Any, list[Path]]]:
    words = [str(ROOT / script), *map(str, arguments)]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(words, variables, streams))
        process.start()
        yield process, streams


def _run(words: list[str], variables: Mapping[str, str], streams: list[Path]) -> None:
    """In the child: what ends it (SystemExit, an error) is left to multiprocessing."""
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
