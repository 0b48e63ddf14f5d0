"""F-ViT's RPN: its matching of anchors, and losses over the anchors that were sampled."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from torch import Tensor

from ovd_d2.projects.clipself.fvit.matcher import BestOfObjectMatcher


@PROPOSAL_GENERATOR_REGISTRY.register()
class FViTRPN(RPN):
    """Detectron2's RPN with :class:`BestOfObjectMatcher` and mmdetection's scale of the losses.

    Both losses are divided by the number of anchors sampled in the batch; Detectron2 divides by
    the number that was asked for.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        rpn = cfg.MODEL.RPN
        ret["anchor_matcher"] = BestOfObjectMatcher(
            rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, least_iou=cfg.MODEL.FVIT.RPN_LEAST_IOU
        )
        return ret

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """See :meth:`RPN.losses`."""
        losses = super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )
        wanted = self.batch_size_per_image * len(gt_labels)
        sampled = sum(int((one >= 0).sum()) for one in gt_labels)
        return {key: loss * (wanted / max(1, sampled)) for key, loss in losses.items()}
