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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    words = [str(ROOT / script), *map(str, arguments)]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(words, variables, streams))
        process.start()
        process.join()
        assert process.exitcode is not None
        return Program(process.exitcode, *(one.read_text() for one in streams))


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
