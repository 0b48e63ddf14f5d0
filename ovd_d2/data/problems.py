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
        total: of how many entries; 0 for a fault of the file as a whole.
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
        if self.total:
            what = f"{self.count:,} of {self.total:,} {self.what}"
            where = f"{self.key}, first: {self.first}"
        else:
            what, where = self.what, self.key
        return (
            f"{self.file}: {what} ({where}): expected {self.expected}, found {self.found}; "
            f"{self.fix}"
        )
