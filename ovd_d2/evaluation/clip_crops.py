"""CLIP on cropped regions: the slow upper line that ViLD distils (ViLD, section 4, table 3)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovd_d2 import scoring
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.modeling import OpenVocabularyRCNN


class CropClassifier(nn.Module):
    """Proposals and masks from a detector, categories from the teacher on the original pixels.

    Takes and returns what a detector does, so Detectron2's evaluation loop runs it unchanged.
    """

    def __init__(
        self,
        *,
        detector: OpenVocabularyRCNN,
        teacher: CLIPTeacher,
        objectness_weight: float,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
    ) -> None:
        """
        Args:
            detector: holds the vocabulary; its own classification is not used.
            teacher: must be the vocabulary's.
            objectness_weight: see :func:`ovd_d2.scoring.mix_objectness`; 0.5 is the geometric
                mean of the paper.
            score_threshold, nms_threshold, detections_per_image: as in Detectron2's ROI heads.
        """
        super().__init__()
        self.detector = detector
        self.teacher = teacher
        self.objectness_weight = objectness_weight
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        proposals = self.detector.predict_proposals(batched_inputs)
        detected = [self._classify(x, p) for x, p in zip(batched_inputs, proposals, strict=True)]
        with_masks = self.detector.inference(
            batched_inputs, detected_instances=detected, do_postprocess=False
        )
        return [
            {"instances": detector_postprocess(instances, x["height"], x["width"])}
            for instances, x in zip(with_masks, batched_inputs, strict=True)
        ]

    def _classify(self, record: dict[str, Any], proposals: Instances) -> Instances:
        probs = self._crop_probabilities(record, proposals)  # (K, C)
        probs = scoring.mix_objectness(
            probs, proposals.objectness_logits.sigmoid(), self.objectness_weight
        )
        detections, _ = fast_rcnn_inference(
            [proposals.proposal_boxes.tensor],
            [F.pad(probs, (0, 1))],
            [proposals.image_size],
            self.score_threshold,
            self.nms_threshold,
            self.detections_per_image,
        )
        return detections[0]

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
    """`detector` with its categories replaced by those of the configured teacher on crops.

    Raises:
        TypeError: the detector has no vocabulary for the teacher to choose from.
    """
    if not isinstance(detector, OpenVocabularyRCNN):
        raise TypeError(
            "MODEL.OVD.CLASSIFY_WITH clip_crops needs MODEL.META_ARCHITECTURE OpenVocabularyRCNN, "
            f"got {type(detector).__name__}"
        )
    return CropClassifier(
        detector=detector.eval(),
        teacher=CLIPTeacher.from_open_clip(
            cfg.MODEL.OVD.TEACHER.ARCHITECTURE,
            cfg.MODEL.OVD.TEACHER.PRETRAINED,
            device=cfg.MODEL.DEVICE,
        ),
        objectness_weight=cfg.MODEL.OVD.OBJECTNESS_WEIGHT,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        nms_threshold=cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
