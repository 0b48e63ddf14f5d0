"""Structures beside Detectron2's."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Instances

CACHED_PROPOSALS = "cached_proposals"  # field of a training input's `instances`
ORIGINAL_IMAGE = "original_image"  # key of an input, (H, W, 3) uint8 RGB before the augmentation
FULL_MASKS = "full_masks"  # key of an input: its masks at full size; without it the detector's way
ENCODED = "encoded"  # key of an input: what a detector's `encode` has made of its image

PADDED_SIZE = "padded_size"  # field of proposals: (height, width) that boxes may fill; a PerImage


class PerImage:
    """A field of `Instances` that belongs to the whole image, not to one of its objects.

    Detectron2's meta-architectures, and those made after them, hand the `instances` of a training
    input to the ROI heads and nothing else of it. What rides on `instances` therefore reaches the
    heads in any of them. It moves to devices with the other fields and stays whole when some of
    the objects are selected.

    Attributes:
        value: anything with a method `to(device)`.
    """

    def __init__(self, value: Any, num_instances: int) -> None:
        """
        Args:
            value: what belongs to the image.
            num_instances: objects in the image; `Instances` wants its fields of one length.
        """
        self.value = value
        self._num_instances = num_instances

    def __len__(self) -> int:
        return self._num_instances

    def __getitem__(self, selected: Any) -> PerImage:
        """The same value beside some of the objects."""
        if isinstance(selected, int):
            return PerImage(self.value, 1)
        return PerImage(self.value, len(torch.arange(self._num_instances)[selected]))

    def to(self, *args: Any, **kwargs: Any) -> PerImage:
        """As a tensor's."""
        return PerImage(self.value.to(*args, **kwargs), self._num_instances)


def attach_cached_proposals(record: dict[str, Any], proposals: Instances) -> None:
    """Makes proposals ride on the `instances` of a training input."""
    instances = record["instances"]
    instances.set(CACHED_PROPOSALS, PerImage(proposals, len(instances)))


def cached_proposals_of(instances: Instances) -> Instances | None:
    """The proposals that ride on the ground truth of an image; None where there are none."""
    return instances.get(CACHED_PROPOSALS).value if instances.has(CACHED_PROPOSALS) else None
