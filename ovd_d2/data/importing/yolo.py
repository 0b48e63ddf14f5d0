"""YOLO: a text file per image, names in a yaml file, classes.txt or obj.names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ovd_d2.data.importing.found import (
    Account,
    Choices,
    FoundImage,
    FoundObject,
    FoundSet,
    Unusable,
    around,
)
from ovd_d2.data.importing.source import NotFound, Source
from ovd_d2.errors import SetupError, brief
from ovd_d2.files import read_text

NAME, TITLE = "yolo", "YOLO (a text file per image, names in a yaml file)"
_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_NO_LABELS = ("classes", "readme", "license", "requirements")
_BOX = 5  # class, x, y, width, height


def recognises(source: Source) -> bool:
    return bool(_yaml_of(source) or _list_of(source))


def read(source: Source, choices: Choices, account: Account) -> FoundSet:
    """The splits of the yaml file; without one, those that folders are called.

    Raises:
        SetupError: no file has names, or none of the yaml's folders is there.
    """
    file, content = _yaml_of(source) or (None, {})
    names = _names(content["names"], file) if file else _listed(source)
    found = FoundSet(names=names)
    keypoints = _keypoint_values(content)
    used: set[Path] = set()
    for split, image in _images(source, content, file, account):
        label = _label_of(image)
        if not label.is_file():
            continue  # counted with all images that have no annotation
        used.add(label)
        objects = tuple(_objects(label, names, keypoints, source, account))
        found.add(split, FoundImage(image, objects, source.short(label), relative=True))
    _report_unused(used, source, account)
    return found


def _yaml_of(source: Source) -> tuple[Path, dict[str, Any]] | None:
    for file in source.files(".yaml", ".yml"):
        try:
            content = yaml.safe_load(read_text(file))
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and "names" in content:
            return file, content
    return None


def _list_of(source: Source) -> Path | None:
    files = source.files(".txt", ".names")
    return next((one for one in files if one.name in ("classes.txt", "obj.names")), None)


def _listed(source: Source) -> list[str]:
    file = _list_of(source)
    if file is None:
        raise SetupError(
            [f"{source.root}: no file has the names: expected a yaml file with 'names'"]
        )
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _names(names: Any, file: Path) -> list[str]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise SetupError(
            [f"{file}: names: expected [ant, bee] or 0: ant, 1: bee, ..., found {brief(names)}"]
        )
    return [str(one).strip() for one in names]


def _keypoint_values(content: dict[str, Any]) -> int:
    """How many numbers of keypoints follow a box: `kpt_shape`."""
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and all(isinstance(one, int) for one in shape):
        return int(shape[0] * shape[1]) if len(shape) == 2 else 0
    return 0


def _images(
    source: Source, content: dict[str, Any], file: Path | None, account: Account
) -> Iterator[tuple[str, Path]]:
    keys = [key for key in _KEYS if content.get(key)]
    if file is None or not keys:
        yield from ((source.split_of(one), one) for one in source.images)
        return
    missing = []
    for key in keys:
        values = content[key] if isinstance(content[key], list) else [content[key]]
        for value in values:
            images = _of_entry(source, file, str(content.get("path") or ""), str(value), account)
            missing += [] if images else [f"{file}: {key}: no image in '{value}'"]
            yield from ((_KEYS[key], one) for one in images)
    if len(missing) == len(keys):
        raise SetupError([*missing, "put the images there, or name their folder with --images"])


def _of_entry(source: Source, file: Path, path: str, value: str, account: Account) -> list[Path]:
    """The images of a folder, or of a text file that lists them, wherever the yaml was written."""
    value = value.replace("\\", "/")
    inner = "/".join(part for part in value.split("/") if part not in ("..", ".", ""))
    for start in (file.parent / path, file.parent, source.images_root):
        for name in (value, inner):
            place = Path(os.path.normpath(start / name))
            if place.suffix == ".txt" and place.is_file() and place.is_relative_to(source.root):
                return list(_of_list(source, place, account))
            if images := [one for one in source.images if one.is_relative_to(place)]:
                return images
    return []


def _of_list(source: Source, file: Path, account: Account) -> Iterator[Path]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield source.find(line, file.parent)
        except NotFound as error:
            account.left_out("image", str(error), f"{source.short(file)}, line {number}")


def _label_of(image: Path) -> Path:
    """Beside the image, or in the folder `labels` in the place of `images`."""
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            swapped = Path(*parts[:k], "labels", *parts[k + 1 :]).with_suffix(".txt")
            if swapped.is_file():
                return swapped
            break
    return image.with_suffix(".txt")


def _objects(
    label: Path, names: Sequence[str], keypoints: int, source: Source, account: Account
) -> Iterator[FoundObject]:
    try:
        lines = read_text(label).splitlines()
    except ValueError as error:
        account.left_out("file", "it cannot be read", f"{source.short(label)}: {error}")
        return
    for number, line in enumerate(lines, 1):
        where = f"{source.short(label)}, line {number}"
        if not line.strip():
            continue
        try:
            yield _object(line.split(), names, keypoints, where)
        except Unusable as error:
            account.left_out("box", str(error), where)


def _object(words: list[str], names: Sequence[str], keypoints: int, where: str) -> FoundObject:
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        raise Unusable("a line that is not numbers") from None
    if not number.is_integer() or not 0 <= number < len(names):
        raise Unusable("its class has no name in the list")
    name = names[int(number)]
    if len(words) == _BOX + keypoints:
        x, y, width, height = values[:4]
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return FoundObject(name, box, where)
    if len(values) < 6 or len(values) % 2:
        raise Unusable(
            "a line of other numbers than class, x, y, width, height or class and corners "
            "(6 numbers: a detection with its confidence)"
        )
    return FoundObject(name, around(values), where, (tuple(values),))


def _report_unused(used: set[Path], source: Source, account: Account) -> None:
    """Label files without an image."""
    folders = {one.parent for one in used}
    for file in source.files(".txt"):
        is_label = file.parent in folders and not file.stem.lower().startswith(_NO_LABELS)
        if is_label and file not in used:
            account.left_out("image", "its image is not in the folder", source.short(file))
