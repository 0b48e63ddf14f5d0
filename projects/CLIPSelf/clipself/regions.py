"""Which regions of an image student and teacher compare: patches or proposals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovd_d2.projects.clipself.crops import enlarged, pixel_windows
from ovd_d2.projects.clipself.grids import random_cells
from ovd_d2.projects.clipself.proposals import ProposalSource, sample_proposals


class Sample(NamedTuple):
    """Regions of one image, at least one.

    Attributes:
        boxes: (K, 4) XYXY in pixels of the original image, what the student pools; they may reach
            out of the image.
        windows: (K, 4) int64 XYXY, the pixels that the teacher sees of each.
    """

    boxes: NDArray
    windows: NDArray[np.int64]


class RegionSampler(ABC):
    """Draws the regions of an image."""

    @abstractmethod
    def __call__(
        self, image_id: int, height: int, width: int, generator: np.random.Generator
    ) -> Sample: ...

    def problems(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        """Why a training on these images (Detectron2 dicts) could not go on."""
        return []


@dataclass(frozen=True)
class Patches(RegionSampler):
    """Cells of a random grid.

    Attributes:
        limit: at most so many per image.
        max_rows: grids have 1 to so many rows, and columns.
    """

    limit: int
    max_rows: int

    def __call__(
        self, image_id: int, height: int, width: int, generator: np.random.Generator
    ) -> Sample:
        cells = random_cells(
            height, width, max_rows=self.max_rows, limit=self.limit, generator=generator
        )
        return Sample(cells, pixel_windows(cells, height, width))


@dataclass(frozen=True)
class Proposals(RegionSampler):
    """Random proposals; the teacher sees more of the image around them.

    An image of which none is left gives its top left quarter.

    Attributes:
        source: of the boxes.
        limit: at most so many per image.
        area: smallest and largest, square pixels of the original image.
        crop_scale: side of the teacher's crop over that of the box.
    """

    source: ProposalSource
    limit: int
    area: tuple[float, float]
    crop_scale: float

    def __call__(
        self, image_id: int, height: int, width: int, generator: np.random.Generator
    ) -> Sample:
        boxes = sample_proposals(
            np.asarray(self.source.boxes_of(image_id), dtype=np.float64),
            limit=self.limit,
            area=self.area,
            generator=generator,
        )
        if not len(boxes):
            return _top_left_quarter(height, width)
        crops = enlarged(boxes, self.crop_scale, height, width)
        return Sample(boxes, pixel_windows(crops, height, width))

    def problems(self, images: Sequence[Mapping[str, Any]]) -> list[str]:
        return self.source.problems(images)


def _top_left_quarter(height: int, width: int) -> Sample:
    box = np.array([[0.0, 0.0, width / 4, height / 4]])
    return Sample(box, pixel_windows(np.floor(box), height, width))
