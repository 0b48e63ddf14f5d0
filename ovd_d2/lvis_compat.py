"""The one place where the `lvis` package is made to work with current numpy.

`lvis` 0.5.3, its last release, uses `np.float` in eval.py; numpy 1.24 removed that name. Its
import also calls `logging.basicConfig`, which puts a handler on the root logger and prints
every message of the program twice.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy

__all__ = ["patch_lvis"]


class _NumpyWithFloat:
    """numpy as `lvis.eval` expects it: every attribute of numpy, and `float` besides."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


def patch_lvis() -> None:
    """Give `lvis.eval` its own view of numpy; numpy itself and other modules stay untouched.

    Call before `lvis.LVISEval` runs; calling again changes nothing. detectron2's LVISEvaluator
    uses the same class, so it is served too.

    Raises:
        ImportError: lvis, or pycocotools which it does not declare, is not installed.
    """
    try:
        with _root_logger_kept():
            evaluation: Any = importlib.import_module("lvis.eval")
    except ImportError as error:
        raise ImportError(
            f"LVIS evaluation needs the packages lvis and pycocotools ({error}). "
            "Install them: pip install pycocotools, then pip install --no-deps lvis==0.5.3"
        ) from error
    if not isinstance(evaluation.np, _NumpyWithFloat):
        evaluation.np = _NumpyWithFloat()


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what the body does to the root logger's handlers and level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
        root.setLevel(level)
