"""Region classification from a config: `tools/train_net.py --eval-only` on a `..._regions` set."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import Tensor

from ovd_d2.clip.loading import configured_image_size, configured_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.passengers import Passenger
from ovd_d2.engine.build import in_order_of
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.preprocess import normalised
from ovd_d2.projects.clipself.region_classification.evaluator import (
    Crops,
    RegionClassificationEvaluator,
)
from ovd_d2.projects.clipself.region_classification.segments import SegmentsOfImage
from ovd_d2.projects.clipself.segment_sets import REGIONS, has_evaluator_type
from ovd_d2.vocabulary import configured_vocabulary


def region_passengers(cfg: CfgNode, dataset_name: str) -> Sequence[Passenger]:
    """The segments of an image, with crops where the config wants them; of other sets nothing."""
    if not has_evaluator_type(dataset_name, REGIONS):
        return []
    regions = cfg.MODEL.DENSE_CLIP.REGIONS
    crop_size = configured_image_size(cfg) if regions.CROPS else 0
    return [SegmentsOfImage(crop_size, regions.CROP_SCALE)]


def region_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str
) -> RegionClassificationEvaluator:
    """By `MODEL.OVD.VOCABULARY` and, for crops, `MODEL.OVD.TEACHER`.

    Raises:
        SetupError: no vocabulary, one without a category of the data set; no teacher.
    """
    vocabulary = configured_vocabulary(cfg)
    if vocabulary is None:
        raise SetupError(
            [
                "MODEL.OVD.VOCABULARY is empty: make one with tools/build_vocabulary.py "
                f"--dataset {dataset_name}"
            ]
        )
    vocabulary = in_order_of(dataset_name, vocabulary)
    crops = None
    if cfg.MODEL.DENSE_CLIP.REGIONS.CROPS:
        crops = image_features(configured_teacher(cfg, device=cfg.MODEL.DEVICE))
    return RegionClassificationEvaluator(
        dataset_name,
        vocabulary.names,
        vocabulary.word_embeddings,
        owners=vocabulary.owners,
        crops=crops,
        antialias=cfg.MODEL.DENSE_CLIP.REGIONS.ANTIALIAS,
        output_dir=output_folder,
    )


def image_features(teacher: CLIPTeacher) -> Crops:
    """(K, 3, s, s) uint8 RGB of the teacher's size -> (K, D), its image embeddings."""

    def features(crops: Tensor) -> Tensor:
        return teacher.encode_images(
            normalised(crops.to(teacher.device), teacher.mean, teacher.std)
        )

    return features
