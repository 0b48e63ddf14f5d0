"""Region classification of any teacher, without a config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import Tensor
from tqdm import tqdm

from ovd_d2.clip.dense import DenseViT
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary
from ovd_d2.data.augmentation import ResizeBy
from ovd_d2.data.categories import get_categories
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.registration import known_names, register_data_sets
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.preprocess import normalised
from ovd_d2.projects.clipself.region_classification.evaluator import (
    TASK,
    Crops,
    RegionClassificationEvaluator,
)
from ovd_d2.projects.clipself.region_classification.segments import CROP_SCALE, SegmentsOfImage
from ovd_d2.projects.clipself.region_classification.wiring import image_features
from ovd_d2.projects.clipself.segment_sets import REGIONS, has_evaluator_type
from ovd_d2.projects.clipself.segmentation.model import DenseCLIPSegmentor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionRun:
    """What is evaluated and how.

    Attributes:
        dataset: registered, with evaluator_type "region_classification".
        teacher: a CLIP with a ViT.
        crops: "image", "dense-mean" or "none", the features of image crops.
        crop_scale: sides of the crop of a thing over those of its box.
        antialias: of masks, see :func:`.segments.mask_on_grid`.
        window, global_blocks: of attention, see :class:`DenseViT`.
        prompts: the family for the categories' names.
        workers: processes of the loader.
    """

    dataset: str
    teacher: CLIPTeacher
    crops: str = "image"
    crop_scale: float = CROP_SCALE
    antialias: bool = False
    window: int = 0
    global_blocks: tuple[int, ...] = ()
    prompts: str = "vild63"
    workers: int = 2


def evaluate_sizes(run: RegionRun, sizes: Sequence[int], output: Path) -> dict[str, Any]:
    """Size of the image -> the evaluator's numbers; those of rank 0 alone are complete.

    Args:
        sizes: longest sides of the image, pixels. Crops do not depend on it: the first size has
            them.
        output: gets a folder per size.

    Raises:
        SetupError: no such data set, or one of another kind; no ViT.
    """
    _check(run.dataset)
    try:
        model = DenseCLIPSegmentor(
            teacher=run.teacher, window=run.window, global_blocks=run.global_blocks
        )
    except ValueError as error:
        raise SetupError([str(error)]) from error
    categories = get_categories(run.dataset)
    bar = comm.is_main_process()
    vocabulary = build_vocabulary(categories, run.teacher, prompts=run.prompts, progress=bar)
    results = {}
    for k, size in enumerate(sizes):
        crops = crop_features(run.crops, run.teacher) if k == 0 else None
        evaluator = RegionClassificationEvaluator(
            run.dataset,
            vocabulary.names,
            vocabulary.embeddings,
            crops=crops,
            antialias=run.antialias,
            output_dir=str(output / str(size)),
        )
        logger.info("Longest side: %d pixels", size)
        loader = _loader(run, size, with_crops=crops is not None)
        found = inference_on_dataset(model, loader, evaluator)
        results[str(size)] = found.get(TASK, {})
    return results


def crop_features(kind: str, teacher: CLIPTeacher) -> Crops | None:
    """What becomes of image crops: "image", "dense-mean" or "none"."""
    if kind == "none":
        return None
    return image_features(teacher) if kind == "image" else partial(_dense_mean, teacher)


@torch.no_grad()
def _dense_mean(teacher: CLIPTeacher, crops: Tensor) -> Tensor:
    images = normalised(crops.to(teacher.device), teacher.mean, teacher.std)
    return DenseViT(teacher.visual)(images).mean(dim=(2, 3))


def _check(dataset: str) -> None:
    register_data_sets([dataset])
    if dataset not in DatasetCatalog:
        fitting = ", ".join(name for name in known_names() if name.endswith("_regions"))
        raise SetupError([f"--dataset '{dataset}' is not registered; there are {fitting}"])
    if not has_evaluator_type(dataset, REGIONS):
        raise SetupError(
            [f"--dataset '{dataset}' is none of region classification (evaluator_type {REGIONS!r})"]
        )


def _loader(run: RegionRun, size: int, *, with_crops: bool) -> Any:
    crop_size = run.teacher.image_size[0] if with_crops else 0
    mapper = OpenVocabularyDatasetMapper(
        is_train=False,
        augmentations=[ResizeBy(T.ResizeShortestEdge(size, size), "pillow_bicubic")],
        image_format="RGB",
        passengers=[SegmentsOfImage(crop_size, run.crop_scale)],
    )
    records = DatasetCatalog.get(run.dataset)
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=run.workers)
    return _WithBar(loader) if comm.is_main_process() else loader


class _WithBar:
    """A loader that shows how far it is."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        return iter(tqdm(self.loader, desc="regions", unit="image"))
