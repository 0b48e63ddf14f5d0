"""Reads a large JSON object part by part: little memory, a bar over bytes, errors that say where.

`json.load` holds the text and every object of a file at once (5 GB for LVIS) and says nothing for
half a minute. Here the elements of the large lists are handed on in batches and forgotten.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
from tqdm import tqdm

from ovd_d2.data.problems import Problem

CHUNK = 1 << 22  # bytes read at a time
PIECE = 1 << 16  # characters parsed at a time: what they become stays in the processor's cache
BATCH = 256  # elements handed on at a time, about: larger ones leave the cache, twice as slow
BAR_DELAY = 2.0  # seconds before a progress bar appears

_BLANK = re.compile(r"[ \t\n\r]*")
_NEXT_OBJECT = re.compile(r"[ \t\n\r]*,[ \t\n\r]*\{")
# The longer marks first: UTF-32's begins with UTF-16's.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class AnnotationFileError(ValueError):
    """A file that cannot be read as an annotation file; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


def file_problem(path: Path, what: str, expected: str, found: str, fix: str) -> Problem:
    """What is wrong with a file as a whole."""
    return Problem(str(path), "file", f"file {what}", 1, 0, path.name, expected, found, fix)


def read_parts(
    path: Path,
    handlers: Mapping[str, Callable[[list[Any]], None]],
    *,
    exact: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads a file whose top level is an object; the lists of `handlers` come in batches.

    Args:
        path: UTF-8 JSON, with or without a byte order mark.
        handlers: key of the top level -> what takes its elements, some hundred at a time. A
            value that is no list is returned like any other.
        exact: integers of any size, five times as slow; else those from 2**64 on become floats.
        progress: show a bar when it takes longer than two seconds.

    Returns:
        Every key of the top level in the file's order; None for the lists that were handed on.

    Raises:
        FileNotFoundError: no such file.
        AnnotationFileError: not UTF-8, not JSON, cut short, nested too deep, not an object, or
            with a key of the top level twice.
    """
    with _Scanner(path, exact=exact, progress=progress) as scanner:
        if scanner.peek() != "{":
            found = type(scanner.value()).__name__
            raise scanner.error("is not a JSON object", "{...}", f"a {found}", _FORMAT)
        scanner.take()
        content: dict[str, Any] = {}
        for _ in scanner.items("}"):
            key = scanner.key()
            if key in content:
                raise scanner.error(f"has the key '{key}' twice", "it once", "it again", _COPY)
            if key in handlers and scanner.peek() == "[":
                _hand_on(scanner, handlers[key])
                content[key] = None
            else:
                content[key] = scanner.value()
        if scanner.peek():
            raise scanner.not_json("text after the end of the object")
        return content


_FORMAT = "give a COCO- or LVIS-format file: images, annotations and categories"
_COPY = "copy or export the file again"


def _hand_on(scanner: _Scanner, handle: Callable[[list[Any]], None]) -> None:
    scanner.take()
    batch: list[Any] = []
    for _ in scanner.items("]"):
        batch += scanner.values()
        if len(batch) >= BATCH:
            handle(batch)
            batch = []
    if batch:
        handle(batch)


class _Scanner:
    """A window that moves over the text of a file; values come from the C parser of `json`."""

    def __init__(self, path: Path, *, exact: bool, progress: bool) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"annotation file not found: {path}")
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0  # in _text
        self._passed = 0  # characters of the file before _text
        self._chunk = CHUNK
        self._ended = False
        self._exact = exact
        self._slow_until = 0  # in _text: up to here orjson has given up
        self._bar = tqdm(
            total=path.stat().st_size,
            desc=f"reading {path.name}",
            unit="B",
            unit_scale=True,
            delay=BAR_DELAY,
            disable=not progress,
        )
        self._stream = path.open("rb")

    def __enter__(self) -> _Scanner:
        self._check_encoding()
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._bar.close()

    def peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            match = _BLANK.match(self._text, self._at)
            assert match is not None  # it matches nothing, too
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._refill():
                return ""

    def take(self) -> None:
        """Passes the character that `peek` gave."""
        self._at += 1

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self.not_json(f"expected '{character}'")
        self.take()

    def key(self) -> str:
        """The key of an object's next item, and the colon after it."""
        if self.peek() != '"':
            raise self.not_json("expected a key in double quotes")
        key: str = self.value()
        self.expect(":")
        return key

    def items(self, end: str) -> Iterator[None]:
        """Yields at every item of a list or object, whose opening bracket has been taken."""
        if self.peek() == end:
            self.take()
            return
        while True:
            yield
            character = self.peek()
            if character == end:
                self.take()
                return
            self.expect(",")

    def value(self) -> Any:
        """The next value, whole: the window grows until it holds it."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                # A value larger than the window is parsed again with every chunk: let them grow.
                self._chunk *= 2
                if self._refill():
                    continue
                self._at = max(self._at, min(error.pos, len(self._text)))
                raise self.not_json(error.msg) from error
            except RecursionError as error:
                raise self.error(
                    "is nested too deep", "a few levels", f"over 900 {self._where()}", _COPY
                ) from error
            except ValueError as error:  # a number of thousands of digits
                raise self.not_json(str(error)) from error
            if end < len(self._text) or not self._refill():
                self._at = end
                self._chunk = CHUNK
                return value
            # A number at the end of the window may go on in the next chunk: parse it again.

    def values(self) -> list[Any]:
        """One or more elements of a list of objects.

        orjson is five times as fast, but takes neither part of a text nor NaN: it is given the
        text up to the end of an object, and where it refuses, `json` has the last word.
        """
        self.peek()
        if self._exact or self._at < self._slow_until:
            return [self.value()]
        if len(self._text) - self._at < PIECE:
            self._refill()
        end = self._end_of_object()
        if end < 0:
            return [self.value()]
        try:
            elements: list[Any] = orjson.loads(f"[{self._text[self._at : end]}]")
        except orjson.JSONDecodeError:
            self._slow_until = end
            return [self.value()]
        self._at = end
        return elements

    def _end_of_object(self) -> int:
        """Behind the last object in the next piece that is followed by another; -1: none is.

        Inside of a list in an object this looks alike: then the piece is no JSON.
        """
        end = self._at + PIECE
        while (end := self._text.rfind("}", self._at, end)) >= 0:
            if _NEXT_OBJECT.match(self._text, end + 1):
                return end + 1
        return -1

    def error(self, what: str, expected: str, found: str, fix: str) -> AnnotationFileError:
        return AnnotationFileError(file_problem(self._path, what, expected, found, fix))

    def not_json(self, reason: str) -> AnnotationFileError:
        found = f"{reason} {self._where()}"
        return self.error("is not JSON, or cut short", "a whole JSON file", found, _COPY)

    def _where(self) -> str:
        return f"at character {self._passed + self._at:,}"

    def _refill(self) -> bool:
        """Forgets what was passed and reads on; False at the end of the file."""
        if self._ended:
            return False
        data = self._stream.read(self._chunk)
        self._bar.update(len(data))
        self._ended = not data
        try:
            decoded = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            found = f"byte 0x{error.object[error.start]:02x} that is not"
            raise self.error("is not UTF-8 text", "UTF-8", found, "save it as UTF-8") from error
        self._text = self._text[self._at :] + decoded
        self._passed += self._at
        self._slow_until -= self._at
        self._at = 0
        return not self._ended or bool(decoded)

    def _check_encoding(self) -> None:
        beginning = self._stream.read(4)
        self._stream.seek(0)
        for mark, encoding in _OTHER_ENCODINGS.items():
            if beginning.startswith(mark):
                fix = "save it as UTF-8 (PowerShell: Out-File -Encoding utf8)"
                raise self.error("is not UTF-8 text", "UTF-8", encoding, fix)
