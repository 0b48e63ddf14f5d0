"""ViLD's RPN: a head with norms, and the official code's box loss."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from ovd_d2.losses import level_huber_loss


@PROPOSAL_GENERATOR_REGISTRY.register()
class LevelMeanRPN(RPN):
    """Detectron2's RPN with the box loss of the official ViLD code.

    There each pyramid level has one voice: see :func:`ovd_d2.losses.level_huber_loss`, whose delta
    is `MODEL.RPN.SMOOTH_L1_BETA`. Detectron2 sums over positive anchors, whatever their level, and
    divides by the number of sampled ones.
    """

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
        sizes = [len(level) for level in anchors]
        positive = (torch.stack(gt_labels) == 1).split(sizes, dim=1)  # a level: (N, A)
        matched = torch.stack(gt_boxes).split(sizes, dim=1)  # a level: (N, A, 4)
        targets = [
            self.box2box_transform.get_deltas(level.tensor.expand_as(boxes)[mask], boxes[mask])
            for level, boxes, mask in zip(anchors, matched, positive, strict=True)
        ]
        predicted = [
            deltas[mask] for deltas, mask in zip(pred_anchor_deltas, positive, strict=True)
        ]
        loss = level_huber_loss(predicted, targets, self.smooth_l1_beta)
        losses["loss_rpn_loc"] = loss * self.loss_weight.get("loss_rpn_loc", 1.0)
        return losses


@RPN_HEAD_REGISTRY.register()
class NormRPNHead(StandardRPNHead):
    """Detectron2's RPN head with a norm after each 3x3 conv (official ViLD: two convs with BN)."""

    @configurable
    def __init__(self, *, norm: str, **kwargs: Any) -> None:
        """
        Args:
            norm: e.g. "BN" or "SyncBN"; "" for none.
            kwargs: of :class:`StandardRPNHead`.
        """
        self._norm = norm  # the base class builds its convs, through the method below
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.RPN.NORM}

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> Conv2d:
        # The bias stays: the base class initialises one for every conv.
        return Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            padding=1,
            norm=get_norm(self._norm, out_channels),
            activation=nn.ReLU(),
        )
