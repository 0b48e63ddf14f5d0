"""Of what kind a segmentation is, and whether an RLE is whole; the masks are not decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.validation.columns import MISSING, Column

LEAST_COORDINATES = 6  # three points


class Kind(IntEnum):
    """What an annotation's `segmentation` is."""

    ABSENT = 0  # no such key, null or []
    POLYGONS = 1
    SOME_SHORT = 2  # some polygons have fewer than three points or an odd number of coordinates
    ALL_SHORT = 3  # all of them have: two corners of a rectangle, mostly
    NOT_FINITE = 4
    RLE = 5
    BROKEN_RLE = 6
    MALFORMED = 7  # neither a list of lists of numbers nor an RLE


class SegmentationColumn(Column):
    """(rows,) uint8 :class:`Kind`; nothing is odd.

    Attributes:
        sizes: row -> (height, width) of the RLEs.
        examples: kind -> the first value of this kind, cut, for messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.examples: dict[int, str] = {}

    def _array(self, values: list[Any]) -> NDArray[np.uint8]:
        kinds = [kind_of(value) for value in values]
        for row, kind in enumerate(kinds):
            if kind == Kind.RLE:
                height, width = values[row]["size"]
                self.sizes[self.rows + row] = (height, width)
        for kind in set(kinds) - self.examples.keys():
            value = values[kinds.index(kind)]
            self.examples[kind] = " ".join(str(value)[:60].split())
        return np.array(kinds, np.uint8)


def kind_of(value: Any) -> int:
    """The :class:`Kind` of a segmentation as it is in the file."""
    if type(value) is list:
        return _kind_of_polygons(value) if value else Kind.ABSENT
    if value is MISSING or value is None:
        return Kind.ABSENT
    if type(value) is dict:
        return Kind.BROKEN_RLE if rle_fault(value) else Kind.RLE
    return Kind.MALFORMED


def _kind_of_polygons(polygons: list[Any]) -> int:
    short = 0
    for polygon in polygons:
        if type(polygon) is not list:
            return Kind.MALFORMED
        try:
            total = sum(polygon)  # NaN or infinite if one of them is
            if not math.isfinite(total):
                return Kind.NOT_FINITE
        except TypeError:
            return Kind.MALFORMED
        except OverflowError:  # an integer beyond float
            return Kind.NOT_FINITE
        short += is_short(polygon)
    if not short:
        return Kind.POLYGONS
    return Kind.ALL_SHORT if short == len(polygons) else Kind.SOME_SHORT


def is_short(polygon: Sequence[Any]) -> bool:
    """Fewer than three points, or a coordinate without partner: Detectron2 leaves it out."""
    return len(polygon) < LEAST_COORDINATES or len(polygon) % 2 == 1


def rle_fault(rle: dict[str, Any]) -> str | None:
    """Why this is not a COCO RLE (`size` [height, width], `counts` list or compressed), or None.

    pycocotools does not look: counts that do not fill the image are noise or a crash.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (type(size) is list and len(size) == 2 and all(type(s) is int and s > 0 for s in size)):
        return f"size {size!r} is not [height, width]"
    if type(counts) is str:
        counts = _decompress(counts)
    if type(counts) is list and all(type(one) is int and one >= 0 for one in counts):
        filled = sum(counts)
        return None if filled == size[0] * size[1] else f"counts fill {filled:,} pixels of {size}"
    return "counts are neither a list of integers from 0 on nor a compressed string"


def _decompress(text: str) -> list[int] | None:
    """The counts of pycocotools' compressed form: 5 bits per character, the lowest first, bit 6
    goes on, the last one's bit 5 is the sign; from the fourth count on, differences to the count
    two before."""
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:  # 60 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((codes & 31) << shifts, starts)
    counts -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return list(map(int, counts))
