"""How a fault of a data set is reported: one shape for every message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """All faults of one kind in one file.

    Attributes:
        file: path of the file that has to be changed.
        key: where in the file, e.g. "annotations[].bbox".
        what: the kind of fault, after the number: "boxes are not finite".
        count: how many entries have it.
        total: of how many entries; 0 where that means nothing.
        first: the first of them, with its id: "annotation 7 of image 3".
        expected, found: as short as they can be.
        fix: what to do, as a command where there is one.
    """

    file: str
    key: str
    what: str
    count: int
    total: int
    first: str
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        share = f"{self.count:,} of {self.total:,}" if self.total else f"{self.count:,}"
        return (
            f"{self.file}: {share} {self.what} ({self.key}, first: {self.first}): expected "
            f"{self.expected}, found {self.found}; {self.fix}"
        )
