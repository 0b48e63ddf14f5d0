# Detectron2's Mask R-CNN with FPN, changed as ViLD changes it: ../../base_rcnn_fpn.yaml and
# ../../vild_r50.yaml as a LazyConfig.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

from ovd_d2.modeling import (
    CLIPClassifier,
    NormRPNHead,
    OpenVocabularyOutputLayers,
    OpenVocabularyRCNN,
    ViLDBoxHead,
    ViLDMaskHead,
)
from ovd_d2.vild import LevelMeanRPN, ViLDROIHeads, get_variant

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model._target_ = OpenVocabularyRCNN

model.backbone.norm = "SyncBN"
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "SyncBN"
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.pixel_std = [57.375, 57.12, 58.395]

model.proposal_generator._target_ = LevelMeanRPN
model.proposal_generator.head = L(NormRPNHead)(
    in_channels=256, num_anchors=3, conv_dims=[-1, -1], norm="SyncBN"
)
model.proposal_generator.smooth_l1_beta = 0.1111

model.roi_heads.update(
    _target_=ViLDROIHeads,
    num_classes=1203,
    variant=L(get_variant)(name="vild"),
    image_head=None,  # pictograms/lazy_vild_ensemble.py has one
    distillation_weight=0.5,
    base_weight=2 / 3,
    novel_weight=1 / 3,
    objectness_weight=0.0,
)
model.roi_heads.box_head = L(ViLDBoxHead)(
    input_shape=ShapeSpec(channels=256, height=7, width=7),
    conv_dims=[256] * 4,
    fc_dims=[1024, 1024],
    conv_norm="SyncBN",
    fc_norm="SyncBN",
)
model.roi_heads.box_predictor = L(OpenVocabularyOutputLayers)(
    input_shape=ShapeSpec(channels=1024),
    classifier=L(CLIPClassifier)(
        embedding_dim=512,
        num_classes="${...num_classes}",
        temperature=0.01,
        vocabulary="${vocabulary}",
    ),
    novel_training_logits="zero",
    num_classes="${..num_classes}",
    cls_agnostic_bbox_reg=True,
    box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
    smooth_l1_beta=1.0,
    test_score_thresh=0.0,
    test_nms_thresh=0.5,
    test_topk_per_image=300,
)
model.roi_heads.mask_head._target_ = ViLDMaskHead
model.roi_heads.mask_head.conv_norm = "SyncBN"
model.roi_heads.mask_head.num_classes = 1  # one mask per region, whatever its name
