"""What a predictor has found in an image, in the forms that others take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ovd_d2.errors import SetupError
from ovd_d2.modeling.masks import BoxMasks
from ovd_d2.presence import Presence
from ovd_d2.vocabulary import Categories

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class Prediction:
    """The N detections of an image.

    Attributes:
        instances: Detectron2's, on the CPU, best first: `pred_boxes` (XYXY, pixels of the image),
            `scores`, `pred_classes` and, where the model has masks, `pred_masks`, a
            (N, height, width) bool tensor or :class:`ovd_d2.modeling.BoxMasks`; `presence` of their
            categories where that is known.
        categories: what `pred_classes` index; novel is what the detector was trained without boxes
            of.
        best_scores: of each category, below the threshold, too; 0 where nothing was found at all.
        best_boxes: (C, 4) XYXY, pixels of the image, the boxes of `best_scores`; zeros where
            nothing was found at all.
        crop_scores: of each category, the teacher's probability that the crop of its best box shows
            it, 0 of scores too low to say anything; None where the teacher was not asked.
        presence: of each category, the probability that the image shows one; None where the
            detector was not calibrated.
    """

    instances: Instances
    categories: Categories
    best_scores: tuple[float, ...]
    best_boxes: torch.Tensor
    crop_scores: tuple[float, ...] | None = None
    presence: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def names(self) -> list[str]:
        """The category's name of each detection."""
        return [self.categories.names[k] for k in self.instances.pred_classes.tolist()]

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """(height, width) of each detection, one after the other; nothing where there are none."""
        if not self.instances.has("pred_masks"):
            return
        for k in range(len(self)):
            masks = self.instances.pred_masks[k : k + 1]
            yield (masks.to_bitmasks().tensor if isinstance(masks, BoxMasks) else masks)[0].numpy()

    def from_score(self, threshold: float) -> Prediction:
        """What of it scores at least `threshold`."""
        return replace(self, instances=self.instances[self.instances.scores >= threshold])

    def judged(self, calibration: Presence, least: float) -> Prediction:
        """The same with the presence of each category; those with less than `least` give
        nothing."""
        crops = None if self.crop_scores is None else torch.tensor(self.crop_scores)
        presence = calibration.of(torch.tensor(self.best_scores), crops)
        of_each = presence[self.instances.pred_classes]
        kept = self.instances[of_each >= least]
        kept.presence = of_each[of_each >= least].float()
        return replace(self, instances=kept, presence=tuple(presence.tolist()))

    def to_pipeline(self) -> list[dict[str, Any]]:
        """As transformers' pipeline "zero-shot-object-detection": `score`, `label`, and `box` with
        `xmin`, `ymin`, `xmax`, `ymax` in whole pixels."""
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {
                "score": score,
                "label": name,
                "box": dict(zip(corners, map(int, box), strict=True)),
            }
            for name, score, box in self._rows()
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of COCO's results format.

        `category_id` is the place of the category in `categories` + 1, `bbox` XYWH, and
        `segmentation` an RLE where there are masks.

        Args:
            image_id: of the image in the data set.
        """
        classes = self.instances.pred_classes.tolist()
        rows = [
            {
                "image_id": image_id,
                "category_id": k + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "score": score,
            }
            for k, (_, score, box) in zip(classes, self._rows(), strict=True)
        ]
        for row, mask in zip(rows, self.masks(), strict=False):  # there may be no masks
            row["segmentation"] = _rle(mask)
        return rows

    def to_supervision(self) -> supervision.Detections:
        """As Roboflow's `supervision.Detections`, the names under `data["class_name"]`.

        Raises:
            SetupError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise SetupError(
                ["supervision is not installed: pip install 'ovd_d2[supervision]'"]
            ) from error
        found = self.instances
        return supervision.Detections(
            xyxy=found.pred_boxes.tensor.numpy(),
            mask=found.pred_masks.numpy() if found.has("pred_masks") else None,
            confidence=found.scores.numpy(),
            class_id=found.pred_classes.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def _rows(self) -> Iterator[tuple[str, float, list[float]]]:
        """Name, score and XYXY of each detection."""
        scores, boxes = self.instances.scores.tolist(), self.instances.pred_boxes.tensor.tolist()
        yield from zip(self.names, scores, boxes, strict=True)


def _rle(mask: np.ndarray) -> dict[str, Any]:
    found = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(found["size"]), "counts": found["counts"].decode("ascii")}
