"""Collects what is wrong and what is odd: counted in full, the first one named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.problems import Problem

Rows = Sequence[int] | NDArray[np.bool_] | NDArray[np.int64]
Words = str | Callable[[int], str]


class Findings:
    """Problems stop a run, notices do not; both say the same things about a fault.

    Attributes:
        problems: what has to be repaired.
        notices: what is odd, but can be meant.
        is_file: False for a data set that a function makes, of which no copy can be repaired.
    """

    def __init__(self, file: str, *, is_file: bool = True) -> None:
        self.file = file
        self.is_file = is_file
        self.problems: list[Problem] = []
        self.notices: list[str] = []

    @property
    def repair(self) -> str:
        """The fix of what `--fix` can repair."""
        if not self.is_file:
            return "correct what the registered function returns"
        return f"python datasets/check_annotations.py {self.file} --fix fixed.json repairs a copy"

    def add(
        self,
        key: str,
        what: str,
        rows: Rows,
        total: int,
        *,
        first: Words,
        expected: str,
        found: Words,
        fix: str = "",
        notice: bool = False,
    ) -> bool:
        """Adds a finding unless `rows` is empty; returns whether there was one.

        Args:
            key: where in the file, "annotations[].bbox".
            what: after the number, "boxes are not finite".
            rows: of the entries that have the fault, as indices or as flags.
            total: the number of entries.
            first, found: words, or what gives them for the first row.
            expected: words.
            fix: words; by default that `--fix` repairs it.
            notice: a notice and not a problem.
        """
        indices = np.flatnonzero(rows) if _are_flags(rows) else rows
        if len(indices) == 0:
            return False
        row = int(min(indices))
        words = [one if isinstance(one, str) else one(row) for one in (first, found)]
        count = len(indices)
        problem = Problem(
            self.file, key, what, count, total, words[0], expected, words[1], fix or self.repair
        )
        if notice:
            self.notices.append(str(problem))
        else:
            self.problems.append(problem)
        return True

    def one(
        self, key: str, what: str, *, expected: str, found: str, fix: str, first: str = "the file"
    ) -> None:
        """A problem of the file as a whole."""
        self.problems.append(Problem(self.file, key, what, 1, 0, first, expected, found, fix))


def _are_flags(rows: Rows) -> bool:
    return isinstance(rows, np.ndarray) and rows.dtype == np.bool_
