"""Builds of the cache killed at random moments and run again, against an undisturbed one."""

from __future__ import annotations

import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from benchmarks.cache_building import (
    NAME,
    Entry,
    Workload,
    load_teacher,
    write_images,
    write_proposals,
)
from benchmarks.speed import Row
from ovd_d2.cache import ProposalStore
from ovd_d2.engine.cache_builder import build_cache

KILLS = 10
WORK = Workload("Pictogram-RN", "shipped", (240, 320), 32, 16, 64, 1)
IMAGES_PER_SHARD = 4
# What takes seconds to import; `benchmarks` itself is not on the path of the server.
PRELOADED = ["open_clip", "ovd_d2.engine.build", "ovd_d2.engine.cache_builder", "ovd_d2.modeling"]


@dataclass(frozen=True)
class _Build:
    """What every process builds, into a folder of its own."""

    work: Workload
    entries: Sequence[Entry]
    proposals: Path

    def __call__(self, folder: Path, started: Connection) -> None:
        teacher = load_teacher(self.work)
        started.send(True)
        build_cache(
            self.entries,
            ProposalStore(self.proposals),
            teacher,
            folder,
            dataset_name=NAME,
            batch_size=self.work.batch_size,
            images_per_shard=IMAGES_PER_SHARD,
            progress=False,
        )


def measure(kills: int = KILLS, work: Workload = WORK, seed: int = 0) -> Row:
    """How many of `kills` builds were killed at work, and how many stores came out the same.

    Every build has its own folder and gets SIGKILL once, at a moment drawn evenly from the time
    that a whole build takes; one that was done by then counts as not killed.

    Raises:
        RuntimeError: a build ended by itself with an error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write_images(folder / "images", work, seed)
        write_proposals(folder / "proposals", entries, work.proposals, seed)
        build = _Build(work, entries, folder / "proposals")
        _, duration = _run(build, folder / "undisturbed")
        expected, moments = _files_of(folder / "undisturbed"), random.Random(seed)
        killed = same = 0
        for number in tqdm(range(kills), "kill a build", unit="build"):
            store = folder / str(number)
            killed += _run(build, store, moments.uniform(0, duration))[0]
            _run(build, store)
            same += _files_of(store) == expected
    return {
        "name": f"{work.images} images, {len(expected)} files",
        "kills": kills,
        "killed": killed,
        "identical": same,
    }


def _run(build: _Build, folder: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """Whether a build in a process of its own was killed, and its seconds."""
    context = multiprocessing.get_context("forkserver")  # forks before there are threads
    context.set_forkserver_preload(PRELOADED)
    started, start = context.Pipe(duplex=False)
    process = context.Process(target=build, args=(folder, start))
    process.start()
    start.close()  # so that a process that fails before it sends ends the wait below
    _wait(started)
    begin = time.perf_counter()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    seconds = time.perf_counter() - begin
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the build into {folder} ended with status {process.exitcode}")
    return process.exitcode != 0, seconds


def _wait(started: Connection) -> None:
    try:
        started.recv()
    except EOFError as error:
        raise RuntimeError("a build failed before it began: see its message above") from error


def _files_of(folder: Path) -> dict[str, bytes]:
    """Contents by path in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def table_of(rows: Sequence[Row]) -> str:
    """Markdown."""
    body = [
        [row["name"], row["kills"], row["killed"], row["identical"]]
        for row in rows
        if "killed" in row
    ]
    header = ["builds killed and run again", "builds", "killed at work", "equal byte by byte"]
    return tabulate(body, header, tablefmt="pipe")
