"""CLIP on cropped regions: the slow upper line that ViLD distils (ViLD, section 4, table 3)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ovd_d2 import scoring
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.modeling import OpenVocabularyRCNN
from ovd_d2.modeling.detection import select_detections
from ovd_d2.modeling.objectness import objectness_kind
from ovd_d2.vocabulary import Vocabulary

CLASSIFY_WITH = ("detector", "clip_crops", "text_and_clip_crops")


class CropClassifier(nn.Module):
    """Proposals and masks from a detector, categories from the teacher on the original pixels.

    Takes and returns what a detector does, so Detectron2's evaluation loop runs it unchanged.
    With `text_branch` it is the paper's ViLD-text + CLIP: boxes are the text branch's, and the
    teacher takes the image branch's place in the ensemble.
    """

    def __init__(
        self,
        *,
        detector: OpenVocabularyRCNN,
        teacher: CLIPTeacher,
        text_branch: bool,
        objectness_weight: float,
        objectness: str,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
    ) -> None:
        """
        Args:
            detector: holds the vocabulary and the weights of the ensemble.
            teacher: must be the vocabulary's.
            text_branch: the detector's text branch has a say.
            objectness_weight: see :func:`ovd_d2.scoring.mix_objectness`; 0.5 is the geometric
                mean of the paper, 0 the teacher's word alone.
            objectness: see :func:`ovd_d2.scoring.objectness_probabilities`.
            score_threshold, nms_threshold, detections_per_image: as in Detectron2's ROI heads.
        """
        super().__init__()
        self.detector = detector
        self.teacher = teacher
        self.text_branch = text_branch
        self.objectness_weight = objectness_weight
        self.objectness = objectness
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What the detector, and so the teacher, looks for."""
        return self.detector.vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Makes the detector and the teacher look for these names from now on."""
        self.detector.set_vocabulary(vocabulary)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """As :class:`OpenVocabularyRCNN`'s: what an image gives does not depend on the others."""
        return [self._forward(one) for one in batched_inputs]

    def _forward(self, one: dict[str, Any]) -> dict[str, Instances]:
        features, proposals = self.detector.propose([one])
        probs = self._crop_probabilities(one, proposals[0])  # (K, C)
        boxes = [p.proposal_boxes.tensor for p in proposals]
        if self.text_branch:
            probs, boxes = self._with_text_branch(probs, features, proposals)
        scores = proposals[0].objectness_logits
        objectness = scoring.objectness_probabilities(scores, self.objectness)
        probs = scoring.mix_objectness(probs, objectness, self.objectness_weight)
        detected = self._select(probs, boxes, proposals)
        with_masks = self.detector.roi_heads.forward_with_given_boxes(features, detected)[0]
        return {"instances": detector_postprocess(with_masks, one["height"], one["width"])}

    def _with_text_branch(
        self, probs: Tensor, features: dict[str, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, list[Tensor]]:
        text_probs, boxes = self.detector.roi_heads.predict_text(features, proposals)
        return self.detector.roi_heads.ensemble(text_probs, probs), boxes

    def _select(
        self, probs: Tensor, boxes: list[Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        return select_detections(
            boxes,
            probs.split([len(p) for p in proposals]),
            [p.image_size for p in proposals],
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            limit=self.detections_per_image,
        )

    def _crop_probabilities(self, record: dict[str, Any], proposals: Instances) -> Tensor:
        image = read_image(record["file_name"], "RGB")
        height, width = proposals.image_size
        boxes = Boxes(proposals.proposal_boxes.tensor.clone())
        boxes.scale(image.shape[1] / width, image.shape[0] / height)
        embeddings = embed_proposals(image, boxes.tensor.cpu(), self.teacher)
        classifier = self.detector.roi_heads.classifier
        return scoring.image_probabilities(
            embeddings.to(self.detector.device), classifier.text_embeddings, classifier.temperature
        )


def with_crop_classifier(cfg: CfgNode, detector: nn.Module) -> CropClassifier:
    """`detector` with the configured teacher on crops in its place, or beside its text branch.

    Raises:
        TypeError: the detector has no vocabulary for the teacher to choose from.
        SetupError: the teacher cannot be had; see :func:`objectness_kind`.
    """
    if not isinstance(detector, OpenVocabularyRCNN):
        raise TypeError(
            f"MODEL.OVD.CLASSIFY_WITH {cfg.MODEL.OVD.CLASSIFY_WITH} needs "
            f"MODEL.META_ARCHITECTURE OpenVocabularyRCNN, got {type(detector).__name__}"
        )
    return CropClassifier(
        detector=detector.eval(),
        teacher=configured_teacher(cfg, device=cfg.MODEL.DEVICE),
        text_branch=cfg.MODEL.OVD.CLASSIFY_WITH == "text_and_clip_crops",
        objectness_weight=cfg.MODEL.OVD.OBJECTNESS_WEIGHT,
        objectness=objectness_kind(cfg),
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
