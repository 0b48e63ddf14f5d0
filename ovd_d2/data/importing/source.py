"""The files of a data set: images found by name within its folder, JSON and XML read safely."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from ovd_d2.data.image_faults import printable
from ovd_d2.data.importing.found import Unusable, split_of_words
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


_LOOKED_AT = 20  # files, until one is of a format


class NotFound(Unusable):
    """No image, or more than one, goes by a name; the message says why in shared words."""


class Source:
    """A data set's folder, or one file of annotations in it.

    Attributes:
        root: absolute; names start here.
        images_root: images are looked for here only.
    """

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """
        Args:
            path: a folder, or the file of its annotations.
            images: a folder that holds the images, where it is not the same.

        Raises:
            SetupError: a path is not there.
        """
        self.given = Path(os.path.abspath(path))
        if not self.given.exists():
            raise SetupError([f"{path}: no such folder or file; name the data set's folder"])
        if images is not None and not images.is_dir():
            raise SetupError([f"--images {images}: no such folder"])
        self.root = self.given if self.given.is_dir() else self.given.parent
        self.images_root = self.root if images is None else Path(os.path.abspath(images))
        self._files: dict[str, list[Path]] = defaultdict(list)
        for file in _walk(self.root):
            self._files[file.suffix.lower()].append(file)
        elsewhere = self._of(IMAGES) if images is None else _walk(self.images_root)
        self.images = [one for one in elsewhere if one.suffix.lower() in IMAGES]
        self._by_path = {_normal(one.as_posix()): one for one in self.images}
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for one in self.images:
            self._by_name[_normal(one.name)].append(one)
            self._by_stem[_normal(one.stem)].append(one)

    def files(self, *suffixes: str) -> list[Path]:
        """The files with these suffixes, in order; the given file alone, where one was given."""
        if self.given.is_file():
            return [self.given] if self.given.suffix.lower() in suffixes else []
        return self._of(suffixes)

    def _of(self, suffixes: tuple[str, ...]) -> list[Path]:
        return sorted(one for suffix in suffixes for one in self._files[suffix])

    def short(self, path: Path) -> str:
        """A path from the root on, for messages."""
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def split_of(self, path: Path) -> str:
        """What the folders above a file say: train/a.xml is of "train"."""
        root = self.root if path.is_relative_to(self.root) else self.images_root
        return split_of_words(path.relative_to(root).parts[:-1])

    def find(self, name: str, beside: Path) -> Path:
        """The image that a file of annotations names; never one outside of the folder.

        Args:
            name: a path or address as some system wrote it, or its end.
            beside: the folder of that file.

        Raises:
            NotFound: none, or more than one that it may be.
        """
        name = _normal(name.strip().replace("\\", "/"))
        for folder in (beside, self.root, self.images_root):
            whole = Path(os.path.normpath(folder / name)).as_posix()
            if whole in self._by_path:
                return self._by_path[whole]
        parts = [part for part in PurePosixPath(name).parts if part not in ("..", "/", ".")]
        is_foreign = len(parts) < len(PurePosixPath(name).parts) or ":" in name
        ends = self._by_name.get(parts[-1], []) if parts else []
        for length in range(len(parts), 0, -1):
            end = "/" + "/".join(parts[-length:])
            matches = [one for one in ends if _normal(one.as_posix()).endswith(end)]
            if len(matches) > 1:
                raise NotFound("several images go by its name")
            if matches:
                return matches[0]
            if not is_foreign:
                break
        raise NotFound("its image is not in the folder")

    def find_stem(self, stem: str, beside: Path) -> Path:
        """The image of a name without suffix: the nearest one.

        Raises:
            NotFound: as :meth:`find`.
        """
        ones = self._by_stem.get(_normal(stem), [])
        for folder in (beside, beside.parent, self.images_root):
            near = [one for one in ones if one.is_relative_to(folder)]
            if folder == beside:
                near = [one for one in near if one.parent == beside]
            if len(near) > 1:
                raise NotFound("several images go by its name")
            if near:
                return near[0]
        raise NotFound("its image is not in the folder")

    @lru_cache(maxsize=32)  # noqa: B019 (one source lives as long as the program)
    def json(self, file: Path) -> Any:
        """The content of a JSON file.

        Raises:
            ValueError: it is none; the message says why.
        """
        try:
            return json.loads(read_text(file))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{file}: not JSON, or cut short ({error})") from error

    def has_json(self, is_format: Callable[[Any], bool]) -> bool:
        """Whether one of the first files is JSON whose content is of a format."""
        return any(self.is_json(one, is_format) for one in self._first(".json"))

    def is_json(self, file: Path, is_format: Callable[[Any], bool]) -> bool:
        """Whether a file is JSON whose content is of a format."""
        return _is(partial(self.json, file), is_format)

    def has_xml(self, root: str) -> bool:
        """Whether one of the first files is XML with this root element."""
        return any(
            _is(partial(read_xml, one), lambda found: found.tag == root)
            for one in self._first(".xml")
        )

    def _first(self, suffix: str) -> list[Path]:
        return self.files(suffix)[:_LOOKED_AT]


def _is(read: Callable[[], Any], is_format: Callable[[Any], bool]) -> bool:
    try:
        return is_format(read())
    except (ValueError, OSError):
        return False


class _NoDoctype(ElementTree.TreeBuilder):
    """Annotations need no document type, whose entities could fill the memory or read files."""

    def doctype(self, *_: Any) -> None:
        raise ValueError("it declares a document type, which annotations need not")


def read_xml(file: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
        ValueError: not XML, or with a document type; the message says which.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(file.read_bytes())
        root: ElementTree.Element = parser.close()
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"not XML, or cut short ({error})") from error
    return root


def _normal(text: str) -> str:
    """macOS writes an umlaut as two characters, others as one."""
    return unicodedata.normalize("NFC", text)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, links to folders followed, in order; hidden and macOS's folders left out."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith((".", "__MACOSX")))
        yield from (Path(place, one) for one in sorted(files) if not one.startswith("."))
