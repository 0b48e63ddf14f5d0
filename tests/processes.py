"""Forked processes for tests: a few gloo ranks, and processes that die at a chosen moment."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

CRASHED = 137
# Where gloo groups meet: a file each, which gloo leaves behind.
MEETINGS = tempfile.TemporaryDirectory(prefix="ovd_d2-ranks-")
# What changes a file system. `Path` and `shutil` call these too.
_CALLS = ("replace", "unlink", "rmdir", "mkdir", "fsync")


def fork(function: Callable[[], object]) -> int:
    """Start `function` in a child; returns its process id. The child never comes back to pytest."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # tqdm's own lock is shared with the parent: a child that is killed while it holds it would
        # leave the parent waiting for ever.
        tqdm.set_lock(threading.RLock())
        function()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def exit_code(child: int) -> int:
    """Wait for a child: its status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_ranks(count: int, function: Callable[[int], object]) -> list[int]:
    """Start `function(rank)` in `count` processes that form a gloo group; returns their ids."""
    meeting = Path(MEETINGS.name) / uuid.uuid4().hex

    def run(rank: int) -> None:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=60),
        )
        function(rank)

    return [fork(lambda rank=rank: run(rank)) for rank in range(count)]  # type: ignore[misc]


def run_ranks(count: int, function: Callable[[int], object]) -> list[int]:
    """The exit codes of `start_ranks`."""
    return [exit_code(child) for child in start_ranks(count, function)]


def kill(children: Sequence[int]) -> None:
    """SIGKILL, as `kill -9` sends it."""
    for child in children:
        os.kill(child, signal.SIGKILL)


def die_at(step: int) -> None:
    """End this process, as a power cut would, at its `step`-th change of the file system.

    A write is torn: half of it has happened. Everything else has not happened yet.
    """
    left = step

    def counted(real: Callable, tear: bool) -> Callable:
        def call(target: object, *args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                if tear:
                    data = args[0]
                    real(target, data[: len(data) // 2])  # type: ignore[index, arg-type]
                os._exit(CRASHED)
            left -= 1
            return real(target, *args, **kwargs)

        return call

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name), tear=False))
    for name in ("write_bytes", "write_text"):
        setattr(Path, name, counted(getattr(Path, name), tear=True))
