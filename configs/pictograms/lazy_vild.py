# vild.yaml as a LazyConfig; tools/lazyconfig_train_net.py runs it.
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.proposal_generator import RPN
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ovd_d2.engine.optimization import parameter_groups
from ovd_d2.modeling import TimmBackbone

from ..common.data.pictograms import dataloader, vocabulary
from ..common.models.vild_rcnn_fpn import model

model.pixel_mean, model.pixel_std = [122.771, 116.746, 104.094], [68.501, 66.632, 70.323]
model.input_format = "RGB"

LEVELS, STRIDES, CHANNELS = ["p2", "p3", "p4", "p5"], [4, 8, 16, 32], 64
HEADS = slice(0, 2)  # the heads read p2 and p3, the RPN p3 to p5

model.backbone = L(FPN)(
    bottom_up=L(TimmBackbone)(
        architecture="test_resnet", out_features=["res2", "res3", "res4", "res5"]
    ),
    in_features="${.bottom_up.out_features}",
    out_channels=CHANNELS,
    norm="BN",
    top_block=L(LastLevelMaxPool)(),
)

model.proposal_generator.update(
    _target_=RPN,
    in_features=LEVELS[1:],
    pre_nms_topk=(300, 200),
    post_nms_topk=(200, 50),
)
model.proposal_generator.head.update(in_channels=CHANNELS, num_anchors=1, conv_dims=[-1], norm="")
model.proposal_generator.anchor_generator.update(
    sizes=[[32], [64], [96]], aspect_ratios=[1.0], strides=STRIDES[1:]
)

model.roi_heads.update(num_classes=80, batch_size_per_image=32, positive_fraction=0.5)
model.roi_heads.box_in_features = model.roi_heads.mask_in_features = LEVELS[HEADS]
for pooler, size in (("box_pooler", 6), ("mask_pooler", 10)):
    model.roi_heads[pooler].update(
        output_size=size, scales=[1 / s for s in STRIDES[HEADS]], sampling_ratio=1
    )
model.roi_heads.box_head.update(
    input_shape=ShapeSpec(channels=CHANNELS, height=6, width=6),
    conv_dims=[64],
    fc_dims=[512],
    conv_norm="BN",
    fc_norm="BN",
)
model.roi_heads.box_predictor.update(
    input_shape=ShapeSpec(channels=512),
    novel_training_logits="exclude",
    test_score_thresh=0.001,
    test_topk_per_image=100,
)
model.roi_heads.box_predictor.classifier.update(embedding_dim=64, temperature=0.025)
model.roi_heads.mask_head.update(
    input_shape=ShapeSpec(channels=CHANNELS, height=10, width=10), conv_dims=[32, 32], conv_norm=""
)

train = model_zoo.get_config("common/train.py").train
train.update(
    output_dir="./output/pictograms/lazy_vild",
    init_checkpoint="datasets://pictograms_v1/backbone.pth",
    max_iter=1100,
    eval_period=0,
    device="cpu",
)
train.checkpointer.period = 200

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.update(lr=0.002, weight_decay=0.05)
optimizer.params._target_ = parameter_groups
optimizer.params.lr_multipliers = [["backbone.bottom_up.", 0.3]]

lr_multiplier = L(WarmupParamScheduler)(
    # Shares of train.max_iter, whatever that is: the rate falls after 825 of 1,100.
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[825, 1100]),
    warmup_length=50 / 1100,
    warmup_factor=0.01,
)
