"""ROI heads that classify by words: a text branch and, beside it, an image branch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from ovd_d2 import scoring
from ovd_d2.modeling.box_head import OpenVocabularyOutputLayers
from ovd_d2.modeling.classifier import CLIPClassifier
from ovd_d2.vocabulary import Vocabulary

SCORES = ("text", "image", "ensemble")


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyROIHeads(StandardROIHeads):
    """Standard ROI heads whose categories are a vocabulary.

    The text branch is the box predictor (:class:`OpenVocabularyOutputLayers`). The image branch
    gives regions an embedding in the teacher's image space; at test time it scores beside the text
    branch or in its place.
    """

    @configurable
    def __init__(
        self,
        *,
        image_head: nn.Module | None = None,
        scores: str = "text",
        base_weight: float,
        novel_weight: float,
        objectness_weight: float,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            image_head: the image branch, pooled features (N, C, H, W) -> unit region embeddings
                (N, D); None: the text branch's trunk and projection serve both.
            scores: where test scores come from, "text", "image" or "ensemble".
            base_weight, novel_weight: see :func:`ovd_d2.scoring.vild_ensemble`.
            objectness_weight: see :func:`ovd_d2.scoring.mix_objectness`.
            kwargs: of :class:`StandardROIHeads`.
        """
        super().__init__(**kwargs)
        if scores not in SCORES:
            raise ValueError(f"scores must be one of {', '.join(SCORES)}, got '{scores}'")
        self.image_head = image_head
        self.scores = scores
        self.base_weight = base_weight
        self.novel_weight = novel_weight
        self.objectness_weight = objectness_weight
        self._sync_num_classes()
        # A loaded state dict may bring a vocabulary of another length.
        self.register_load_state_dict_post_hook(lambda module, _: module._sync_num_classes())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["base_weight"] = cfg.MODEL.OVD.BASE_WEIGHT
        ret["novel_weight"] = cfg.MODEL.OVD.NOVEL_WEIGHT
        ret["objectness_weight"] = cfg.MODEL.OVD.OBJECTNESS_WEIGHT
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret.update(cls._init_predictors(cfg, ret))
        ret["image_head"] = cls._init_image_head(cfg, input_shape)
        return ret

    @classmethod
    def _init_predictors(cls, cfg: CfgNode, built: dict[str, Any]) -> dict[str, Any]:
        return {"box_predictor": OpenVocabularyOutputLayers(cfg, built["box_head"].output_shape)}

    @classmethod
    def _init_image_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
        """The image branch; a subclass that has one makes it here."""
        return None

    @property
    def predictors(self) -> Sequence[OpenVocabularyOutputLayers]:
        """Everything that classifies by words: here the one box predictor."""
        return [self.box_predictor]

    @property
    def classifier(self) -> CLIPClassifier:
        """Holds the vocabulary; where there are several, all hold the same."""
        return self.predictors[0].classifier

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What they look for; None where none was set, or a checkpoint brought no names."""
        return self.classifier.vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes the heads detect these names; nothing else changes."""
        for predictor in self.predictors:
            predictor.classifier.set_vocabulary(vocabulary)
        self._sync_num_classes()

    def _sync_num_classes(self) -> None:
        self.num_classes = self.classifier.num_classes
        for predictor in self.predictors:
            predictor.num_classes = self.num_classes

    def _pool(self, features: dict[str, Tensor], proposals: list[Instances]) -> Tensor:
        return self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in proposals]
        )

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,  # a cascade's
    ) -> Any:
        """As Detectron2's: in training a dict of losses, else one `Instances` an image."""
        if self.training:
            return super()._forward_box(features, proposals)
        probs, deltas = self._classify(features, proposals)  # the logits are gone by now
        probs = self._mix_objectness(probs, proposals)
        return self.box_predictor.select_detections(probs, deltas, proposals)

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """(N, C) scores of the variant, before objectness, and (N, 4) box deltas."""
        pooled = self._pool(features, proposals)  # both branches read the same pooled features
        region = self.box_head(pooled)
        logits, deltas = self.box_predictor(region)
        return self._scores(self.box_predictor, logits, pooled, region), deltas

    def predict_text(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, list[Tensor]]:
        """The text branch alone: (N, C) probabilities of N proposals, and the boxes it makes of
        them, (K, 4) an image."""
        predictions = self.box_predictor(self.box_head(self._pool(features, proposals)))
        boxes = self.box_predictor.predict_boxes(predictions, proposals)
        return scoring.text_probabilities(predictions[0]), list(boxes)

    def _mix_objectness(self, probs: Tensor, proposals: list[Instances]) -> Tensor:
        if self.objectness_weight == 0:
            return probs
        objectness = torch.cat([x.objectness_logits for x in proposals]).sigmoid()
        return scoring.mix_objectness(probs, objectness, self.objectness_weight)

    def _scores(
        self, predictor: OpenVocabularyOutputLayers, logits: Tensor, pooled: Tensor, region: Tensor
    ) -> Tensor:
        """(N, C) scores of the variant, before objectness."""
        if self.scores == "text":
            return scoring.text_probabilities(logits)
        embeddings = (
            self.image_head(pooled) if self.image_head is not None else predictor.embed(region)
        )
        score = partial(self._image_scores, predictor.classifier)
        return scoring.in_blocks(score, logits, embeddings, width=predictor.classifier.num_classes)

    def _image_scores(
        self, classifier: CLIPClassifier, logits: Tensor, embeddings: Tensor
    ) -> Tensor:
        """`_scores` of a variant that has an image branch, whose embeddings are (N, D)."""
        image_probs = scoring.image_probabilities(
            embeddings, classifier.text_embeddings, classifier.temperature
        )
        if self.scores == "image":
            return image_probs
        return self.ensemble(scoring.text_probabilities(logits), image_probs)

    def ensemble(self, text_probs: Tensor, image_probs: Tensor) -> Tensor:
        """:func:`ovd_d2.scoring.vild_ensemble` with the weights and novel flags of these heads."""
        return scoring.vild_ensemble(
            text_probs,
            image_probs,
            self.classifier.is_novel,
            self.base_weight,
            self.novel_weight,
        )
