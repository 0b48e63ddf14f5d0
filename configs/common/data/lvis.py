from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from ovd_d2.cache import EmbeddingCache
from ovd_d2.data.augmentation import ResizeBy
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.passengers import CachedProposals
from ovd_d2.data.train_loader import build_resumable_train_loader
from ovd_d2.engine.build import get_base_dataset_dicts
from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.protocols import lvis_protocol
from ovd_d2.vocabulary import Vocabulary

vocabulary = L(Vocabulary.load)(path="datasets://lvis/vocabulary_vit_b32.safetensors")

dataloader = OmegaConf.create()

dataloader.train = L(build_resumable_train_loader)(
    dataset=L(get_base_dataset_dicts)(names="lvis_v1_train_norare"),
    mapper=L(OpenVocabularyDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomFlip)(horizontal=True),
            L(ResizeBy)(
                method="tensorflow",
                resize=L(T.ResizeScale)(
                    min_scale=0.1, max_scale=2.0, target_height=1024, target_width=1024
                ),
            ),
            L(T.FixedSizeCrop)(crop_size=(1024, 1024), pad=False),  # the model pads
        ],
        image_format="BGR",
        use_instance_mask=True,
        recompute_boxes=True,  # the crop cuts objects
        passengers=[
            L(CachedProposals)(
                store=L(EmbeddingCache)(path="datasets://lvis/cache_vit_b32"), per_image=300
            )
        ],
    ),
    total_batch_size=256,
    num_workers=8,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_base_dataset_dicts)(names="lvis_v1_val", drop_novel=False),
    mapper=L(OpenVocabularyDatasetMapper)(
        is_train=False,
        augmentations=[
            L(ResizeBy)(
                method="tensorflow",
                resize=L(T.ResizeShortestEdge)(short_edge_length=1024, max_size=1024),
            )
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(OpenVocabularyLVISEvaluator)(
    dataset_name="${..test.dataset.names}",
    tasks=("bbox", "segm"),
    output_dir="${train.output_dir}/inference/${.dataset_name}",
    # TEST.OVD of yaml configs (docs/evaluation.md)
    protocol=L(lvis_protocol)(name="federated"),
    engine=L(build_engine)(name="reference"),
    model_limit="${model.roi_heads.box_predictor.test_topk_per_image}",
    failures=24,
)
