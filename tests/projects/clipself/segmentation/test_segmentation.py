"""Semantic and panoptic segmentation on the mini Pictograms, from config to numbers."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import build_test_loader
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.errors import SetupError
from ovd_d2.projects.clipself.segmentation.masks import MASKS
from tests.catalog import forget
from tests.segments import PANOPTIC, REGIONS, SEMANTIC, SOURCE


def built(cfg):
    return OpenVocabularyTrainer.build_model(cfg).eval()


def test_masks_become_segments_and_classes(on_disk):
    objects = sum(len(one["annotations"]) for one in DatasetCatalog.get(SOURCE))
    segments = [one for r in DatasetCatalog.get(PANOPTIC) for one in r["segments_info"]]
    assert len(segments) == objects and all(one["isthing"] for one in segments)
    assert get_categories(PANOPTIC).novel == get_categories(SOURCE).novel
    record = DatasetCatalog.get(SEMANTIC)[0]
    with Image.open(record["sem_seg_file_name"]) as classes:
        present = set(np.unique(np.asarray(classes)).tolist())
    expected = {one["category_id"] for one in DatasetCatalog.get(PANOPTIC)[0]["segments_info"]}
    assert present == expected | {MetadataCatalog.get(SEMANTIC).ignore_label}


def test_everything_is_checked_before_it_is_computed(on_disk):
    check_setup(on_disk.config(REGIONS, SEMANTIC), training=False, progress=False)
    opts = ["INPUT.FORMAT", "BGR", "MODEL.DENSE_CLIP.SLIDING_STRIDE", "5"]
    with pytest.raises(SetupError) as error:
        check_setup(on_disk.config(SEMANTIC, opts=opts), training=False, progress=False)
    assert len(error.value.problems) == 2


def test_there_is_nothing_to_train(on_disk):
    cfg = on_disk.config(SEMANTIC, opts=["DATASETS.TRAIN", f"('{SOURCE}',)"])
    with pytest.raises(SetupError, match="nothing to train"):
        check_setup(cfg, training=True, progress=False)


def test_semantic_segmentation(on_disk):
    cfg = on_disk.config(SEMANTIC)
    model = built(cfg)
    found = OpenVocabularyTrainer.test(cfg, model)["sem_seg"]
    assert 0 <= found["mIoU"] <= 100 and found["mIoU"] == found["mIoU"]
    batch = next(iter(build_test_loader(cfg, SEMANTIC)))
    whole = model(batch)[0]["sem_seg"]
    assert whole.shape == (80, batch[0]["height"], batch[0]["width"])
    model.sliding_window, model.sliding_stride = 64, 32  # the size of the images
    assert torch.equal(model(batch)[0]["sem_seg"], whole)
    model.sliding_window = 32
    assert not torch.equal(model(batch)[0]["sem_seg"], whole)


def test_a_vocabulary_of_one_call_alone(on_disk):
    cfg = on_disk.config(SEMANTIC)
    model = built(cfg)
    batch = next(iter(build_test_loader(cfg, SEMANTIC)))
    few = model.vocabulary.select(model.vocabulary.names[3:5])
    found = model(batch, vocabulary=few)[0]["sem_seg"]
    assert torch.allclose(found, model(batch)[0]["sem_seg"][3:5], atol=1e-5)
    model.vocabulary = None
    with pytest.raises(SetupError, match="VOCABULARY is empty"):
        model(batch)


def test_given_masks_get_categories(on_disk):
    cfg = on_disk.config(PANOPTIC)
    batch = next(iter(build_test_loader(cfg, PANOPTIC)))
    ids, entries = built(cfg)(batch)[0]["panoptic_seg"]
    assert torch.equal(ids, batch[0][MASKS])
    record = DatasetCatalog.get(PANOPTIC)[0]
    assert [one["id"] for one in entries] == [one["id"] for one in record["segments_info"]]
    assert {one["category_id"] < 80 for one in entries} == {True}


def test_panoptic_quality(on_disk):
    cfg = on_disk.config(PANOPTIC)
    model = built(cfg)
    found = OpenVocabularyTrainer.test(cfg, model)["panoptic_seg"]
    # every mask is the true one: what is named right overlaps whole
    right = total = 0
    for batch in build_test_loader(cfg, PANOPTIC):
        truth = {one["id"]: one["category_id"] for one in batch[0]["segments_info"]}
        named = model(batch)[0]["panoptic_seg"][1]
        right += sum(truth[one["id"]] == one["category_id"] for one in named)
        total += len(named)
    assert (found["PQ"] > 0) == (right > 0) and total == 81
    assert found["PQ_th"] == found["PQ"] and "PQ_st" not in found


def test_categories_of_pixels():
    name = "some_ade20k"
    DatasetCatalog.register(name, list)
    try:
        MetadataCatalog.get(name).set(
            stuff_classes=["road, route", "window ", "sky"], evaluator_type="sem_seg"
        )
        found = get_categories(name)
    finally:
        forget(name)
    assert found.names == ["road, route", "window", "sky"]
    assert found.synonyms == [["road", "route"], ["window"], ["sky"]]
