"""F-ViT's ROI heads: a text branch that learns, and the frozen dense map beside it."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ovd_d2 import scoring
from ovd_d2.clip.dense import roi_features
from ovd_d2.errors import SetupError
from ovd_d2.modeling.classifier import Words
from ovd_d2.modeling.image_branches import ImageBranch, Regions
from ovd_d2.modeling.roi_heads import OpenVocabularyROIHeads
from ovd_d2.projects.clipself.fvit.backbone import DENSE
from ovd_d2.projects.clipself.fvit.matcher import BestOfObjectMatcher
from ovd_d2.projects.clipself.fvit.predictor import FViTOutputLayers


class DenseBranch(ImageBranch):
    """A CLIP's dense map at the proposals, compared with the words and with background."""

    embeds_proposals = True

    def __init__(self, *, stride: int, scale: float, feature: str = DENSE) -> None:
        """
        Args:
            stride: pixels per cell of the map.
            scale: what cosine similarities are multiplied by.
            feature: name of the map.
        """
        super().__init__()
        self.stride, self.scale, self.feature = stride, scale, feature

    def embed(self, regions: Regions) -> Tensor:
        """See :class:`ImageBranch`; zeros for a proposal without area."""
        dense = regions.features[self.feature]
        covered = dense.shape[2] * self.stride, dense.shape[3] * self.stride
        boxes = [one.proposal_boxes.tensor for one in regions.proposals]
        found = roi_features(dense, boxes, [covered] * len(boxes))
        return F.normalize(found.float(), dim=1)

    def probabilities(
        self, embeddings: Tensor, words: Words, temperature: float | Tensor
    ) -> Tensor:
        """See :class:`ImageBranch`; `temperature` is not this branch's."""
        background = None if words.background is None else F.normalize(words.background, dim=0)
        return scoring.image_probabilities(
            embeddings, words.embeddings, 1 / self.scale, background=background, best=words.best
        )


@ROI_HEADS_REGISTRY.register()
class FViTROIHeads(OpenVocabularyROIHeads):
    """Heads of F-ViT over any feature pyramid; their ensemble needs a backbone with a dense map."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret = super().from_config(cfg, input_shape)
        ret["scores"] = "ensemble" if cfg.MODEL.FVIT.ENSEMBLE else "text"
        if cfg.MODEL.FVIT.BEST_PROPOSAL_IS_THE_OBJECTS:
            thresholds = cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS
            ret["proposal_matcher"] = BestOfObjectMatcher(
                thresholds,
                cfg.MODEL.ROI_HEADS.IOU_LABELS,
                least_iou=min(thresholds),
                objects_appended=cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT,
            )
        return ret

    @classmethod
    def _pools_by_level(cls, input_shape: dict[str, ShapeSpec]) -> bool:
        return True  # mmdetection's rule of levels, whatever the strides

    @classmethod
    def _init_predictors(cls, cfg: CfgNode, built: dict[str, Any]) -> dict[str, Any]:
        return {"box_predictor": FViTOutputLayers(cfg, built["box_head"].output_shape)}

    @classmethod
    def _init_image_head(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> ImageBranch | None:
        if not cfg.MODEL.FVIT.ENSEMBLE:
            return None
        shape = input_shape.get(DENSE)
        if shape is None or shape.channels != cfg.MODEL.OVD.EMBEDDING_DIM:
            found = "none" if shape is None else f"one of {shape.channels} channels"
            raise SetupError(
                [
                    "MODEL.FVIT.ENSEMBLE needs a dense map as wide as MODEL.OVD.EMBEDDING_DIM "
                    f"{cfg.MODEL.OVD.EMBEDDING_DIM}, but MODEL.BACKBONE.NAME "
                    f"{cfg.MODEL.BACKBONE.NAME} gives {found}: name build_fvit_backbone and its "
                    "teacher's width, or set MODEL.FVIT.ENSEMBLE False"
                ]
            )
        return DenseBranch(stride=int(shape.stride or 1), scale=cfg.MODEL.FVIT.IMAGE_LOGIT_SCALE)
