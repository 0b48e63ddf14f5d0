"""ViLD's ROI heads: branches that learn from words and from cached teacher embeddings."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_box_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ovd_d2.losses import distillation_l1
from ovd_d2.modeling.box_head import EmbeddingProjection, RegionEmbeddingHead
from ovd_d2.modeling.roi_heads import OpenVocabularyROIHeads
from ovd_d2.structures import cached_proposals_of
from ovd_d2.vild.pooler import BinCentrePooler
from ovd_d2.vild.predictor import ViLDOutputLayers
from ovd_d2.vild.variants import Variant, get_variant

BOX_DELTAS = 4  # outputs of the class-agnostic box regression, whose initial weights stay


def apply_jointly(head: nn.Module, *pooled: Tensor) -> tuple[Tensor, ...]:
    """`head` of all (N_i, ...) in one batch, given back as one tensor (N_i, ...) each."""
    return head(torch.cat(pooled)).split([len(part) for part in pooled])


@ROI_HEADS_REGISTRY.register()
class ViLDROIHeads(OpenVocabularyROIHeads):
    """Heads that classify by words and learn from cached teacher embeddings.

    Every variant that distils needs, in training, cached proposals on the `instances` of each
    image (:func:`ovd_d2.structures.attach_cached_proposals`): an `Instances` with `proposal_boxes`
    (K boxes in the coordinates of the augmented image) and `teacher_embeddings` (K, D), rows of
    any type and length (the loss normalises them).
    """

    @configurable
    def __init__(
        self,
        *,
        variant: Variant,
        image_head: RegionEmbeddingHead | None,
        distillation_weight: float,
        glorot_linear: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            variant: which system of the paper's table this is.
            image_head: the image branch, if it is a separate one; else the text branch's trunk
                and projection serve both.
            distillation_weight: w of the ViLD-image loss.
            glorot_linear: initial weights of linear layers of trunks and projections are Glorot's,
                not Detectron2's.
            kwargs: of :class:`OpenVocabularyROIHeads`.
        """
        super().__init__(image_head=image_head, scores=variant.scores, **kwargs)
        if variant.separate_heads != (image_head is not None):
            raise ValueError(f"{variant} and image_head={image_head} do not fit each other")
        self.variant = variant
        self.distillation_weight = distillation_weight
        for module in self.modules() if glorot_linear else ():
            if isinstance(module, nn.Linear) and module.out_features != BOX_DELTAS:
                nn.init.xavier_uniform_(module.weight)
        if not variant.classifies:
            for predictor in self.predictors:
                predictor.loss_weight = {**predictor.loss_weight, "loss_cls": 0.0}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["variant"] = get_variant(cfg.MODEL.VILD.VARIANT)
        ret["glorot_linear"] = cfg.MODEL.VILD.GLOROT_LINEAR
        ret["distillation_weight"] = cfg.MODEL.VILD.DISTILLATION.WEIGHT
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        return _with_pooler(ret, "box_pooler", cfg, input_shape)

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_mask_head(cfg, input_shape)
        return _with_pooler(ret, "mask_pooler", cfg, input_shape)

    @classmethod
    def _init_predictors(cls, cfg: CfgNode, built: dict[str, Any]) -> dict[str, Any]:
        return {"box_predictor": ViLDOutputLayers(cfg, built["box_head"].output_shape)}

    @classmethod
    def _init_image_head(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> RegionEmbeddingHead | None:
        if not get_variant(cfg.MODEL.VILD.VARIANT).separate_heads:
            return None
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        trunk = build_box_head(cfg, ShapeSpec(channels, resolution, resolution))
        projection = EmbeddingProjection(trunk.output_shape, cfg.MODEL.OVD.EMBEDDING_DIM)
        return RegionEmbeddingHead(trunk=trunk, projection=projection)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :meth:`StandardROIHeads.forward`.

        Raises:
            ValueError: the variant distils, and an image has no cached proposals; or none has any,
                unless there is no gradient, either (a validation loss is without distillation).
        """
        if not (self.training and self.variant.distils) or _is_validation(targets):
            return super().forward(images, features, proposals, targets)
        if targets is None:
            raise ValueError("training needs ground truth: the batch has no 'instances'")
        cached_proposals = _cached_proposals(targets)
        proposals = self.label_and_sample_proposals(proposals, targets)
        if self.image_head is not None:
            losses = self._forward_box(features, proposals, targets)
            student = self.image_head(self._pool(features, cached_proposals))
            losses["loss_distillation"] = self._distillation_loss(student, cached_proposals)
        else:
            losses = self._shared_box_losses(features, proposals, targets, cached_proposals)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return proposals, losses

    def _shared_box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],  # read by a cascade alone
        cached_proposals: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of one head for both branches: all regions pass it together, as in the official
        code, so that the statistics of its batch norms are of both kinds of regions."""
        sampled, cached = apply_jointly(
            self.box_head, self._pool(features, proposals), self._pool(features, cached_proposals)
        )
        predictions = self.box_predictor(sampled)
        losses = self.box_predictor.losses(predictions, proposals)
        student = self.box_predictor.embed(cached)
        losses["loss_distillation"] = self._distillation_loss(student, cached_proposals)
        if self.train_on_pred_boxes:  # last: the losses above belong to the proposals
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for one, predicted in zip(proposals, boxes, strict=True):
                one.proposal_boxes = Boxes(predicted)
        return losses

    def _distillation_loss(self, student: Tensor, cached_proposals: list[Instances]) -> Tensor:
        """Of region embeddings (N, D) of the N cached proposals of the batch."""
        # One type first: autocast refuses to join rows of a 16-bit type that is not its own.
        teacher = torch.cat([x.teacher_embeddings.float() for x in cached_proposals])
        return distillation_l1(student, teacher, self.distillation_weight)


def _with_pooler(
    built: dict[str, Any], key: str, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> dict[str, Any]:
    """`built` with the official pooler in place of Detectron2's, where the config wants it."""
    old = built.get(key)
    if old is None or not cfg.MODEL.VILD.BIN_CENTRE_POOLING:
        return built
    scales = [1 / input_shape[name].stride for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    return {**built, key: BinCentrePooler(old.output_size[0], scales)}


def _is_validation(targets: list[Instances] | None) -> bool:
    """No gradient is wanted, and there is nothing to distil from."""
    return not torch.is_grad_enabled() and not any(map(cached_proposals_of, targets or ()))


def _cached_proposals(targets: list[Instances]) -> list[Instances]:
    found = [cached_proposals_of(one) for one in targets]
    if any(one is None for one in found):
        raise ValueError(
            "this variant learns from cached proposals, but the batch has none: set "
            "MODEL.VILD.DISTILLATION.CACHE, and use OpenVocabularyDatasetMapper or wrap the "
            "project's mapper in ovd_d2.data.mapper.WithPassengers"
        )
    return [one for one in found if one is not None]
