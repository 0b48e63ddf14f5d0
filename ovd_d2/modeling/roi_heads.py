"""ROI heads that classify by words: a text branch and, beside it, an image branch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ovd_d2 import scoring
from ovd_d2.modeling import traced
from ovd_d2.modeling.box_head import OpenVocabularyOutputLayers, refuse_sigmoid_losses
from ovd_d2.modeling.classifier import CLIPClassifier, Words
from ovd_d2.modeling.image_branches import ImageBranch, Regions
from ovd_d2.modeling.mask_head import masks_depend_on_category
from ovd_d2.modeling.masks import distinct_rows
from ovd_d2.modeling.objectness import objectness_kind
from ovd_d2.modeling.pooler import has_fractional_strides, level_pooler, with_whole_strides
from ovd_d2.vocabulary import Vocabulary

SCORES = ("text", "image", "ensemble")
WORDS = "words"  # field of proposals: a PerImage of Words


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
        image_head: ImageBranch | None = None,
        scores: str = "text",
        base_weight: float,
        novel_weight: float,
        objectness_weight: float,
        objectness: str = "logit",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            image_head: the image branch; None: the text branch's trunk and projection serve both.
            scores: where test scores come from, "text", "image" or "ensemble".
            base_weight, novel_weight: see :func:`ovd_d2.scoring.vild_ensemble`.
            objectness_weight: see :func:`ovd_d2.scoring.mix_objectness`.
            objectness: see :func:`ovd_d2.scoring.objectness_probabilities`.
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
        self.objectness = objectness
        self._sync_num_classes()
        # A loaded state dict may bring a vocabulary of another length.
        self.register_load_state_dict_post_hook(lambda module, _: module._sync_num_classes())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        # Here, before the base class builds its own predictor, which stops at an assertion.
        refuse_sigmoid_losses(sigmoid_ce=box_head.USE_SIGMOID_CE, federated=box_head.USE_FED_LOSS)
        ret = super().from_config(cfg, input_shape)
        ret["base_weight"] = cfg.MODEL.OVD.BASE_WEIGHT
        ret["novel_weight"] = cfg.MODEL.OVD.NOVEL_WEIGHT
        ret["objectness_weight"] = cfg.MODEL.OVD.OBJECTNESS_WEIGHT
        if cfg.MODEL.OVD.OBJECTNESS_WEIGHT > 0:
            ret["objectness"] = objectness_kind(cfg)
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, with_whole_strides(input_shape))
        if cls._pools_by_level(input_shape):
            ret["box_pooler"] = level_pooler(cfg, input_shape, "BOX")
        ret.update(cls._init_predictors(cfg, ret))
        ret["image_head"] = cls._init_image_head(cfg, input_shape)
        return ret

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super()._init_mask_head(cfg, with_whole_strides(input_shape))
        if ret.get("mask_pooler") is not None and cls._pools_by_level(input_shape):
            ret["mask_pooler"] = level_pooler(cfg, input_shape, "MASK")
        return ret

    @classmethod
    def _pools_by_level(cls, input_shape: dict[str, ShapeSpec]) -> bool:
        """Whether `LevelPooler` takes the place of Detectron2's, which refuses some strides."""
        return has_fractional_strides(input_shape)

    @classmethod
    def _init_predictors(cls, cfg: CfgNode, built: dict[str, Any]) -> dict[str, Any]:
        return {"box_predictor": OpenVocabularyOutputLayers(cfg, built["box_head"].output_shape)}

    @classmethod
    def _init_image_head(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> ImageBranch | None:
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

    def set_image_branch(self, branch: ImageBranch, *, scores: str) -> None:
        """Scores with another image branch from now on, e.g. the teacher on crops.

        Args:
            branch: takes the place of the one there is.
            scores: "image" or "ensemble".
        """
        self.image_head, self.scores = branch, scores

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
        targets: list[Instances] | None = None,  # read by a cascade alone
    ) -> Any:
        """As Detectron2's: in training a dict of losses, else one `Instances` per image."""
        if self.training:
            return super()._forward_box(features, proposals)
        words = _words_on(proposals) or self.classifier.words
        if self.image_head is not None and self.image_head.embeds_proposals:
            probs, boxes = self._classify_proposals(self.image_head, features, proposals, words)
        else:
            probs, boxes = self._classify(features, proposals, words)  # the logits are gone by now
        probs = self._mix_objectness(probs, proposals)
        return self.predictors[-1].select_detections(probs, boxes, proposals)

    def _classify(
        self, features: dict[str, Tensor], proposals: list[Instances], words: Words
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """(N, C) scores before objectness, and the boxes, one (N_i, 4) per image."""
        pooled = self._pool(features, proposals)  # both branches read the same pooled features
        trunk = self.box_head(pooled)
        predictions = self.box_predictor(trunk, words)
        regions = Regions(features, proposals, pooled)
        scores = self._scores(self.box_predictor, words, predictions[0], trunk, regions)
        return scores, self.box_predictor.predict_boxes(predictions, proposals)

    def _classify_proposals(
        self,
        branch: ImageBranch,
        features: dict[str, Tensor],
        proposals: list[Instances],
        words: Words,
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """`_classify` with an image branch that looks at the proposals as they came."""
        embeddings = branch.embed(Regions(features, proposals, torch.empty(0)))
        image_probs = branch.probabilities(embeddings, words, self.classifier.temperature)
        if self.scores == "image":
            return image_probs, [one.proposal_boxes.tensor for one in proposals]
        text_probs, boxes = self._classify_by_text(features, proposals, words)
        return self._ensemble(words, text_probs, image_probs), boxes

    def _classify_by_text(
        self, features: dict[str, Tensor], proposals: list[Instances], words: Words
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """`_classify` by the text branch alone."""
        predictions = self.box_predictor(self.box_head(self._pool(features, proposals)), words)
        boxes = self.box_predictor.predict_boxes(predictions, proposals)
        return scoring.text_probabilities(predictions[0]), boxes

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """As Detectron2's, but at test time each box passes a class-agnostic mask head once:
        many detections are one region under several names."""
        if self.training or not self.mask_on or masks_depend_on_category(self.mask_head):
            return super()._forward_mask(features, instances)
        distinct, places = zip(*map(_distinct_boxes, instances), strict=True)
        found = super()._forward_mask(features, list(distinct))
        for one, masked, rows in zip(instances, found, places, strict=True):
            one.pred_masks = masked.pred_masks[rows]
        return instances

    def _mix_objectness(self, probs: Tensor, proposals: list[Instances]) -> Tensor:
        if self.objectness_weight == 0:
            return probs
        scores = torch.cat([x.objectness_logits for x in proposals])
        objectness = scoring.objectness_probabilities(scores, self.objectness)
        return scoring.mix_objectness(probs, objectness, self.objectness_weight)

    def _scores(
        self,
        predictor: OpenVocabularyOutputLayers,
        words: Words,
        logits: Tensor,
        trunk: Tensor,
        regions: Regions,
    ) -> Tensor:
        """(N, C) scores of regions, before objectness.

        Args:
            predictor: of the text branch.
            words: C names to choose from.
            logits: (N, C + 1), the predictor's.
            trunk: (N, F), what the predictor read.
            regions: the same for the image branch.
        """
        if self.scores == "text":
            return scoring.text_probabilities(logits)
        branch = self.image_head
        embeddings = predictor.embed(trunk) if branch is None else branch.embed(regions)
        # One matrix product of all regions: the words are read once, not with every block.
        image_logits = words.best(
            scoring.image_logits(embeddings, words.embeddings, self.classifier.temperature)
        )
        score = partial(self._scores_of_block, words)
        return scoring.in_blocks(score, logits, image_logits, into=image_logits)

    def _scores_of_block(self, words: Words, logits: Tensor, image_logits: Tensor) -> Tensor:
        image_probs = image_logits.softmax(dim=1)
        if self.scores == "image":
            return image_probs
        return self._ensemble(words, scoring.text_probabilities(logits), image_probs)

    def _ensemble(self, words: Words, text_probs: Tensor, image_probs: Tensor) -> Tensor:
        return scoring.vild_ensemble(
            text_probs, image_probs, words.novel, self.base_weight, self.novel_weight
        )


def _distinct_boxes(one: Instances) -> tuple[Instances, Tensor]:
    """Every box of an image once, and where among these the boxes of all detections are."""
    if torch.jit.is_tracing():
        boxes, places = traced.distinct_rows(one.pred_boxes.tensor)
        return Instances(one.image_size, pred_boxes=Boxes(boxes)), places
    kept, places = distinct_rows(one.pred_boxes.tensor)
    return one[kept], places


def _words_on(proposals: list[Instances]) -> Words | None:
    """What rides on the proposals of a call with a vocabulary of its own."""
    return proposals[0].get(WORDS).value if proposals[0].has(WORDS) else None
