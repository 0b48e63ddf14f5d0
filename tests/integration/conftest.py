"""The mini Pictograms with a vocabulary and a cache, for training in this process."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter, dataset_fingerprint
from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary
from ovd_d2.data.categories import get_categories
from ovd_d2.data.registration import register_data_sets
from ovd_d2.pictograms.dataset import prepare
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.vocabulary import Vocabulary
from tests.catalog import forget

SET = "pictograms_v1_mini"
TRAIN, VAL = f"{SET}_train", f"{SET}_val"
# What gives a LazyConfig of configs/pictograms the mini set, and makes it quick.
LAZY_ON_MINI = (
    f"dataloader.train.dataset.names={TRAIN}",
    f"dataloader.test.dataset.names={VAL}",
    "dataloader.test.num_workers=0",
)
LAZY_QUICK = (
    "train.init_checkpoint=''",
    "model.roi_heads.box_predictor.test_score_thresh=0",
    "model.roi_heads.box_predictor.test_topk_per_image=5",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    *LAZY_ON_MINI,
)


@dataclass(frozen=True)
class MiniPictograms:
    """`folder` is DETECTRON2_DATASETS; the vocabulary and the cache are where configs look."""

    folder: Path

    @property
    def vocabulary(self) -> Path:
        return self.folder / "pictograms_v1" / "vocabulary.safetensors"

    @property
    def cache(self) -> Path:
        return self.folder / "pictograms_v1" / "cache"


def _write_cache(path: Path, vocabulary: Vocabulary) -> None:
    """Boxes of all objects; for an embedding, the words (a perfect teacher, and a quick one)."""
    records = DatasetCatalog.get(TRAIN)
    manifest = Manifest(
        kind="embeddings",
        dataset=DatasetInfo(TRAIN, dataset_fingerprint(records), len(records)),
        proposals="ground truth",
        recipe={},
        teacher=vocabulary.teacher,
        embedding_dim=vocabulary.embedding_dim,
    )
    with RecordWriter(path, manifest, images=records) as writer:
        for record in records:
            objects = record["annotations"]
            boxes = torch.tensor([o["bbox"] for o in objects]).reshape(-1, 4)  # XYWH
            boxes[:, 2:] += boxes[:, :2]
            classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.long)
            rows = vocabulary.embeddings[classes]
            tensors = {"boxes": boxes, "objectness": torch.ones(len(boxes)), "embeddings": rows}
            writer.add(record["image_id"], tensors)
        writer.finish()


def _forget_all() -> None:
    """The sets of the mini Pictograms, those that systems make of them among them."""
    forget(TRAIN, VAL, *(one for one in DatasetCatalog.list() if one.startswith(SET)))


@contextmanager
def _registered(folder: Path) -> Iterator[None]:
    """The two sets, in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        _forget_all()
        register_data_sets([TRAIN, VAL])
        yield
    _forget_all()


@pytest.fixture(scope="session")
def _drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = MiniPictograms(tmp_path_factory.mktemp("drawn"))
    prepare(place.folder, full=False, workers=1, progress=False)
    with _registered(place.folder):
        teacher = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
        vocabulary = build_vocabulary(get_categories(TRAIN), teacher, prompts="single")
        vocabulary.save(place.vocabulary)
        _write_cache(place.cache, vocabulary)
    return place.folder


@pytest.fixture(scope="module")
def mini(_drawn_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniPictograms]:
    """A copy for each module, which may add to it."""
    place = MiniPictograms(tmp_path_factory.mktemp("datasets"))
    shutil.copytree(_drawn_once, place.folder, dirs_exist_ok=True)
    with _registered(place.folder):
        yield place


@pytest.fixture
def arguments() -> argparse.Namespace:
    """What Detectron2's argument parser gives without options."""
    return argparse.Namespace(config_file="", resume=False, eval_only=False, opts=[])


def read_results(output: Path) -> dict[str, Any]:
    return json.loads((output / "inference" / "results.json").read_text())
