"""The regions of an image and the teacher's crops of them, on their way through the mapper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor

from ovd_d2.data.passengers import MappedImage, Passenger
from ovd_d2.projects.clipself.crops import fitted_crop, fitted_size
from ovd_d2.projects.clipself.regions import RegionSampler
from ovd_d2.structures import PerImage
from ovd_d2.systems import SetupContext

REGIONS = "regions_to_distil"  # field of a training input's `instances`


@dataclass(frozen=True)
class Regions:
    """What student and teacher compare of one image.

    Attributes:
        boxes: (K, 4) float32 XYXY in sides of the square that the student sees.
        crops: (K, 3, s, s) uint8 RGB, what the teacher sees of each.
    """

    boxes: Tensor
    crops: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Regions:
        """To a device, as a tensor's."""
        return Regions(self.boxes.to(*args, **kwargs), self.crops.to(*args, **kwargs))


class RegionsToDistil(Passenger):
    """Draws regions and cuts the teacher's crops out of the original image.

    Random numbers come from NumPy's generator, which the training loader seeds per draw. The image
    itself must come out with its longest side at `image_size`, neither cropped nor flipped.

    Attributes:
        sampler: of the regions.
        image_size: side of the student's square, pixels.
        crop_size: side of the teacher's input, pixels.
    """

    def __init__(self, sampler: RegionSampler, *, image_size: int, crop_size: int) -> None:
        """See the attributes."""
        self.sampler = sampler
        self.image_size = image_size
        self.crop_size = crop_size

    def __call__(self, image: MappedImage) -> None:
        """
        Raises:
            ValueError: the augmentation gave the image another size.
        """
        height, width = image.pixels.shape[:2]
        expected = fitted_size(height, width, self.image_size)
        if image.size != expected:
            raise ValueError(
                f"{image.record.get('file_name')}: its augmentation makes {image.size} of "
                f"{(height, width)}, but the student's square of {self.image_size} pixels wants "
                f"{expected}: scale the longest side to it, without crop and flip"
            )
        generator = np.random.default_rng(np.random.randint(0, 2**31, size=4))
        found = self.sampler(image.record["image_id"], height, width, generator)
        whole = Image.fromarray(image.original_rgb().numpy())
        crops = np.stack([fitted_crop(whole, one, self.crop_size) for one in found.windows])
        boxes = np.asarray(found.boxes / max(height, width), dtype=np.float32)
        regions = Regions(torch.from_numpy(boxes), torch.from_numpy(crops).permute(0, 3, 1, 2))
        attach_regions(image.record["instances"], regions)

    def problems(self, context: SetupContext) -> list[str]:
        """Of the sampler."""
        return self.sampler.problems(context.training_images)


def attach_regions(instances: Instances, regions: Regions) -> None:
    """Makes regions ride on the ground truth of an image."""
    instances.set(REGIONS, PerImage(regions, len(instances)))


def regions_of(instances: Sequence[Instances]) -> list[Regions]:
    """What rides on the ground truth of a batch's images.

    Raises:
        ValueError: nothing does.
    """
    if not all(one.has(REGIONS) for one in instances):
        raise ValueError(
            "the training inputs have no regions to distil: give the mapper the passenger "
            "RegionsToDistil (ovd_d2.projects.clipself.passengers)"
        )
    return [one.get(REGIONS).value for one in instances]
