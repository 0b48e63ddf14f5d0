"""Test-time augmentation for vocabularies of any length."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.modeling.detection import merge_detections
from ovd_d2.modeling.masks import RegionMasks, paste

MERGE_THRESHOLD = 1e-8  # Detectron2's


class OpenVocabularyRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation, whatever the number of categories.

    Detectron2's merges by a table of every detection and each of `MODEL.ROI_HEADS.NUM_CLASSES`,
    which says what the model was built for; the vocabulary that it holds by now may be longer.
    Masks are pasted, or left in their boxes, as the model does it.
    """

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Instances]:
        output = super()._inference_one_image(input)
        if getattr(self.model, "full_masks", True):
            paste(output["instances"])
        return output

    def _reduce_pred_masks(self, outputs: list[Instances], tfms: list[Any]) -> RegionMasks:
        return RegionMasks(super()._reduce_pred_masks(outputs, tfms)[:, 0])

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: list[Tensor],
        all_classes: list[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        return merge_detections(
            all_boxes,
            torch.stack(all_scores) if all_scores else all_boxes.new_empty(0),
            torch.stack(all_classes) if all_classes else all_boxes.new_empty(0, dtype=torch.int64),
            shape_hw,
            score_threshold=MERGE_THRESHOLD,
            nms_threshold=self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            limit=self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
