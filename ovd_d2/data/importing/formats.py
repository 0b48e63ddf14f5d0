"""The formats that can be imported, and which one a folder is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ovd_d2.data.importing import coco, csv_table, cvat, label_studio, labelme, voc, yolo
from ovd_d2.data.importing.found import Account, Choices, FoundSet
from ovd_d2.data.importing.source import Source
from ovd_d2.errors import SetupError


@dataclass(frozen=True)
class Reader:
    """A format.

    Attributes:
        title: for people.
        recognises: whether a folder or file looks like it.
        read: all of it.
    """

    title: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source, Choices, Account], FoundSet]


READERS = {
    one.NAME: Reader(one.TITLE, one.recognises, one.read)
    for one in (voc, yolo, coco, labelme, cvat, label_studio, csv_table)
}


def format_of(source: Source) -> str:
    """The key of `READERS` whose files are there.

    Raises:
        SetupError: none, or several.
    """
    found = [name for name, reader in READERS.items() if reader.recognises(source)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SetupError([f"{source.given} looks like {' and '.join(found)}: choose by --format"])
    known = "; ".join(f"{name}: {reader.title}" for name, reader in READERS.items())
    raise SetupError([f"{source.given} has no annotations of a format that is known ({known})"])
