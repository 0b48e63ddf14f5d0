"""Proposals: boxes of a first stage as the regions that student and teacher compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray

from ovd_d2.cache import CacheError, RecordStore, coverage_problems
from ovd_d2.cache.store import open_store
from ovd_d2.errors import SetupError

KEY = "MODEL.CLIPSELF.PROPOSALS"
_FORMAT = (
    'a list of results, [{"image_id": 1, "bbox": [x, y, width, height]}, ...], or an annotation '
    'file, {"images": [...], "annotations": [...]}'
)


def sample_proposals(
    boxes: NDArray, *, limit: int, area: tuple[float, float], generator: np.random.Generator
) -> NDArray:
    """At most `limit` random boxes, less those that are too small or large.

    Areas are looked at last, as in the public code: fewer than there might be can be left.

    Args:
        boxes: (N, 4) XYXY.
        limit: so many are drawn.
        area: smallest and largest, in the units of the boxes.
        generator: of random numbers.

    Returns:
        (K, 4), K at most `limit`, maybe 0.
    """
    drawn = boxes[generator.permutation(len(boxes))[:limit]]
    areas = (drawn[:, 2:] - drawn[:, :2]).prod(axis=1)
    return drawn[(areas >= area[0]) & (areas <= area[1])]


class ProposalSource(ABC):
    """Boxes of images by their ids, whatever they were stored as."""

    @abstractmethod
    def boxes_of(self, image_id: int) -> NDArray:
        """(N, 4) XYXY in pixels of the original image; N may be 0."""

    @abstractmethod
    def problems(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        """Why a training on these images (Detectron2 dicts) cannot use it."""


class StoredProposals(ProposalSource):
    """Those of a proposal store or an embedding cache."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store

    def boxes_of(self, image_id: int) -> NDArray:
        return self._store.read_undecoded(image_id)["boxes"]

    def problems(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        fix = "run tools/extract_proposals.py for the training data set"
        return [f"{KEY}: {one}" for one in coverage_problems(self._store, images, fix)]


class JsonProposals(ProposalSource):
    """Those of a JSON file in COCO's format, of results or of annotations; crowds are left out.

    Attributes:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            SetupError: not such a file.
        """
        self.path = path
        ids, boxes, listed = _read(path)
        order = np.argsort(ids, kind="stable")  # compact: loader workers get a copy
        self._ids, starts = np.unique(ids[order], return_index=True)
        self._starts = np.append(starts, len(ids))
        self._boxes = boxes[order]
        self._without = np.setdiff1d(listed, self._ids)

    def boxes_of(self, image_id: int) -> NDArray:
        k = int(np.searchsorted(self._ids, image_id))
        if k == len(self._ids) or self._ids[k] != image_id:
            return self._boxes[:0]
        return self._boxes[self._starts[k] : self._starts[k + 1]]

    def problems(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        wanted = np.unique([one["image_id"] for one in images])
        missing = np.setdiff1d(wanted, np.union1d(self._ids, self._without))
        if not len(missing):
            return []
        return [
            f"{KEY}: {self.path} has nothing of {len(missing)} of the {len(wanted)} training "
            f"images (first ids: {missing[:5].tolist()}): give a file of these images; one that "
            'lists them under "images" may leave some without a box'
        ]


def open_proposals(path: str) -> ProposalSource:
    """A folder made by tools/extract_proposals.py or tools/cache.py build, or a JSON file.

    Raises:
        SetupError: neither, or it cannot be read.
    """
    if not path:
        raise SetupError(
            [
                f"{KEY} is empty: name a folder made by tools/extract_proposals.py or a JSON file "
                'in COCO\'s format, or set MODEL.CLIPSELF.REGIONS "patches"'
            ]
        )
    if not path.endswith(".json"):
        try:
            return StoredProposals(open_store(path))
        except (OSError, CacheError) as error:
            raise SetupError([f"{KEY}: {error}"]) from error
    local = Path(PathManager.get_local_path(path))
    if not local.is_file():
        raise SetupError([f"{KEY}: no file at '{local}'"])
    return JsonProposals(local)


def _read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """(N,) image ids and (N, 4) XYXY boxes of the file; the ids of the images that it lists."""
    try:
        content = orjson.loads(path.read_bytes())
        listed = _image_ids(content["images"]) if isinstance(content, dict) else _image_ids([])
        found = content["annotations"] if isinstance(content, dict) else content
        objects = [one for one in found if not one.get("iscrowd")]
        ids = np.array([one["image_id"] for one in objects], dtype=np.int64)
        boxes = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise SetupError([f"{KEY}: {path}: expected {_FORMAT}; {reason}"]) from error
    sound = np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all()
    if len(boxes) != len(ids) or not sound:
        raise SetupError(
            [f"{KEY}: {path}: a bbox is not [x, y, width, height] with width and height >= 0"]
        )
    return ids, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), listed


def _image_ids(images: Iterable[Mapping[str, Any]]) -> NDArray[np.int64]:
    return np.array([one["id"] for one in images], dtype=np.int64)
