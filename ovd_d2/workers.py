"""Worker processes for drawing and other work of the CPU."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import cv2


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that drops what is still queued when the caller fails or is interrupted.

    OpenCV works with one thread in the workers and, as long as the pool is open, here: a forked
    worker inherits the state of OpenCV's threads but not the threads, and would wait for them for
    ever.
    """
    # A forked worker starts at once; a spawned one first imports torch and Detectron2 again.
    method = "fork" if sys.platform == "linux" else "spawn"
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        pool.shutdown()
        cv2.setNumThreads(threads)
