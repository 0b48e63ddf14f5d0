"""GLIP beside the public code's numbers (:mod:`ovd_d2.golden`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ovd_d2.golden import Comparison, GoldenFolder
from ovd_d2.projects.glip.golden import (
    evaluation,
    forward,
    preprocess,
    prompts,
    training,
    units,
)

# A part compares the tensors of its files that are in the folder.
PARTS: tuple[Callable[[GoldenFolder], Iterator[Comparison]], ...] = (
    prompts.comparisons,
    preprocess.comparisons,
    units.comparisons,
    forward.comparisons,
    training.comparisons,
    evaluation.comparisons,
)


def comparisons(folder: GoldenFolder) -> Iterator[Comparison]:
    """Everything of the folder's files that are there, in the order of the data flow."""
    for part in PARTS:
        yield from part(folder)
