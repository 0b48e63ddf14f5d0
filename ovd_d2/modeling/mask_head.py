"""Mask heads for categories without masks of their own, and for images without objects."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.modeling.layers import run_layers

REGIONS_AT_ONCE = 16  # on a CPU: what a few need fits its caches, and memory that it has touched


@ROI_MASK_HEAD_REGISTRY.register()
class ViLDMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's convolutional mask head, fast on a CPU and trainable without regions.

    A process whose images have no objects at all has no region to learn masks from, which
    Detectron2's refuses under SyncBN.
    """

    def layers(self, x: Tensor) -> Tensor:
        """Pooled features (N, C, H, W) -> mask logits (N, 1 or classes, 2H, 2W)."""
        if self.training or x.device.type != "cpu":
            return run_layers(self, x)
        if torch.jit.is_tracing():  # the number of parts would be that of these regions
            return self._infer(x)
        return torch.cat([self._infer(part) for part in x.split(REGIONS_AT_ONCE)])

    def normalise(self, x: Tensor) -> Tensor:
        """What comes between deconvolution and ReLU, (N, C, H, W); a subclass may have a norm."""
        return x

    def _infer(self, x: Tensor) -> Tensor:
        """`layers` up to rounding, with nothing but the result in the size of the result.

        A 2x2 deconvolution of stride 2 gives each pixel four values per channel. ReLU and predictor
        look at one value of each channel at a time, so putting the four in their places can wait.
        """
        *convs, deconv, _, predictor = self
        for conv in convs:
            x = conv(x)
        count, _, height, width = x.shape
        kernels = deconv.weight.permute(1, 2, 3, 0).reshape(-1, deconv.in_channels, 1, 1)
        x = F.conv2d(x, kernels, deconv.bias.repeat_interleave(4))
        x = self.normalise(x.reshape(count, deconv.out_channels, 4 * height, width))
        x = predictor(x.relu_())
        return F.pixel_shuffle(x.reshape(count, 4 * x.shape[1], height, width), 2)


@ROI_MASK_HEAD_REGISTRY.register()
class ClassAgnosticPointRendMaskHead(PointRendMaskHead):
    """PointRend (arXiv 1912.08193) with one mask per region, whatever its category.

    Detectron2's `CLS_AGNOSTIC_MASK` reaches PointRend's point head only: its coarse head still
    predicts a mask for each of `ROI_HEADS.NUM_CLASSES` categories, which a vocabulary does not
    have. Here both predict one. Batches without objects, which base-only labels leave, train too.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        """
        Args:
            cfg: with PointRend's keys (`add_pointrend_config`); `ROI_HEADS.NUM_CLASSES` and
                `POINT_HEAD.NUM_CLASSES` do not matter.
            input_shape: the feature maps that the head reads, by name.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.POINT_HEAD.NUM_CLASSES = 1
        super().__init__(cfg, input_shape)

    def _sample_train_points(
        self, coarse_mask: Tensor, instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        if len(coarse_mask) == 0:  # the base class would concatenate nothing
            shape = (0, self.mask_point_train_num_points)
            return coarse_mask.new_zeros(*shape, 2), coarse_mask.new_zeros(shape)
        return super()._sample_train_points(coarse_mask, instances)


def masks_depend_on_category(head: nn.Module) -> bool:
    """Whether a region's mask may be another one under another category's name."""
    if isinstance(head, ClassAgnosticPointRendMaskHead):
        return False
    return not isinstance(head, MaskRCNNConvUpsampleHead) or head.predictor.out_channels > 1
