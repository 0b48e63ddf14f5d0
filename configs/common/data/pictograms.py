from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from ovd_d2.cache import EmbeddingCache
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.passengers import CachedProposals
from ovd_d2.data.train_loader import build_resumable_train_loader
from ovd_d2.engine.build import get_base_dataset_dicts
from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.engines import build_engine
from ovd_d2.evaluation.protocols import lvis_protocol
from ovd_d2.vocabulary import Vocabulary

vocabulary = L(Vocabulary.load)(path="datasets://pictograms_v1/vocabulary.safetensors")

dataloader = OmegaConf.create()

dataloader.train = L(build_resumable_train_loader)(
    dataset=L(get_base_dataset_dicts)(names="pictograms_v1_train"),
    mapper=L(OpenVocabularyDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length=160, max_size=160),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
        passengers=[
            L(CachedProposals)(
                store=L(EmbeddingCache)(path="datasets://pictograms_v1/cache"), per_image=25
            )
        ],
    ),
    total_batch_size=4,
    num_workers=1,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_base_dataset_dicts)(names="pictograms_v1_val", drop_novel=False),
    mapper=L(OpenVocabularyDatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=160, max_size=200)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=1,
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
