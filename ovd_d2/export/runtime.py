"""An exported detector in onnxruntime, and how close it is to PyTorch's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ovd_d2.export.batches import IMAGE_NUMBERS, IMAGES
from ovd_d2.export.network import BOXES, CATEGORIES, MASKS, SCORES

Arrays = Mapping[str, NDArray]
COMPARED = (BOXES, SCORES, MASKS)


class OnnxDetector:
    """A file of :func:`ovd_d2.export.export_detector` in onnxruntime, on the processor."""

    def __init__(self, model: str | os.PathLike[str] | bytes, threads: int = 0) -> None:
        """
        Args:
            model: a file, or what is in one.
            threads: of the processor; 0: all.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        source = model if isinstance(model, bytes) else os.fspath(model)
        self._session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, images: NDArray[np.uint8], words: Arrays) -> list[dict[str, NDArray]]:
        """
        Args:
            images: (N, 3, H, W), the size and the channels that the detector wants.
            words: the other inputs, by name.

        Returns:
            Of each image "boxes" (D, 4), "scores" (D,), "categories" (D,), best first, and
            "masks" (D, M, M) where it has some.
        """
        values = self._session.run(None, {IMAGES: images, **words})
        found = dict(zip(self._outputs, values, strict=True))
        numbers = found.pop(IMAGE_NUMBERS)
        return [
            {name: value[numbers == k] for name, value in found.items()} for k in range(len(images))
        ]


@dataclass(frozen=True)
class Parity:
    """How two lists of detections differ, of all images together.

    Attributes:
        images, detections: how many there are.
        same: images with the same detections in the same order.
        largest: "boxes" (pixels), "scores", "masks" -> largest difference in these images.
    """

    images: int
    detections: int
    same: int
    largest: Mapping[str, float]

    def __str__(self) -> str:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in self.largest.items())
        return (
            f"{self.same} of {self.images} images have the same {self.detections} detections in "
            f"the same order; largest differences: {differences}"
        )


def compare(wanted: Sequence[Arrays], found: Sequence[Arrays]) -> Parity:
    """Detections of the same images by PyTorch and by the exported detector."""
    pairs = list(zip(wanted, found, strict=True))
    same = [pair for pair in pairs if np.array_equal(pair[0][CATEGORIES], pair[1][CATEGORIES])]
    largest = {
        name: max((_difference(one[name], other[name]) for one, other in same), default=0.0)
        for name in COMPARED
        if wanted and name in wanted[0]
    }
    total = sum(len(one[SCORES]) for one in wanted)
    return Parity(len(pairs), total, len(same), largest)


def _difference(one: NDArray, other: NDArray) -> float:
    return float(np.abs(one - other).max(initial=0.0))
