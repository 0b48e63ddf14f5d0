"""ViLD's box predictor, with the official code's boxes and box loss as options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.losses import level_huber_loss
from ovd_d2.modeling.box_head import OpenVocabularyOutputLayers
from ovd_d2.structures import PADDED_SIZE, PerImage
from ovd_d2.vild.boxes import InclusiveBox2BoxTransform, clip_to_pixels


class ViLDOutputLayers(OpenVocabularyOutputLayers):
    """Open-vocabulary box predictor with the official code's boxes and box loss where wanted."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        last_pixel: bool = False,
        loss_over_positives: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: shape of the trunk's output.
            last_pixel: clip detections to the last pixel of the padded image, not to the border of
                the image; wants :class:`InclusiveBox2BoxTransform`.
            loss_over_positives: the box loss is the mean of Huber's over positive regions'
                coordinates; Detectron2 sums smooth L1 and divides by all sampled regions.
            kwargs: of :class:`OpenVocabularyOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        self.last_pixel = last_pixel
        self.loss_over_positives = loss_over_positives

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["last_pixel"] = cfg.MODEL.VILD.INCLUSIVE_BOXES
        ret["loss_over_positives"] = cfg.MODEL.VILD.BOX_LOSS_OVER_POSITIVES
        if cfg.MODEL.VILD.INCLUSIVE_BOXES:
            weights = cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
            ret["box2box_transform"] = InclusiveBox2BoxTransform(weights=weights)
        return ret

    def box_reg_loss(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """See :meth:`FastRCNNOutputLayers.box_reg_loss`."""
        if not self.loss_over_positives:
            return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        positive = (gt_classes >= 0) & (gt_classes < self.num_classes)
        targets = self.box2box_transform.get_deltas(proposal_boxes[positive], gt_boxes[positive])
        return level_huber_loss([pred_deltas[positive]], [targets], self.smooth_l1_beta)

    def select_detections(
        self, probs: Tensor, boxes: Sequence[Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        """See :meth:`OpenVocabularyOutputLayers.select_detections`."""
        if not self.last_pixel:
            return super().select_detections(probs, boxes, proposals)
        sizes = [_padded_size(one) for one in proposals]
        clipped = [clip_to_pixels(one, size) for one, size in zip(boxes, sizes, strict=True)]
        padded = [
            Instances(size, proposal_boxes=x.proposal_boxes)
            for x, size in zip(proposals, sizes, strict=True)
        ]
        found = super().select_detections(probs, clipped, padded)
        return [
            Instances(of.image_size, **one.get_fields())
            for one, of in zip(found, proposals, strict=True)
        ]


def _padded_size(proposals: Instances) -> tuple[int, int]:
    if not proposals.has(PADDED_SIZE):
        return proposals.image_size
    riding: PerImage = proposals.get(PADDED_SIZE)
    return riding.value
