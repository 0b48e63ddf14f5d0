"""Which image a record belongs to: ids are only numbers, and two data sets use the same ones.

`images.json` in a store lists the images of its data set. It holds, byte for byte, the text whose
hash is the data set's fingerprint in the manifest. docs/cache-format.md describes it.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ovd_d2.cache.manifest import CacheError, DamagedFileError, DatasetInfo, Manifest, local_folder
from ovd_d2.errors import brief
from ovd_d2.files import atomic_write, read_bounded

IMAGES_FILE = "images.json"
ID_RANGE = "whole numbers from 0 to 2**63 - 1"
_MAX_IMAGE_BYTES = 4096  # of a line of the list; a file name has at most 255 characters
_SIDES = (int, type(None))
_ROW_TYPES = {(int, str, height, width) for height in _SIDES for width in _SIDES}


class ImageIdentity(NamedTuple):
    """What an image is, wherever it lies and whatever its number.

    Attributes:
        file_name: without folders.
        height, width: in pixels, from the annotation file; None where it does not say.
    """

    file_name: str
    height: int | None
    width: int | None

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> ImageIdentity:
        """Of an image entry (file_name, image_id, height, width)."""
        name = os.path.basename(entry["file_name"])  # noqa: PTH119 (Path is ten times slower)
        return cls(name, _pixels(entry, "height"), _pixels(entry, "width"))

    def fits(self, other: ImageIdentity) -> bool:
        """The same image, as far as both say."""
        return self.file_name == other.file_name and all(
            mine is None or theirs is None or mine == theirs
            for mine, theirs in zip(self[1:], other[1:], strict=True)
        )

    def __str__(self) -> str:
        size = ["?" if side is None else str(side) for side in (self.height, self.width)]
        return f"{self.file_name} ({' x '.join(size)})"


ImageList = dict[int, ImageIdentity]


def is_image_id(value: object) -> bool:
    """A whole number (Python's or NumPy's) that a store can hold."""
    try:
        return not isinstance(value, bool) and 0 <= operator.index(value) < 2**63  # type: ignore[arg-type]
    except TypeError:
        return False


def id_problems(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """At most one line: how many image ids no store can hold, and the first of them."""
    ids = [entry["image_id"] for entry in entries]
    wrong = [image_id for image_id in ids if not is_image_id(image_id)]
    if not wrong:
        return []
    return [
        f"{len(wrong)} of {len(ids)} image ids cannot be stored, first: {brief(wrong[0])}; "
        f"expected {ID_RANGE}: number the images of the annotation file"
    ]


def entry_problems(entries: Collection[Mapping[str, Any]], top_k: int | None = None) -> list[str]:
    """Why a store of the best `top_k` proposals per image cannot be made for these images."""
    if problems := id_problems(entries):
        return problems
    counts = Counter(entry["image_id"] for entry in entries)
    if double := [image_id for image_id, count in counts.items() if count > 1]:
        names = [entry["file_name"] for entry in entries if entry["image_id"] == double[0]]
        problems.append(
            f"{len(double)} image ids occur more than once, first: {double[0]} of "
            f"{' and '.join(names[:2])}; give every image of the annotation file an id of its own"
        )
    if not counts:
        problems.append("it has no images")
    if top_k is not None and top_k < 1:
        problems.append(f"top_k is {top_k}, expected at least 1 or None")
    return problems


def dataset_info(name: str, entries: Sequence[Mapping[str, Any]]) -> DatasetInfo:
    """What a manifest says of the data set with these images; errors of `dataset_fingerprint`."""
    return DatasetInfo(name, dataset_fingerprint(entries), len(entries))


def dataset_fingerprint(entries: Iterable[Mapping[str, Any]]) -> str:
    """Fingerprint of the images of a data set in Detectron2's format, whatever their order.

    Image id, file name without folders (a data set may be moved), height and width count;
    annotations do not: base-only and full versions of one split share their proposals.

    Raises:
        CacheError: an image id that no store can hold, or a size that is no number of pixels.
    """
    return _digest(_list_content(entries))


def image_list(dataset: DatasetInfo, entries: Collection[Mapping[str, Any]]) -> bytes:
    """The content of a store's list of images: `entries`, all of `dataset`.

    Raises:
        CacheError: an id twice, or these are not the images whose fingerprint `dataset` has.
    """
    if problems := entry_problems(entries):
        raise CacheError(f"data set '{dataset.name}': {'; '.join(problems)}")
    content = _list_content(entries)
    found = _digest(content)
    if (found, len(entries)) != (dataset.fingerprint, dataset.num_images):
        raise CacheError(
            f"these {len(entries)} images ({found}) are not those of the store, the "
            f"{dataset.num_images} ({dataset.fingerprint}) of data set '{dataset.name}'"
        )
    return content


def save_image_list(folder: Path, content: bytes) -> None:
    """Write the list of a store's images, unless it is there."""
    path = folder / IMAGES_FILE
    if not path.is_file() or path.read_bytes() != content:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)


def load_image_list(folder: Path, dataset: DatasetInfo) -> ImageList | None:
    """The images that a store was made for, by id; None: an older store without a list.

    Raises:
        DamagedFileError: the list is not the one that the manifest's fingerprint is of.
    """
    path = folder / IMAGES_FILE
    try:
        content = read_bounded(path, _MAX_IMAGE_BYTES * dataset.num_images)
        if _digest(content) != dataset.fingerprint:
            raise ValueError(
                f"it is the list of {_digest(content)}, the manifest is of {dataset.fingerprint}"
            )
        return _parse(content, dataset)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{path} is damaged ({error}). Delete it and run python "
            f"{add_list_command(folder, dataset)}: it is written anew"
        ) from error


def add_image_list(
    path: str | os.PathLike[str], entries: Collection[Mapping[str, Any]]
) -> tuple[Path, int]:
    """Give an older store the list of its images: all of the data set that it was made for.

    Returns: the file, and how many images it lists.

    Raises:
        CacheError: no store, or they are other images than then.
    """
    folder = local_folder(path)
    save_image_list(folder, image_list(Manifest.load(folder).dataset, entries))
    return folder / IMAGES_FILE, len(entries)


def add_list_command(folder: Path, dataset: DatasetInfo) -> str:
    """What a user runs to do so."""
    names = dataset.name.replace("+", " ")  # a merged store's name has a "+"
    return f"tools/cache.py add-image-list {folder} --dataset {names}"


def _list_content(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Canonical JSON, as `ovd_d2.files.fingerprint_json` hashes it: one row per image, by id."""
    known = list(entries)
    if problems := id_problems(known):
        raise CacheError(problems[0])
    found = {(int(entry["image_id"]), *ImageIdentity.of(entry)) for entry in known}
    rows = sorted(found, key=lambda row: (row[0], row[1], str(row[2:])))
    return json.dumps(rows, separators=(",", ":"), allow_nan=False).encode("ascii")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _pixels(entry: Mapping[str, Any], key: str) -> int | None:
    value = entry.get(key)
    if value is None or type(value) is int:
        return value
    try:
        if value == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass  # named below
    raise CacheError(
        f"image {brief(entry['image_id'])}: {key} is {brief(value)}, expected a number of pixels"
    )


def _parse(content: bytes, dataset: DatasetInfo) -> ImageList:
    listed: ImageList = {}
    for image_id, name, height, width in json.loads(content):
        types = (type(image_id), type(name), type(height), type(width))
        if types not in _ROW_TYPES or not is_image_id(image_id):
            raise ValueError(f"a row is {brief([image_id, name, height, width])}")
        listed[image_id] = ImageIdentity(name, height, width)
    if len(listed) != dataset.num_images:
        raise ValueError(f"it lists {len(listed)} images, the data set has {dataset.num_images}")
    return listed
