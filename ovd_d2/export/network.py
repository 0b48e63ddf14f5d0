"""What is traced: a detector of one image whose words are tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import RPN
from torch import Tensor, nn

from ovd_d2.errors import SetupError
from ovd_d2.modeling.classifier import CLIPClassifier, Words
from ovd_d2.modeling.mask_head import ViLDMaskHead, masks_depend_on_category
from ovd_d2.modeling.meta_arch import OpenVocabularyRCNN
from ovd_d2.modeling.roi_heads import WORDS
from ovd_d2.systems import system_of
from ovd_d2.vocabulary import Vocabulary

BOXES, SCORES, CATEGORIES, MASKS = "boxes", "scores", "categories", "masks"


@dataclass(frozen=True)
class Network:
    """What an exporter needs to know of a detector.

    Attributes:
        module: (3, H, W) uint8 and the words, in the order of `words` -> `outputs`, of one image.
        words: input -> the names of its dimensions; an empty name is a fixed length.
        example: of each of `words`.
        outputs: names of what the module returns, D detections each, best first.
        words_of: the inputs that a vocabulary is.
        settings: what a program may want to know of how detections are selected.
    """

    module: nn.Module
    words: Mapping[str, tuple[str, ...]]
    example: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    words_of: Callable[[Vocabulary], dict[str, Tensor]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, list[str | int]]:
        """Of each of the words: the name of a dimension, or its length where it is fixed."""
        return {
            name: [
                side or length for side, length in zip(sides, self.example[name].shape, strict=True)
            ]
            for name, sides in self.words.items()
        }


def network_of(cfg: CfgNode, model: nn.Module) -> Network:
    """What of a model is exported.

    Raises:
        SetupError: it cannot be exported; why.
    """
    system = system_of(cfg)
    if system is not None and system.network is not None:
        return system.network(model)
    if not isinstance(model, OpenVocabularyRCNN):
        raise SetupError(
            [
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} cannot be exported; "
                "OpenVocabularyRCNN can"
            ]
        )
    return rcnn_network(model)


class RCNNNetwork(nn.Module):
    """An R-CNN's detections of one image, as tensors.

    forward: image (3, H, W) uint8, embeddings (C, D), novel (C,) bool and, where the classifier
    does not learn its own, background (D,) -> boxes (K, 4), scores (K,), categories (K,), and masks
    (K, M, M) in their boxes where the detector has some.
    """

    def __init__(self, model: OpenVocabularyRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: Tensor, embeddings: Tensor, novel: Tensor, background: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        words = Words(embeddings, novel, background)
        (found,) = self.model.inference([{"image": image, WORDS: words}], do_postprocess=False)
        boxes = found.pred_boxes.tensor
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # as Detectron2's postprocessing
        outputs = [boxes, found.scores, found.pred_classes]
        if found.has("pred_masks"):
            outputs.append(found.pred_masks[:, 0])
        return tuple(one[kept] for one in outputs)


def rcnn_network(model: OpenVocabularyRCNN) -> Network:
    """Of a two-stage detector.

    Raises:
        SetupError: its heads cannot be traced.
    """
    heads = model.roi_heads
    if problems := _problems_of(model):
        raise SetupError(problems)
    classifier = heads.classifier
    words = {"embeddings": ("names", ""), "novel": ("names",)}
    example = {
        "embeddings": torch.eye(3, classifier.embedding_dim),
        "novel": torch.tensor([False, True, False]),
    }
    if not classifier.learns_background:
        words["background"] = ("",)
        example["background"] = torch.eye(4, classifier.embedding_dim)[3]
    predictor = heads.predictors[-1]
    return Network(
        RCNNNetwork(model).eval(),
        words,
        example,
        (BOXES, SCORES, CATEGORIES, *([MASKS] if heads.mask_on else [])),
        lambda vocabulary: _words_of(classifier, vocabulary),
        {
            "score_threshold": predictor.test_score_thresh,
            "nms_threshold": predictor.test_nms_thresh,
            "detections_per_image": predictor.test_topk_per_image,
        },
    )


def _words_of(classifier: CLIPClassifier, vocabulary: Vocabulary) -> dict[str, Tensor]:
    words = classifier.words_of(vocabulary)
    if words.owners is not None:
        raise SetupError(["an exported detector takes one word per category: leave synonyms out"])
    found = {"embeddings": words.embeddings, "novel": words.novel}
    return found if words.background is None else {**found, "background": words.background}


def _problems_of(model: OpenVocabularyRCNN) -> list[str]:
    """What keeps branches or lengths of the traced image."""
    heads, rpn = model.roi_heads, model.proposal_generator
    problems = []
    if getattr(type(rpn), "predict_proposals", None) is not RPN.predict_proposals:
        problems.append(
            f"MODEL.PROPOSAL_GENERATOR.NAME {type(rpn).__name__} cannot be exported: it selects "
            "proposals in a way of its own; those that do it as Detectron2's RPN can"
        )
    if len(heads.predictors) > 1:
        problems.append(
            f"MODEL.ROI_HEADS.NAME {type(heads).__name__} cannot be exported: it is a cascade"
        )
    if heads.mask_on and not _has_plain_masks(heads.mask_head):
        problems.append(
            f"masks of MODEL.ROI_MASK_HEAD.NAME {type(heads.mask_head).__name__} cannot be "
            "exported, those of ViLDMaskHead can: set MODEL.MASK_ON False to export boxes alone"
        )
    return problems


def _has_plain_masks(head: nn.Module) -> bool:
    return isinstance(head, ViLDMaskHead) and not masks_depend_on_category(head)
