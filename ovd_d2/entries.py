"""What a category is described by: words, sentences and example images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ovd_d2.errors import SetupError, brief
from ovd_d2.files import read_text, sha256_file

Box: TypeAlias = tuple[float, float, float, float]
_KEYS = ("name", "synonyms", "descriptions", "examples", "novel")


@dataclass(frozen=True)
class Example:
    """An image of a thing.

    Attributes:
        image: file, or the content of one.
        box: XYXY in pixels of the image as its EXIF orientation turns it; None: all of it.
    """

    image: str | bytes
    box: Box | None = None

    @property
    def label(self) -> str:
        """The file, for messages."""
        return self.image if isinstance(self.image, str) else "image"

    def sha256(self) -> str:
        """Of the file, 64 hexadecimal characters."""
        if isinstance(self.image, str):
            return sha256_file(self.image)
        return hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A category to be.

    Attributes:
        name: what it is called.
        synonyms: other words for it; a region is as similar to it as to the best of its words.
        descriptions: whole sentences, averaged with the name.
        examples: images of it.
        novel: without boxes in training.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    novel: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The name and its synonyms."""
        return (self.name, *self.synonyms)


def read_entries(path: Path) -> list[Entry]:
    """Entries of a YAML list; see docs/predicting.md for its form.

    Relative paths of images start at the file's folder.

    Raises:
        SetupError: every entry that cannot be one, by its number.
        FileNotFoundError: no such file.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SetupError([f"{path}: not YAML ({' '.join(str(error).split())})"]) from error
    if not isinstance(content, list) or not content:
        raise SetupError([f"{path}: holds {brief(content)}, expected a list of '- name: ...'"])
    entries, problems = [], []
    for number, one in enumerate(content, 1):
        try:
            entries.append(_entry({"name": one} if isinstance(one, str) else one, path.parent))
        except ValueError as error:
            problems.append(f"{path}: entry {number}: {error}")
    if problems:
        raise SetupError(problems)
    return entries


def entries_of_text(text: str) -> list[Entry]:
    """Of "red anchor, sofa | couch": commas between entries, | between words for one thing."""
    entries = []
    for words in text.split(","):
        name, *synonyms = (word.strip() for word in words.split("|"))
        entries.append(Entry(name, tuple(synonyms)))
    return entries


def with_example(entries: Sequence[Entry], name: str, example: Example) -> list[Entry]:
    """Entries with one more example for a name, which is an entry of its own where none has it."""
    found = list(entries)
    if all(one.name != name for one in found):
        found.append(Entry(name))
    return [
        replace(one, examples=(*one.examples, example)) if one.name == name else one
        for one in found
    ]


def _entry(content: Any, folder: Path) -> Entry:
    if not isinstance(content, dict):
        raise ValueError(f"is {brief(content)}, expected 'name: ...'")
    if unknown := [key for key in content if key not in _KEYS]:
        raise ValueError(f"unknown key {brief(unknown[0])}; known: {', '.join(_KEYS)}")
    name, novel = content.get("name"), content.get("novel", False)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"'name' is {brief(name)}, expected a text (YAML: quote yes, no, 1)")
    if not isinstance(novel, bool):
        raise ValueError(f"'novel' of '{name}' is {brief(novel)}, expected true or false")
    examples = content.get("examples") or []
    if not isinstance(examples, list):
        raise ValueError(f"'examples' of '{name}' is {brief(examples)}, expected a list")
    return Entry(
        name=name.strip(),
        synonyms=_texts(content, "synonyms"),
        descriptions=_texts(content, "descriptions"),
        examples=tuple(_example(one, folder) for one in examples),
        novel=novel,
    )


def _texts(content: dict[str, Any], key: str) -> tuple[str, ...]:
    values = content.get(key) or []
    if not isinstance(values, list) or not all(isinstance(x, str) and x.strip() for x in values):
        raise ValueError(f"'{key}' is {brief(values)}, expected a list of texts")
    return tuple(value.strip() for value in values)


def _example(content: Any, folder: Path) -> Example:
    if isinstance(content, str):
        return Example(str(folder / content))
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise ValueError(f"example {brief(content)}, expected a file or {{image: ..., box: ...}}")
    if unknown := set(content) - {"image", "box"}:
        raise ValueError(f"example {content['image']}: unknown key {brief(min(unknown))}")
    box = content.get("box")
    return Example(str(folder / content["image"]), None if box is None else checked_box(box))


def checked_box(box: Sequence[Any]) -> Box:
    """XYXY with some area.

    Raises:
        ValueError: four such numbers are not there.
    """
    is_numbers = isinstance(box, (list, tuple)) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in box
    )
    if not is_numbers or len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"box {brief(box)}, expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    return (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
