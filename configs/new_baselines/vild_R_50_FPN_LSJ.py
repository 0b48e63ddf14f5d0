# ViLD, ResNet-50, LVIS v1 base: ../vild_r50.yaml, the full recipe of the official code, as a
# LazyConfig. tools/lazyconfig_train_net.py runs it; it needs what vild_r50.yaml needs. Its batch of
# 256 is for 64 GPUs, and nothing rescales a LazyConfig: on 8 add
# dataloader.train.total_batch_size=32 optimizer.lr=0.04 (its epochs: 8 times train.max_iter).
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..common.data.lvis import dataloader, vocabulary
from ..common.models.official_vild_rcnn_fpn import model

train = model_zoo.get_config("common/train.py").train
train.update(
    output_dir="./output/vild_R_50_FPN_LSJ",
    init_checkpoint="",  # from scratch
    max_iter=180000,
    eval_period=0,
)

optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.update(lr=0.32, weight_decay=4e-5)
optimizer.params.weight_decay_bias = 0.0  # only kernels decay

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01, 0.001], milestones=[162000, 171000, 175500, 180000]
    ),
    warmup_length=1000 / 180000,
    warmup_factor=0.01,
)
