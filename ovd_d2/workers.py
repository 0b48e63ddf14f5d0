"""Pools of worker processes and threads that end with the work they were made for."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import cv2

Pool = TypeVar("Pool", bound=Executor)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def closing(pool: Pool) -> Iterator[Pool]:
    """The pool; it drops what is still queued when the caller fails, stops or is interrupted."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown()


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, closed as :func:`closing` does.

    OpenCV works with one thread in the workers and, as long as the pool is open, here: a forked
    worker inherits the state of OpenCV's threads but not the threads, and would wait for them for
    ever.
    """
    # A forked worker starts at once; a spawned one first imports torch and Detectron2 again.
    method = "fork" if sys.platform == "linux" else "spawn"
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    context = multiprocessing.get_context(method)
    try:
        with closing(ProcessPoolExecutor(workers, mp_context=context)) as pool:
            yield pool
    finally:
        cv2.setNumThreads(threads)
