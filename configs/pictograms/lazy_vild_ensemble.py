# ViLD-ensemble: a second head, like the first but for its weights, learns from the teacher.
from detectron2.config import LazyCall as L

from ovd_d2.modeling import EmbeddingProjection, RegionEmbeddingHead

from .lazy_vild import dataloader, lr_multiplier, model, optimizer, train, vocabulary

model.roi_heads.variant.name = "vild_ensemble"
model.roi_heads.image_head = L(RegionEmbeddingHead)(
    trunk="${..box_head}",
    projection=L(EmbeddingProjection)(
        input_shape="${...box_predictor.input_shape}",
        embedding_dim="${...box_predictor.classifier.embedding_dim}",
    ),
)

train.output_dir = "./output/pictograms/lazy_vild_ensemble"
