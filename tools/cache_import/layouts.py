"""The layouts in which other projects keep teacher embeddings of proposals.

Where each fact is from stands in docs/cache.md, "Convert". Nothing here executes a file: pickles go
through `ovd_d2.safe_pickle`, `.pth` files through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ovd_d2 import safe_pickle
from ovd_d2.cache import CacheError
from ovd_d2.files import fingerprint_json, sha256_file
from ovd_d2.safe_pickle import PickledArray, PickledTensor

Entry = Mapping[str, Any]  # of Detectron2's data set dicts: image_id, file_name, height, width

_MAX_EMBEDDING_BYTES = 4 * 8192  # a row of 8,192 float32: more than any CLIP has
_FILE_OVERHEAD_BYTES = 1 << 16  # of a .pth around its numbers


@dataclass(frozen=True)
class ForeignBoxes:
    """The proposals of one image, as they are stored.

    Attributes:
        boxes: (K, 4) float32, four numbers per box.
        scores: (K,) float32; None where the layout keeps none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32] | None


@dataclass(frozen=True)
class BoxTolerance:
    """How far a sound box may reach out of its image.

    Attributes:
        pixels: on each side.
        of_centre: only the box's centre must lie in the image; edges may lie anywhere.
    """

    pixels: float = 1.0
    of_centre: bool = False


class Layout(Protocol):
    """A way to keep proposals and embeddings."""

    name: str
    """What `tools/cache.py convert --layout` calls it."""
    recipe: Mapping[str, Any]
    """How the embeddings were made, for the manifest."""
    tolerance: BoxTolerance

    def problems(self, entries: Sequence[Entry]) -> list[str]:
        """Why `entries` cannot be converted, from names and counts alone."""

    def identity(self, entries: Sequence[Entry]) -> str:
        """Fingerprint of the proposals of `entries`."""

    def boxes(self, entry: Entry) -> ForeignBoxes:
        """The proposals of one image."""

    def read(self, entry: Entry) -> tuple[ForeignBoxes, torch.Tensor]:
        """The same and their embeddings, (K, D) float32 of any norm, row by row."""

    def unused(self, entries: Sequence[Entry]) -> int:
        """How many images of the layout are not among `entries`."""


class DetProLayout:
    """DetPro (dyabel/detpro): one `.pth` per image, in a zip or not, and an mmdet proposal pickle.

    The zip (or the folder it was made of) holds `<folders>/<split>/<file name without
    suffix>.pth`, each one float32 tensor (K, D) of unit rows. The pickle is a list of (K, 5) arrays
    x1, y1, x2, y2, score (or (K, 4) without score) in pixels of the original image, one per image
    in the order of the annotation file. Row i of a `.pth` belongs to row i of the image's array.

    Args:
        embeddings: the zip or the folder.
        proposals: the pickle.
        annotations: the COCO- or LVIS-format JSON whose order of images the pickle has.

    Raises:
        CacheError: a file is missing, damaged, or not of this layout.
    """

    name = "detpro"
    recipe: Mapping[str, Any] = {
        "converted_from": "detpro",
        "scales": [1.0, 1.5],
        "average": "sum-then-normalise",
        "corners": "floor-ceil-clamp",
        "pixels": "resized and perhaps mirrored, as in DetPro's training",
    }
    tolerance = BoxTolerance(pixels=1.0)

    def __init__(
        self,
        embeddings: str | os.PathLike[str],
        proposals: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
    ) -> None:
        self._place, self._pickle_path = Path(embeddings), Path(proposals)
        ids = _image_ids(Path(annotations))
        self._arrays = _proposal_arrays(self._pickle_path)
        if len(ids) != len(self._arrays):
            raise CacheError(
                f"{proposals} holds the proposals of {len(self._arrays)} images, {annotations} has "
                f"{len(ids)}: --annotations must be the file the proposals were made from"
            )
        self._position = {image_id: position for position, image_id in enumerate(ids)}
        self._annotations = annotations
        self._files = _open_files(Path(embeddings))
        self._names = _NameIndex(name for name in self._files.names() if name.endswith(".pth"))

    def problems(self, entries: Sequence[Entry]) -> list[str]:
        problems = self._names.problems(entries, str(self._place))
        unknown = [one["image_id"] for one in entries if one["image_id"] not in self._position]
        if unknown:
            problems.append(
                f"{len(unknown)} of {len(entries)} images are not in {self._annotations} (first "
                f"ids: {unknown[:5]})"
            )
        return problems

    def identity(self, entries: Sequence[Entry]) -> str:
        return f"detpro-{sha256_file(self._pickle_path)[:16]}"

    def boxes(self, entry: Entry) -> ForeignBoxes:
        array = self._arrays[self._position[entry["image_id"]]].to_numpy()
        if array.ndim != 2 or array.shape[1] not in (4, 5):
            raise CacheError(
                f"{self._pickle_path}: image {entry['image_id']} has an array {array.shape}, "
                "expected (K, 5) or (K, 4)"
            )
        array = array.astype(np.float32)
        return ForeignBoxes(array[:, :4], array[:, 4] if array.shape[1] == 5 else None)

    def read(self, entry: Entry) -> tuple[ForeignBoxes, torch.Tensor]:
        boxes = self.boxes(entry)
        name, rows = self._names.find(entry["file_name"]), len(boxes.boxes)
        place = f"{self._place}, {name}"
        tensor = _load_pth(self._unpack(name, rows, place), place)
        if rows == 0 and len(tensor) == 1:
            tensor = tensor[:0]  # mmdet puts one box of zeros where an image has no proposals
        if len(tensor) != rows:
            raise CacheError(
                f"{place} holds {len(tensor)} embeddings, {self._pickle_path} has {rows} proposals "
                f"for image {entry['image_id']}: they were not made from each other"
            )
        return boxes, tensor

    def unused(self, entries: Sequence[Entry]) -> int:
        return self._names.unused(entries)

    def _unpack(self, name: str, rows: int, place: str) -> bytes:
        size = self._files.size(name)
        limit = max(rows, 1) * _MAX_EMBEDDING_BYTES + _FILE_OVERHEAD_BYTES
        if size > limit:  # before it is read
            raise CacheError(f"{place} is {size:,} bytes, {rows} embeddings are at most {limit:,}")
        try:
            return self._files.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            raise CacheError(f"{place} is damaged ({error}); fetch it again") from error


class ObjectCentricLayout:
    """object-centric-ovd (hanoonaR/object-centric-ovd): one pickle an image in a folder.

    A pickle is a list of (box, embedding): box x1, y1, x2, y2 in pixels of the original image,
    best first and without its score; embedding a (1, D) tensor as CLIP gives it, not normalised.

    Args:
        folder: holds `<file name without suffix>.pkl`, also in folders below it.

    Raises:
        CacheError: there is no such folder, or no pickle in it.
    """

    name = "object-centric-ovd"
    recipe: Mapping[str, Any] = {
        "converted_from": "object-centric-ovd",
        "scales": [1.0],
        "average": "none",
        "corners": "as stored",
        "objectness": "not stored: 1",
    }
    # Boxes of a DETR: centre and size are fractions of the image, edges may lie outside.
    tolerance = BoxTolerance(of_centre=True)

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        names = [name for name in _FolderFiles(self._folder).names() if name.endswith(".pkl")]
        if not names:
            raise CacheError(f"{folder} holds no .pkl file, or is no folder")
        self._names = _NameIndex(names)

    def problems(self, entries: Sequence[Entry]) -> list[str]:
        return self._names.problems(entries, str(self._folder))

    def identity(self, entries: Sequence[Entry]) -> str:
        files = ((one["image_id"], self._folder / self._find(one)) for one in entries)
        sums = sorted((int(image_id), sha256_file(path)) for image_id, path in files)
        return f"object-centric-ovd-{fingerprint_json(sums)}"

    def boxes(self, entry: Entry) -> ForeignBoxes:
        return self.read(entry)[0]

    def read(self, entry: Entry) -> tuple[ForeignBoxes, torch.Tensor]:
        pairs = self._pairs(entry)
        boxes = np.array([box for box, _ in pairs], dtype=np.float32).reshape(-1, 4)
        rows = [row for _, row in pairs]
        if len({row.shape for row in rows}) > 1:
            raise CacheError(f"{self._folder / self._find(entry)} holds embeddings of two widths")
        return ForeignBoxes(boxes, None), torch.cat(rows) if rows else torch.zeros(0, 0)

    def unused(self, entries: Sequence[Entry]) -> int:
        return self._names.unused(entries)

    def _find(self, entry: Entry) -> str:
        return self._names.find(entry["file_name"])

    def _pairs(self, entry: Entry) -> list[tuple[list[float], torch.Tensor]]:
        path = self._folder / self._find(entry)
        content = _load_pickle(path)
        if not isinstance(content, list):
            raise CacheError(
                f"{path} holds a {type(content).__name__}, expected a list of (box, embedding); "
                "the pickles of classagnostic_distilfeats are meant"
            )
        return [_box_and_row(item, path) for item in content]


class _Files(Protocol):
    """Files by their names, in a zip or in a folder."""

    def names(self) -> Iterable[str]: ...

    def size(self, name: str) -> int: ...

    def read(self, name: str) -> bytes: ...


class _ZipFiles:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def names(self) -> Iterable[str]:
        return self._zip.namelist()

    def size(self, name: str) -> int:
        return self._zip.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        return self._zip.read(name)


class _FolderFiles:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Iterable[str]:
        paths = (path for path in self._path.glob("**/*") if path.is_file())
        return sorted(str(path.relative_to(self._path)) for path in paths)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


def _open_files(path: Path) -> _Files:
    if path.is_dir():
        return _FolderFiles(path)
    try:
        return _ZipFiles(path)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing") from None
    except zipfile.BadZipFile as error:
        raise CacheError(
            f"{path} is no zip file or damaged ({error}). A zip that came in parts must be joined "
            "first"
        ) from error


class _NameIndex:
    """Finds the stored file of an image by its name without suffix, then by its folder's name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_stem[_stem(name)].append(name)

    def find(self, file_name: str) -> str:
        (name,) = self._candidates(file_name)
        return name

    def problems(self, entries: Sequence[Entry], place: str) -> list[str]:
        counts = {one["file_name"]: len(self._candidates(one["file_name"])) for one in entries}
        missing = [name for name, count in counts.items() if count == 0]
        double = [name for name, count in counts.items() if count > 1]
        problems = []
        if missing:
            problems.append(
                f"{place} has nothing for {len(missing)} of {len(entries)} images (first: "
                f"{', '.join(missing[:3])})"
            )
        if double:
            problems.append(
                f"{place} has several files for each of {len(double)} images (first: {double[0]}: "
                f"{', '.join(self._candidates(double[0])[:3])})"
            )
        return problems

    def unused(self, entries: Sequence[Entry]) -> int:
        used = {_stem(one["file_name"]) for one in entries}
        return sum(len(names) for stem, names in self._by_stem.items() if stem not in used)

    def _candidates(self, file_name: str) -> list[str]:
        found = self._by_stem.get(_stem(file_name), [])
        if len(found) < 2:
            return found
        folder = PurePosixPath(file_name).parent.name
        return [name for name in found if PurePosixPath(name).parent.name == folder] or found


def _stem(name: str) -> str:
    # Both projects cut at the first dot.
    return PurePosixPath(name).name.split(".")[0]


def _image_ids(path: Path) -> list[int]:
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return [int(image["id"]) for image in images]
    except FileNotFoundError:
        raise CacheError(f"annotation file {path} is missing (see datasets/README.md)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(
            f"{path} is no COCO- or LVIS-format annotation file ({type(error).__name__}: {error})"
        ) from error


def _proposal_arrays(path: Path) -> list[PickledArray]:
    content = _load_pickle(path)
    if not isinstance(content, list):
        raise CacheError(
            f"{path} holds a {type(content).__name__}, expected mmdet's list of one array per image"
        )
    wrong = next((k for k, one in enumerate(content) if not isinstance(one, PickledArray)), None)
    if wrong is not None:
        raise CacheError(
            f"{path}: item {wrong} is a {type(content[wrong]).__name__}, expected a NumPy array"
        )
    return content


def _load_pickle(path: Path) -> Any:
    try:
        return safe_pickle.load_pickle(path)
    except safe_pickle.PickleFileError as error:  # it names the file
        raise CacheError(str(error)) from error


def _load_pth(content: bytes, place: str) -> torch.Tensor:
    try:
        tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CacheError(
            f"{place} is refused: it holds more than tensors, and loading that could run any "
            f"command ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # damage shows in as many ways as the format has parts
        raise CacheError(f"{place} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
        found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise CacheError(f"{place} holds {found}, expected one tensor (K, D) of floating numbers")
    return tensor.float()


def _box_and_row(item: Any, path: Path) -> tuple[list[float], torch.Tensor]:
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    box = item[0] if is_pair else None
    if isinstance(box, PickledArray):
        box = box.to_numpy().tolist()
    if (
        not isinstance(box, (tuple, list))
        or len(box) != 4
        or not isinstance(item[1], PickledTensor)
    ):
        raise CacheError(f"{path} holds an item that is not (box of four numbers, tensor)")
    if not all(isinstance(number, (int, float)) for number in box):
        raise CacheError(f"{path} holds a box that is not four numbers: {str(box)[:80]}")
    row = item[1].to_torch()
    if row.numel() == 0 or row.numel() != row.shape[-1] or not row.is_floating_point():
        raise CacheError(f"{path} holds an embedding {tuple(row.shape)}, expected (1, D)")
    return list(box), row.reshape(1, -1).float()
