"""What the readers of all formats find, and the account of what is left out or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

Corners = tuple[float, float, float, float]
EXCHANGED = "its corners were exchanged"


@dataclass(frozen=True)
class FoundObject:
    """An object as its file has it.

    Attributes:
        name: of its category.
        box: XYXY; pixels counted from 0, or shares of the image's size.
        where: its place in the files, for people.
        polygons: [x, y, x, y, ...] each, in the unit of the box.
        rle: COCO's RLE of the whole image, where the mask is not made of polygons.
        crowd: a region of many, which is neither trained on nor counted.
    """

    name: str
    box: Corners
    where: str
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: Mapping[str, Any] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class FoundImage:
    """An image that has been annotated.

    Attributes:
        file: of the image, absolute.
        objects: none where the annotation says that nothing is there.
        where: the place of its annotation, for people.
        size: (width, height) in px, as annotated; None: not said.
        relative: boxes and polygons are shares of the size.
    """

    file: Path
    objects: tuple[FoundObject, ...]
    where: str
    size: tuple[int, int] | None = None
    relative: bool = False


@dataclass
class FoundSet:
    """A data set.

    Attributes:
        splits: "train", "val", "test" or, where none is said, "" -> its images.
        names: of the categories, in order, where the format lists them.
    """

    splits: dict[str, list[FoundImage]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def add(self, split: str, image: FoundImage) -> None:
        self.splits.setdefault(split, []).append(image)


class Case(NamedTuple):
    """One thing that was not taken as it is.

    Attributes:
        treatment: "left out" or "changed".
        what: "image", "box", "mask", "file".
        why: in words that several cases share.
        where: its place in the files.
    """

    treatment: str
    what: str
    why: str
    where: str


class Unusable(ValueError):
    """An entry that is left out; the message says why in words that several of them share."""


# What an entry of a JSON or XML file can raise that is not as its format has it.
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    OSError,
    Image.DecompressionBombError,
)


def said_by(error: Exception) -> str:
    """Why an entry is left out."""
    return str(error) if isinstance(error, Unusable) else "its entry is not as the format has it"


class Account:
    """Everything that was not taken as it is.

    Attributes:
        cases: in the order of their discovery.
        notes: what is odd, but may be meant.
    """

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.notes: list[str] = []

    def left_out(self, what: str, why: str, where: str | Path) -> None:
        self.cases.append(Case("left out", what, why, str(where)))

    def changed(self, what: str, why: str, where: str | Path) -> None:
        self.cases.append(Case("changed", what, why, str(where)))

    def rows(self) -> list[tuple[str, str, int, str, str]]:
        """(treatment, what, number, why, first place), the most frequent first."""
        first: dict[tuple[str, str, str], tuple[int, str]] = {}
        for one in self.cases:
            key = (one.treatment, one.what, one.why)
            count, where = first.get(key, (0, one.where))
            first[key] = (count + 1, where)
        rows = [(t, what, n, why, where) for (t, what, why), (n, where) in first.items()]
        return sorted(rows, key=lambda row: (row[0] != "left out", -row[2]))


@dataclass(frozen=True)
class Choices:
    """What the formats leave open.

    Attributes:
        from_zero: VOC's boxes count pixels from 0, not from 1 as VOC itself does.
        difficult: VOC's objects that are marked difficult are taken, too.
        predictions: Label Studio's predictions count where nobody has annotated a task.
    """

    from_zero: bool = False
    difficult: bool = True
    predictions: bool = False


def around(points: Sequence[float]) -> Corners:
    """The box around [x, y, x, y, ...]."""
    return (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))


_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}


def split_of_words(words: Sequence[str]) -> str:
    """ "train", "val" or "test" of the first word that says so, e.g. a folder's name; or ""."""
    return next((_SPLIT_OF[word.lower()] for word in words if word.lower() in _SPLIT_OF), "")
