"""Test-time augmentation for vocabularies of any length."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Instances
from torch import Tensor

from ovd_d2.modeling.masks import RegionMasks, paste


class OpenVocabularyRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation, whose number of categories is the model's.

    Detectron2's takes `MODEL.ROI_HEADS.NUM_CLASSES`, which says what the model was built for; the
    vocabulary that it holds by now may be longer. Masks are pasted, or left in their boxes, as the
    model does it.
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
        self._take_number_of_categories()
        return super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)

    def _take_number_of_categories(self) -> None:
        heads: Any = self.model.roi_heads
        if heads.num_classes != self.cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            self.cfg.defrost()  # a clone of this object's own
            self.cfg.MODEL.ROI_HEADS.NUM_CLASSES = heads.num_classes
            self.cfg.freeze()
