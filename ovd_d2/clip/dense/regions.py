"""Features of regions out of a dense map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import roi_align

EPSILON = 1e-12  # of a mask's area: an empty mask has zeros


def roi_features(
    dense: Tensor, boxes: Sequence[Tensor], image_sizes: Sequence[tuple[float, float]]
) -> Tensor:
    """RoIAlign to one value per channel (CLIPSelf, section 3.1).

    Args:
        dense: (B, D, h, w) maps of unit vectors.
        boxes: of each image (K_i, 4) absolute XYXY.
        image_sizes: of each image the (height, width), in the units of its boxes, that its map
            covers.

    Returns:
        (K, D), all images after one another; not unit vectors any more, zeros for a box without
        area.
    """
    height, width = dense.shape[2:]
    in_cells = [
        one.to(dense) * dense.new_tensor([width / size[1], height / size[0]] * 2)
        for one, size in zip(boxes, image_sizes, strict=True)
    ]
    found = roi_align(dense, in_cells, output_size=1, sampling_ratio=-1, aligned=True)
    return found[:, :, 0, 0]


def mask_features(dense: Tensor, masks: Tensor) -> Tensor:
    """The mean over the patches of each mask.

    Args:
        dense: (D, h, w), the map of one image.
        masks: (K, h, w) weights, e.g. bool.

    Returns:
        (K, D), not unit vectors; zeros for an empty mask.
    """
    weights = masks.to(dense).flatten(1)  # (K, h * w)
    return weights @ dense.flatten(1).T / (weights.sum(dim=1, keepdim=True) + EPSILON)
