"""Which image files were found sound before, so that a second run need not read them again."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ovd_d2.files import atomic_write

logger = logging.getLogger(__name__)

_KEY = "ovd_d2_sound_images"
_VERSION = 1
_START = f'{{"{_KEY}": '  # with which every such file begins; others are never written over
_MOST = 1_000_000  # images remembered, the newest ones: about 100 MB
_PERIOD = 10.0  # seconds between two saves, at least
_SHARE = 20  # and at least as many times what the last one took


class Sound(NamedTuple):
    """A sound image file, as it was when it was read.

    Attributes:
        size, mtime_ns: of the file; where either differs, it is another file.
        height, width, turned: see `ovd_d2.data.images.Header`; turned is 0 or 1.
        decoded: 1: all its data were read, 0: its header alone.
    """

    size: int
    mtime_ns: int
    height: int
    width: int
    turned: int
    decoded: int


def default_memory() -> Path:
    """The memory of all data sets of this user, in the user's folder of caches."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "ovd_d2" / "images" / "sound.json"


class ImageMemory:
    """A JSON file of sound images by absolute path.

    Whatever is wrong with the file costs time, never an error: it is named in one warning and
    what it would have said is found again. Runs may share a file: each adds what it has found.
    """

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: read if it is there; None remembers nothing beyond this object.
        """
        self._path = path
        self._known = self._read()
        self._new: dict[str, Sound] = {}
        self._due = time.monotonic() + _PERIOD

    def find(self, path: str, status: os.stat_result) -> Sound | None:
        """What is known of the file at an absolute path, if it is still the same file."""
        sound = self._new.get(path) or _valid(self._known.get(path))
        if sound is None or sound[:2] != (status.st_size, status.st_mtime_ns):
            return None
        return sound

    def add(self, path: str, sound: Sound) -> None:
        """Remembers a file; now and then saves, so that an interrupted run loses little."""
        self._new[path] = sound
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Adds what is new to the file, and to what other runs have written there meanwhile."""
        if self._path is None or not self._new:
            return
        start = time.monotonic()
        self._known = {**self._read(), **self._new}
        if self._path is None:  # found foreign
            return
        newest = dict(list(self._known.items())[-_MOST:])
        text = json.dumps({_KEY: _VERSION, "files": newest}, separators=(",", ": "))
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_text(text, encoding="ascii")
        except OSError as error:
            self._go_without(f"cannot be written ({error})")
        self._new = {}
        self._due = time.monotonic() + max(_PERIOD, _SHARE * (time.monotonic() - start))

    def _read(self) -> Mapping[str, object]:
        if self._path is None:
            return {}
        try:
            text = self._path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._go_without(f"cannot be read ({error})")
            return {}
        if text and not text.startswith(_START):
            self._go_without("is another program's file")
            return {}
        return self._parsed(text)

    def _parsed(self, text: str) -> Mapping[str, object]:
        try:
            content = json.loads(text)
            files = content["files"] if content[_KEY] == _VERSION else None
        except (ValueError, KeyError, TypeError, RecursionError):
            files = None
        if not isinstance(files, dict):
            logger.warning("%s is damaged and is made anew: all images are read again", self._path)
            return {}
        return files

    def _go_without(self, reason: str) -> None:
        logger.warning("%s %s: the images found sound are not remembered", self._path, reason)
        self._path = None


def _valid(row: object) -> Sound | None:
    if isinstance(row, Sound):
        return row
    if not isinstance(row, list) or set(map(type, row)) != {int} or len(row) != len(Sound._fields):
        return None
    return Sound(*row)
