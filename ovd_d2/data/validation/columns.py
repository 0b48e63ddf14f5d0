"""The columns of an annotation file: NumPy arrays of what is sound, dicts of what is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovd_d2.data.categories import LARGEST_ID, is_id


class _Missing:
    def __repr__(self) -> str:
        return "no such key"


MISSING = _Missing()  # the value of a key that an entry does not have


@dataclass
class Column:
    """One key of all entries of a list, in the file's order.

    Attributes:
        parts: what `values` concatenates.
        odd: row -> raw value of the entries whose value is not of the column's type; MISSING
            where the key is missing. `values` holds a filler there.
        rows: how many entries there are.
    """

    parts: list[NDArray[Any]] = field(default_factory=list)
    odd: dict[int, Any] = field(default_factory=dict)
    rows: int = 0

    @property
    def values(self) -> NDArray[Any]:
        if len(self.parts) != 1:
            self.parts = [np.concatenate(self.parts)] if self.parts else [self._empty()]
        return self.parts[0]

    @property
    def sound(self) -> NDArray[np.bool_]:
        """(rows,) which values are of the column's type."""
        flags = np.ones(self.rows, np.bool_)
        flags[list(self.odd)] = False
        return flags

    def raw(self, row: int) -> Any:
        """The value as the file has it."""
        return self.odd[row] if row in self.odd else self.values[row].tolist()

    def rows_where(self, *raw: Any) -> list[int]:
        """The rows whose odd value is one of `raw`, by identity: MISSING, None."""
        return [row for row, value in self.odd.items() if any(value is one for one in raw)]

    def add(self, entries: Sequence[Mapping[str, Any]], key: str) -> None:
        values = [entry.get(key, MISSING) for entry in entries]
        self.parts.append(self._array(values))
        self.rows += len(values)

    def _empty(self) -> NDArray[Any]:
        return self._array([])

    def _array(self, values: list[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def _replace_odd(self, values: list[Any], odd: Iterable[int], filler: Any) -> list[Any]:
        for row in odd:
            self.odd[self.rows + row] = values[row]
            values[row] = filler
        return values


class IntegerColumn(Column):
    """Integers from 0 to 2**63 - 1, (rows,) int64; booleans and whole floats are odd."""

    def _array(self, values: list[Any]) -> NDArray[np.int64]:
        if set(map(type, values)) - {int} or not _fits(values):
            odd = [k for k, value in enumerate(values) if not is_id(value)]
            values = self._replace_odd(values, odd, -1)
        return np.array(values, np.int64)


class NumberColumn(Column):
    """Numbers, (rows,) float64; NaN and infinity are numbers here."""

    def _array(self, values: list[Any]) -> NDArray[np.float64]:
        if set(map(type, values)) - {int, float}:
            odd = [k for k, value in enumerate(values) if not is_number(value)]
            values = self._replace_odd(values, odd, math.nan)
        return to_floats(values)


class BoxColumn(Column):
    """Lists of four numbers, (rows, 4) float64."""

    def _empty(self) -> NDArray[np.float64]:
        return np.zeros((0, 4))

    def _array(self, values: list[Any]) -> NDArray[np.float64]:
        if not _are_boxes(values):
            odd = [k for k, value in enumerate(values) if not _are_boxes([value])]
            values = self._replace_odd(values, odd, [math.nan] * 4)
        return to_floats(list(chain.from_iterable(values))).reshape(-1, 4)


class ObjectColumn(Column):
    """Any value, as it is; nothing is odd but what is missing."""

    def _array(self, values: list[Any]) -> NDArray[np.object_]:
        odd = [k for k, value in enumerate(values) if value is MISSING]
        values = self._replace_odd(values, odd, None)
        return np.fromiter(values, np.object_, count=len(values))  # np.array would look into lists


class CrowdColumn(Column):
    """`iscrowd`: (rows,) uint8, 0 where the key is missing; what is neither 0 nor 1 is odd."""

    def _array(self, values: list[Any]) -> NDArray[np.uint8]:
        kinds = set(map(type, values))
        if kinds == {_Missing}:
            return np.zeros(len(values), np.uint8)
        if kinds - {int} or set(values) - {0, 1}:
            values = [0 if value is MISSING else value for value in values]
            odd = [k for k, value in enumerate(values) if not _is_flag(value)]
            values = self._replace_odd(values, odd, 0)
        return np.array(values, np.uint8)


class ListColumn(Column):
    """(rows,) whether the value is a list; the lists themselves are not kept."""

    def _array(self, values: list[Any]) -> NDArray[np.bool_]:
        return np.array([type(value) is list for value in values], np.bool_)


def is_number(value: Any) -> bool:
    """An integer or float (also NaN), and no boolean."""
    return type(value) in (int, float)


def _is_flag(value: Any) -> bool:
    return type(value) in (int, float, bool) and value in (0, 1)


def to_floats(values: list[Any]) -> NDArray[np.float64]:
    """(len(values),) float64; integers beyond it become infinite."""
    try:
        return np.array(values, np.float64)
    except OverflowError:
        largest = 10**308
        return np.array([math.inf if abs(one) > largest else one for one in values], np.float64)


def _fits(values: Sequence[int]) -> bool:
    return not values or (min(values) >= 0 and max(values) <= LARGEST_ID)


def _are_boxes(values: Sequence[Any]) -> bool:
    return (
        set(map(type, values)) <= {list}
        and set(map(len, values)) <= {4}
        and set(map(type, chain.from_iterable(values))) <= {int, float}
    )
