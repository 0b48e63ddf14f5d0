"""What a run has found so far, on the disk image by image, so that it can go on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write
from ovd_d2.predict_files.outputs import Noted

PROGRESS, ALL_PROGRESS = "progress.jsonl", "progress*.jsonl"


class Journal:
    """What was found so far, a line of JSON per image; the first says what was looked for.

    Attributes:
        path: of the file.
        found: key of an image -> its line.
        done: what others have noted.
    """

    def __init__(self, path: Path, identity: str, done: Mapping[str, Noted]) -> None:
        self.path = path
        self.done = done
        self.found: dict[str, Noted] = {}
        self._identity = identity
        self._stream: IO[str] | None = None
        if path.is_file():
            self._read()

    def __contains__(self, key: object) -> bool:
        return key in self.found or key in self.done

    def add(self, key: str, content: Noted) -> None:
        if self._stream is None:
            self.begin()
        self.found[key] = content
        self._put({"key": key, **content})

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def begin(self) -> None:
        """The file anew: a line that was cut short goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary, temporary.open("w", encoding="ascii") as stream:
            self._stream = stream
            self._put({"identity": self._identity})
            for key, content in self.found.items():
                self._put({"key": key, **content})
        self._stream = self.path.open("a", encoding="ascii")

    def _put(self, content: Mapping[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(content) + "\n")
        self._stream.flush()

    def _read(self) -> None:
        first, *rest = self.path.read_text(encoding="ascii").splitlines() or [""]
        if _parsed(first).get("identity") != self._identity:
            raise SetupError(
                [
                    f"--output: {self.path} is of a run with other names, another model or "
                    "other options that did not end: name another folder, or remove that file"
                ]
            )
        for line in map(_parsed, rest):
            if "key" in line:
                self.found[line.pop("key")] = line


def _parsed(line: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(line)
    except ValueError:  # cut short
        return {}
    return content


def progress_file(rank: int) -> str:
    return PROGRESS if rank == 0 else f"progress-{rank}.jsonl"


def joined_progress(output: Path, identity: str) -> dict[str, Noted]:
    """What processes of an earlier run have noted; rank 0's file holds all of it afterwards."""
    journal = Journal(output / PROGRESS, identity, {})
    others = [one for one in output.glob(ALL_PROGRESS) if one != journal.path]
    for one in others:
        journal.found |= Journal(one, identity, {}).found
    if others:
        journal.begin()
        journal.close()
    for one in others:
        one.unlink()
    return journal.found
