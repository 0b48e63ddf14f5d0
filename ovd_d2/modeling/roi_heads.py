"""ViLD's ROI heads: a text branch, an image branch, and how they share or mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_box_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ovd_d2 import scoring
from ovd_d2.losses import distillation_l1
from ovd_d2.modeling.box_head import (
    EmbeddingProjection,
    OpenVocabularyOutputLayers,
    RegionEmbeddingHead,
    refuse_sigmoid_losses,
)
from ovd_d2.modeling.classifier import CLIPClassifier
from ovd_d2.modeling.objectness import objectness_kind
from ovd_d2.vocabulary import Vocabulary


@dataclass(frozen=True)
class Variant:
    """What one of the paper's systems trains and how it scores.

    Attributes:
        classifies: the text branch is trained by cross-entropy.
        distils: the image branch is trained to match the teacher.
        separate_heads: the image branch has a trunk and projection of its own.
        scores: "text", "image" or "ensemble".
    """

    classifies: bool
    distils: bool
    separate_heads: bool
    scores: str


VARIANTS = {
    "vild_text": Variant(classifies=True, distils=False, separate_heads=False, scores="text"),
    "vild_image": Variant(classifies=False, distils=True, separate_heads=False, scores="image"),
    "vild": Variant(classifies=True, distils=True, separate_heads=False, scores="text"),
    "vild_ensemble": Variant(classifies=True, distils=True, separate_heads=True, scores="ensemble"),
}


def get_variant(name: str) -> Variant:
    """The variant of that name; a KeyError lists the known ones."""
    if name not in VARIANTS:
        raise KeyError(f"MODEL.OVD.VARIANT must be one of {', '.join(VARIANTS)}; got '{name}'")
    return VARIANTS[name]


def run_together(head: nn.Module, *pooled: Tensor) -> tuple[Tensor, ...]:
    """`head` of all (N_i, ...) in one batch, given back as one tensor (N_i, ...) each."""
    return head(torch.cat(pooled)).split([len(part) for part in pooled])


@ROI_HEADS_REGISTRY.register()
class ViLDROIHeads(StandardROIHeads):
    """Standard ROI heads that classify by words and learn from cached teacher embeddings.

    `forward` takes one argument more than Detectron2's: `cached_proposals`, one `Instances` an
    image with `proposal_boxes` (K boxes in the coordinates of the augmented image) and
    `teacher_embeddings` (K, D), rows of any type and length (the loss normalises them); needed in
    training by every variant that distils.
    """

    @configurable
    def __init__(
        self,
        *,
        variant: Variant,
        image_head: RegionEmbeddingHead | None,
        distillation_weight: float,
        base_weight: float,
        novel_weight: float,
        objectness_weight: float,
        objectness: str = "logit",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            variant: which system this is.
            image_head: the image branch, if it is a separate one; else the text branch's trunk
                and projection serve both.
            distillation_weight: w of the ViLD-image loss.
            base_weight, novel_weight: see :func:`ovd_d2.scoring.vild_ensemble`.
            objectness_weight: see :func:`ovd_d2.scoring.mix_objectness`.
            objectness: see :func:`ovd_d2.scoring.objectness_probabilities`.
            kwargs: of :class:`StandardROIHeads`.
        """
        super().__init__(**kwargs)
        if variant.separate_heads != (image_head is not None):
            raise ValueError(f"{variant} and image_head={image_head} do not fit each other")
        self.variant = variant
        self.image_head = image_head
        self.distillation_weight = distillation_weight
        self.base_weight = base_weight
        self.novel_weight = novel_weight
        self.objectness_weight = objectness_weight
        self.objectness = objectness
        if not variant.classifies:
            for predictor in self.predictors:
                predictor.loss_weight = {**predictor.loss_weight, "loss_cls": 0.0}
        # A loaded state dict may bring a vocabulary of another length.
        self.register_load_state_dict_post_hook(lambda module, _: module._sync_num_classes())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        # Here, before the base class builds its own predictor, which stops at an assertion.
        refuse_sigmoid_losses(sigmoid_ce=box_head.USE_SIGMOID_CE, federated=box_head.USE_FED_LOSS)
        ret = super().from_config(cfg, input_shape)
        ret["variant"] = get_variant(cfg.MODEL.OVD.VARIANT)
        ret["distillation_weight"] = cfg.MODEL.OVD.DISTILLATION.WEIGHT
        ret["base_weight"] = cfg.MODEL.OVD.BASE_WEIGHT
        ret["novel_weight"] = cfg.MODEL.OVD.NOVEL_WEIGHT
        ret["objectness_weight"] = cfg.MODEL.OVD.OBJECTNESS_WEIGHT
        if cfg.MODEL.OVD.OBJECTNESS_WEIGHT > 0:
            ret["objectness"] = objectness_kind(cfg)
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
    def _init_image_head(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> RegionEmbeddingHead | None:
        if not get_variant(cfg.MODEL.OVD.VARIANT).separate_heads:
            return None
        resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        trunk = build_box_head(cfg, ShapeSpec(channels, resolution, resolution))
        projection = EmbeddingProjection(trunk.output_shape, cfg.MODEL.OVD.EMBEDDING_DIM)
        return RegionEmbeddingHead(trunk=trunk, projection=projection)

    @property
    def predictors(self) -> Sequence[OpenVocabularyOutputLayers]:
        """Everything that classifies by words: here the one box predictor."""
        return [self.box_predictor]

    @property
    def classifier(self) -> CLIPClassifier:
        """Holds the vocabulary; where there are several, all hold the same."""
        return self.predictors[0].classifier

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes the heads detect these names; nothing else changes."""
        for predictor in self.predictors:
            predictor.classifier.set_vocabulary(vocabulary)
        self._sync_num_classes()

    def _sync_num_classes(self) -> None:
        self.num_classes = self.classifier.num_classes
        for predictor in self.predictors:
            predictor.num_classes = self.num_classes

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        cached_proposals: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See :meth:`StandardROIHeads.forward`; `cached_proposals` as the class says."""
        if not (self.training and self.variant.distils):
            return super().forward(images, features, proposals, targets)
        if cached_proposals is None:
            raise ValueError(
                "this variant learns from cached proposals, but the batch has none: set "
                "MODEL.OVD.DISTILLATION.CACHE and use OpenVocabularyDatasetMapper"
            )
        if targets is None:
            raise ValueError("training needs ground truth: the batch has no 'instances'")
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
        targets: list[Instances],  # a cascade's
        cached_proposals: list[Instances],
    ) -> dict[str, Tensor]:
        """Losses of one head for both branches: all regions pass it together, as in the official
        code, so that its batch norms see in training what they have to stand for at test time."""
        sampled, cached = run_together(
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
        scores = torch.cat([x.objectness_logits for x in proposals])
        objectness = scoring.objectness_probabilities(scores, self.objectness)
        return scoring.mix_objectness(probs, objectness, self.objectness_weight)

    def _scores(
        self, predictor: OpenVocabularyOutputLayers, logits: Tensor, pooled: Tensor, region: Tensor
    ) -> Tensor:
        """(N, C) scores of the variant, before objectness."""
        if self.variant.scores == "text":
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
        if self.variant.scores == "image":
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
