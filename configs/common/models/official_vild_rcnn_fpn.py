# The network of the official ViLD code: ../../vild_r50.yaml as a LazyConfig.
from detectron2.config import LazyCall as L

from ovd_d2.vild import (
    AnchorTransform,
    BinCentrePooler,
    InclusiveBox2BoxTransform,
    LateNormFPN,
    LateNormMaskHead,
    LevelNormRPNHead,
    OneAnchorMatcher,
    SamePaddedStem,
    ViLDOutputLayers,
    ViLDRPN,
)

from .vild_rcnn_fpn import model

levels = ["p2", "p3", "p4", "p5", "p6"]
scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]

model.batch_norm = {"momentum": 0.003, "eps": 1e-4, "biased_variance": True}

model.backbone._target_ = LateNormFPN
model.backbone.square_pad = 1024
model.backbone.bottom_up.stem._target_ = SamePaddedStem
del model.backbone.top_block  # it makes its own

model.proposal_generator.update(
    _target_=ViLDRPN,
    anchor_matcher=L(OneAnchorMatcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1]),
    box2box_transform=L(AnchorTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    smooth_l1_beta=0.11111111,
)
model.proposal_generator.anchor_generator.update(aspect_ratios=[1.0, 0.5, 2.0], offset=0.5)
model.proposal_generator.head = L(LevelNormRPNHead)(
    in_channels=256, num_anchors=3, conv_dims=[-1, -1], norm="SyncBN", levels=5
)

model.roi_heads.glorot_linear = True
model.roi_heads.box_in_features = model.roi_heads.mask_in_features = levels
model.roi_heads.box_pooler = L(BinCentrePooler)(output_size=7, scales=scales)
model.roi_heads.mask_pooler = L(BinCentrePooler)(output_size=14, scales=scales)
model.roi_heads.box_predictor.update(
    _target_=ViLDOutputLayers,
    box2box_transform=L(InclusiveBox2BoxTransform)(weights=(10, 10, 5, 5)),
    last_pixel=True,
    loss_over_positives=True,
)
model.roi_heads.mask_head.update(_target_=LateNormMaskHead, soft_targets=True)
