# ViLD on Detectron2's plain ViT (ViTDet). It starts from noise: the shipped ViT knows novel glyphs.
from functools import partial

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from .lazy_vild import dataloader, lr_multiplier, model, train, vocabulary

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=160,
        patch_size=16,
        embed_dim=96,
        depth=4,
        num_heads=4,
        drop_path_rate=0.1,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=5,
        window_block_indexes=[0, 2],  # blocks 1 and 3 see the whole image
        pretrain_img_size=160,
        out_feature="last_feat",
    ),
    in_feature="${.net.out_feature}",
    out_channels=64,
    scale_factors=(4.0, 2.0, 1.0, 0.5),  # strides 4 to 32: p2 to p5
    top_block=L(LastLevelMaxPool)(),
    norm="LN",
)

train.init_checkpoint = ""
train.output_dir = "./output/pictograms/lazy_vitdet"

# As ViTDet trains: the lower the block, the slower; a table of positions is not decayed.
optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.update(lr=0.002, weight_decay=0.05)
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=4, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
