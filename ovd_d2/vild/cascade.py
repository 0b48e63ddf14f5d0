"""ViLD's branches in every stage of a Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ovd_d2 import scoring
from ovd_d2.modeling.box_head import OpenVocabularyOutputLayers
from ovd_d2.modeling.classifier import Words
from ovd_d2.modeling.image_branches import Regions
from ovd_d2.vild.roi_heads import ViLDROIHeads, apply_jointly


@ROI_HEADS_REGISTRY.register()
class ViLDCascadeROIHeads(ViLDROIHeads, CascadeROIHeads):
    """Cascade R-CNN (arXiv 1712.00726) with :class:`ViLDROIHeads`' branches in every stage.

    Every stage has a projection, a background embedding and a box regression of its own; all hold
    the same vocabulary. How ViLD's branches meet the cascade is this package's choice, for the
    paper has none:

    - Text branch: each stage learns to classify its own regions, as in Detectron2's cascade.
    - Distillation: the cached proposals are never refined, because their embeddings belong to
      their boxes. Where the branches share a head, every stage embeds them and learns from them,
      as every stage will score; where they do not, the one image head does.
    - Test time: each stage scores its regions as the variant says (the image head reads the same
      pooled features as the stage), the scores are averaged over the stages as in Detectron2's
      cascade, then mixed with the objectness of the proposals the cascade started from (the order
      of both as in Detic). Boxes are the last stage's.
    """

    @classmethod
    def _init_predictors(cls, cfg: CfgNode, built: dict[str, Any]) -> dict[str, Any]:
        weights_per_stage = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        return {
            "box_predictors": [
                OpenVocabularyOutputLayers(
                    cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
                )
                for head, weights in zip(built["box_heads"], weights_per_stage, strict=True)
            ]
        }

    @property
    def predictors(self) -> Sequence[OpenVocabularyOutputLayers]:
        """One per stage."""
        return list(self.box_predictor)

    def _shared_box_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        cached_proposals: list[Instances],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        cached = self._pool_stage(features, cached_proposals)
        for k, (head, predictor) in enumerate(zip(self.box_head, self.predictors, strict=True)):
            pooled = self._pool_stage(features, proposals)
            region, cached_region = apply_jointly(head, pooled, cached)
            predictions = predictor(region)
            with get_event_storage().name_scope(f"stage{k}"):
                stage = predictor.losses(predictions, proposals)
            student = predictor.embed(cached_region)
            stage["loss_distillation"] = self._distillation_loss(student, cached_proposals)
            losses.update({f"{name}_stage{k}": loss for name, loss in stage.items()})
            if k + 1 < self.num_cascade_stages:
                proposals = self._refine(predictor, predictions, proposals)
                proposals = self._match_and_label_boxes(proposals, k + 1, targets)
        return losses

    def _pool_stage(self, features: dict[str, Tensor], regions: list[Instances]) -> Tensor:
        """As in Detectron2's cascade: each stage's own parameters see its whole loss, the features
        below see the mean over the stages."""
        return _ScaleGradient.apply(self._pool(features, regions), 1.0 / self.num_cascade_stages)

    def _refine(
        self,
        predictor: OpenVocabularyOutputLayers,
        predictions: tuple[Tensor, Tensor],
        regions: list[Instances],
    ) -> list[Instances]:
        """The next stage's regions: the boxes that this one predicts."""
        boxes = predictor.predict_boxes(predictions, regions)
        return self._create_proposals_from_boxes(boxes, [x.image_size for x in regions])

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Any:
        if self.training:
            return CascadeROIHeads._forward_box(self, features, proposals, targets)
        return super()._forward_box(features, proposals, targets)

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Instances], words: Words
    ) -> tuple[Tensor, Sequence[Tensor]]:
        return self._run_stages(features, proposals, words, self._scores)

    def _classify_by_text(
        self, features: dict[str, Tensor], proposals: list[Instances], words: Words
    ) -> tuple[Tensor, Sequence[Tensor]]:
        def score(
            predictor: OpenVocabularyOutputLayers, words: Words, logits: Tensor, *_: Any
        ) -> Tensor:
            return scoring.text_probabilities(logits)

        return self._run_stages(features, proposals, words, score)

    def _run_stages(
        self,
        features: dict[str, Tensor],
        regions: list[Instances],
        words: Words,
        score: Callable[[OpenVocabularyOutputLayers, Words, Tensor, Tensor, Regions], Tensor],
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(N, C) scores, the mean over the stages; boxes of the last one, (N_i, 4) per image."""
        summed: Tensor | None = None
        boxes: list[Tensor] = []
        for head, predictor in zip(self.box_head, self.predictors, strict=True):
            if boxes:
                sizes = [one.image_size for one in regions]
                regions = self._create_proposals_from_boxes(boxes, sizes)
            pooled = self._pool(features, regions)
            trunk = head(pooled)
            predictions = predictor(trunk, words)
            seen = Regions(features, regions, pooled)
            scores = score(predictor, words, predictions[0], trunk, seen)
            summed = scores if summed is None else summed + scores
            boxes = list(predictor.predict_boxes(predictions, regions))
        assert summed is not None  # there are stages
        return summed / self.num_cascade_stages, boxes
