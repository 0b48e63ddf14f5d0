"""Masks that somebody else has found, and what a category makes of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor
from torch.nn import functional as F

from ovd_d2.clip.dense import mask_features
from ovd_d2.data.passengers import MappedImage, Passenger
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.region_classification.segments import read_id_map

MASKS = "given_masks"  # key of a test input


class GivenMasks(Passenger):
    """Adds `given_masks`, (H, W) int32 ids of segments (0: none), of the ground truth."""

    def __call__(self, image: MappedImage) -> None:
        image.record[MASKS] = torch.from_numpy(self.id_map(image.record))

    def id_map(self, record: Mapping[str, Any]) -> Any:
        return read_id_map(record["pan_seg_file_name"])


@dataclass
class PredictedMasks(GivenMasks):
    """The same of another model's panoptic results.

    Attributes:
        json_file: in the format of COCO's panoptic results.

    Raises:
        SetupError: it is not, or lacks an image.
    """

    json_file: str

    @cached_property
    def _files(self) -> dict[Any, str]:
        path = Path(PathManager.get_local_path(self.json_file))
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]
            return {one["image_id"]: str(_png(path, one["file_name"])) for one in entries}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(
                [
                    f"MODEL.DENSE_CLIP.MASKS: {path} is no panoptic result of COCO's format "
                    f"({error!r}): expected a JSON object with 'annotations'"
                ]
            ) from error

    def id_map(self, record: Mapping[str, Any]) -> Any:
        if record["image_id"] not in self._files:
            raise SetupError(
                [
                    f"MODEL.DENSE_CLIP.MASKS: {self.json_file} has no image {record['image_id']}: "
                    "make the results with the data set of DATASETS.TEST"
                ]
            )
        return read_id_map(self._files[record["image_id"]])


def _png(json_file: Path, name: str) -> Path:
    """In the folder of the JSON file, or in the one that is called like it."""
    beside = json_file.with_suffix("") / name
    return beside if beside.is_file() else json_file.parent / name


def classified_masks(
    id_map: Tensor,
    dense: Tensor,
    covered: tuple[float, float],
    embeddings: Tensor,
    owners: Tensor | None = None,
) -> list[dict[str, Any]]:
    """The category of each segment: the nearest one to its mean feature.

    A patch counts as far as the mask covers it, so the smallest mask has features.

    Args:
        id_map: (H, W) int ids; 0: no segment.
        dense: (D, h, w) unit vectors, on `embeddings`' device.
        covered: (height, width) in pixels of `id_map` that the map covers, at least its own.
        embeddings: (W, D) unit vectors, of words.
        owners: (W,) int64, which category each word is; None: each is one.

    Returns:
        Per segment `id`, `category_id` (place in the vocabulary) and `score`, the cosine.
    """
    ids = id_map.unique()
    ids = ids[ids != 0]
    if not len(ids):
        return []
    weights = torch.stack([coverage(id_map == one, covered, dense.shape[1:]) for one in ids])
    pooled = F.normalize(mask_features(dense, weights.to(dense.device)), dim=1)
    scores, classes = (pooled @ embeddings.T).max(dim=1)
    classes = classes if owners is None else owners[classes]
    found = zip(ids.tolist(), classes.tolist(), scores.tolist(), strict=True)
    return [{"id": one, "category_id": c, "score": score} for one, c, score in found]


def coverage(mask: Tensor, covered: tuple[float, float], grid: torch.Size | list[int]) -> Tensor:
    """Share of each cell that a mask takes.

    Args:
        mask: (H, W) bool.
        covered: (height, width) in pixels of the mask that the grid covers.
        grid: (h, w).

    Returns:
        (h, w) float32.
    """
    rows, columns = (
        _overlaps(length, size, cells)
        for length, size, cells in zip(mask.shape, covered, grid, strict=True)
    )
    return rows @ mask.float() @ columns.T


def _overlaps(length: int, covered: float, cells: int) -> Tensor:
    """(cells, length): the part of each cell that each pixel takes."""
    cell = covered / cells
    edges = torch.arange(cells + 1, dtype=torch.float64) * cell
    starts = torch.arange(length, dtype=torch.float64)
    ends = torch.minimum(edges[1:, None], starts + 1)
    shared = (ends - torch.maximum(edges[:-1, None], starts)).clamp(min=0)
    return (shared / cell).float()
