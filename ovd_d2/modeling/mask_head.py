"""Mask heads for categories without masks of their own, and for images without objects."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from detectron2.projects.point_rend import PointRendMaskHead
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.modeling.layers import run_layers


@ROI_MASK_HEAD_REGISTRY.register()
class ViLDMaskHead(MaskRCNNConvUpsampleHead):
    """Detectron2's convolutional mask head, which trains without regions under SyncBN, too.

    A process whose images have no objects at all has no region to learn masks from.
    """

    def layers(self, x: Tensor) -> Tensor:
        """Pooled features (N, C, H, W) -> mask logits (N, 1 or classes, 2H, 2W)."""
        return run_layers(self, x)


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
