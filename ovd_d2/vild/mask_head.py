"""The official ViLD code's mask head: a norm after upsampling, soft targets."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovd_d2.modeling.mask_head import ViLDMaskHead

OBJECT_SIDE = 112  # pixels of the mask of an object that targets are cut from
MARGIN = 2  # zeros around it
EPSILON = 1e-8


@ROI_MASK_HEAD_REGISTRY.register()
class LateNormMaskHead(ViLDMaskHead):
    """:class:`ViLDMaskHead` with a norm between the deconvolution and its ReLU.

    Detectron2's has norms after the convolutions alone.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, soft_targets: bool = False, conv_norm: str, **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: shape of the pooled features.
            soft_targets: learn from :func:`soft_mask_targets`; else from Detectron2's binary ones.
            conv_norm: after each convolution and after the deconvolution.
            kwargs: of :class:`MaskRCNNConvUpsampleHead`.
        """
        super().__init__(input_shape, conv_norm=conv_norm, **kwargs)
        old: nn.ConvTranspose2d = self.get_submodule("deconv")
        self.deconv = _NormedDeconv(old.in_channels, old.out_channels, conv_norm)
        self.soft_targets = soft_targets

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        return {**ret, "soft_targets": cfg.MODEL.VILD.SOFT_MASK_TARGETS}

    def normalise(self, x: Tensor) -> Tensor:
        """See :class:`ViLDMaskHead`."""
        return self.deconv.norm(x)

    def forward(self, x: Tensor, instances: list[Instances]) -> Any:
        """See :meth:`BaseMaskRCNNHead.forward`."""
        if not (self.training and self.soft_targets):
            return super().forward(x, instances)
        logits = self.layers(x)[:, 0]
        side = logits.shape[-1]
        targets = [_targets_of(one, side) for one in instances if len(one)]
        if not targets:
            return {"loss_mask": logits.sum() * 0}
        loss = F.binary_cross_entropy_with_logits(logits, torch.cat(targets).to(logits))
        return {"loss_mask": loss * self.loss_weight}


class _NormedDeconv(nn.ConvTranspose2d):
    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)
        weight_init.c2_msra_fill(self)
        self.norm = get_norm(norm, out_channels)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self.norm(super().forward(x, output_size))


def _targets_of(regions: Instances, side: int) -> Tensor:
    boxes = regions.gt_boxes.tensor
    masks = regions.gt_masks.crop_and_resize(boxes, OBJECT_SIDE).to(boxes)
    return soft_mask_targets(masks, boxes, regions.proposal_boxes.tensor, side)


def soft_mask_targets(masks: Tensor, objects: Tensor, regions: Tensor, side: int) -> Tensor:
    """Each object's mask as its region sees it, interpolated and not rounded.

    Args:
        masks: (N, S, S) float32, each the mask of an object within its box.
        objects: (N, 4) those boxes, absolute XYXY.
        regions: (N, 4) absolute XYXY.
        side: T of the result.

    Returns:
        (N, T, T) float32 in 0 .. 1; 0 outside of the object's box.
    """
    side_of_mask = masks.shape[-1]
    scale = side_of_mask / (objects[:, 2:] - objects[:, :2] + EPSILON)  # (N, 2), mask pixels per px
    origin = objects[:, :2]
    corners = ((regions.unflatten(1, (2, 2)) - origin[:, None]) * scale[:, None]).flatten(1)
    numbers = torch.arange(len(masks), device=masks.device)[:, None]
    rois = torch.cat([numbers.to(corners), corners + MARGIN], dim=1)
    padded = F.pad(masks[:, None], [MARGIN] * 4)
    return roi_align(padded, rois, side, sampling_ratio=1, aligned=False)[:, 0]
