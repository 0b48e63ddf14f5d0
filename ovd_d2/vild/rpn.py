"""ViLD's RPN: heads with norms, the official code's box loss, matching and proposals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2.losses import level_huber_loss
from ovd_d2.modeling.nms import suppress
from ovd_d2.structures import PADDED_SIZE, PerImage
from ovd_d2.vild.boxes import AnchorTransform, clip_to_pixels


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
        positive = (torch.stack(gt_labels) == 1).split(sizes, dim=1)  # per level: (N, A)
        matched = torch.stack(gt_boxes).split(sizes, dim=1)  # per level: (N, A, 4)
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


class OneAnchorMatcher(Matcher):
    """Detectron2's matcher, with one anchor per object whatever its IoU: the first of the best.

    Detectron2 takes every anchor that ties with the best one. Here the one taken is matched with
    that object even where it lies better on another, as in TensorFlow's `force_match_for_each_row`.
    """

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """(objects, anchors) IoU -> (anchors,) matched object, (anchors,) int8 label."""
        self.allow_low_quality_matches = False
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel():
            best = match_quality_matrix.argmax(dim=1)  # (objects,), the first of equals
            for number in reversed(range(len(best))):  # of two objects on one anchor, the first
                matches[best[number]] = number
            labels[best] = 1
        return matches, labels


@PROPOSAL_GENERATOR_REGISTRY.register()
class ViLDRPN(LevelMeanRPN):
    """The official code's RPN: its box loss, its matching of anchors, its proposals.

    Boxes have sides of x2 - x1 + 1 (:mod:`ovd_d2.vild.boxes`), may lie in the padding of an image
    and are clipped to the last pixel of it. NMS is exact for all levels.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        rpn = cfg.MODEL.RPN
        ret["anchor_matcher"] = OneAnchorMatcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS)
        ret["box2box_transform"] = AnchorTransform(weights=rpn.BBOX_REG_WEIGHTS)
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :meth:`RPN.forward`."""
        height, width = images.tensor.shape[-2:]
        padded = ImageList(images.tensor, [(height, width)] * len(images))
        found, losses = super().forward(padded, features, gt_instances)
        proposals = [
            Instances(size, **one.get_fields())
            for one, size in zip(found, images.image_sizes, strict=True)
        ]
        for one in () if self.training else proposals:
            one.set(PADDED_SIZE, PerImage((height, width), len(one)))
        return proposals, losses

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See :meth:`RPN.predict_proposals`.

        Raises:
            FloatingPointError: in training, a prediction is not finite.
        """
        levels = self._decode_proposals(anchors, pred_anchor_deltas)
        return [
            self._best([x[n] for x in levels], [x[n] for x in pred_objectness_logits], size)
            for n, size in enumerate(image_sizes)
        ]

    def _best(
        self, boxes: list[Tensor], scores: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """One image's proposals, best first; of each level (A, 4) boxes and (A,) scores."""
        most = self.pre_nms_topk[self.training]
        best = [level.topk(min(most, len(level))) for level in scores]
        candidates = torch.cat([level[top.indices] for level, top in zip(boxes, best, strict=True)])
        logits, order = torch.cat([top.values for top in best]).sort(descending=True, stable=True)
        sizes = torch.tensor([len(top.values) for top in best], device=order.device)
        numbers = torch.arange(len(best), device=order.device).repeat_interleave(sizes)[order]
        candidates = clip_to_pixels(candidates[order], image_size)
        sound = candidates.isfinite().all(dim=1) & logits.isfinite()
        if self.training and not sound.all():
            raise FloatingPointError("predicted boxes or scores are not finite: training diverged")
        sound &= (candidates > 0).any(dim=1)  # nothing at the origin; small boxes stay
        candidates, logits, numbers = candidates[sound], logits[sound], numbers[sound]
        keep = suppress(candidates, logits, numbers, self.nms_thresh)
        keep = keep[: self.post_nms_topk[self.training]]
        fields = {"proposal_boxes": Boxes(candidates[keep]), "objectness_logits": logits[keep]}
        return Instances(image_size, **fields)


@RPN_HEAD_REGISTRY.register()
class LevelNormRPNHead(StandardRPNHead):
    """Detectron2's RPN head whose convolutions are shared by the levels, and whose norms are not.

    The official code: two 3x3 convolutions, after each a batch norm of the level's own.
    """

    @configurable
    def __init__(self, *, norm: str, levels: int, **kwargs: Any) -> None:
        """
        Args:
            norm: e.g. "SyncBN".
            levels: feature maps that the head is applied to, in a fixed order.
            kwargs: of :class:`StandardRPNHead`.
        """
        super().__init__(**kwargs)
        self.norms = nn.ModuleList(
            nn.ModuleList(get_norm(norm, conv.out_channels) for conv in self._convs)
            for _ in range(levels)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        return {**ret, "norm": cfg.MODEL.RPN.NORM, "levels": len(input_shape)}

    @property
    def _convs(self) -> list[Conv2d]:
        return [self.conv] if isinstance(self.conv, Conv2d) else list(self.conv)

    def _get_rpn_conv(self, in_channels: int, out_channels: int) -> Conv2d:
        return Conv2d(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`StandardRPNHead.forward`."""
        hidden = [
            self._hidden(level, list(norms.children()))
            for level, norms in zip(features, self.norms, strict=True)
        ]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]

    def _hidden(self, x: Tensor, norms: Iterable[nn.Module]) -> Tensor:
        for conv, norm in zip(self._convs, norms, strict=True):
            x = F.relu_(norm(conv(x)))
        return x


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
