"""The dense teacher inside training: what a cache holds, and mistakes found before it starts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ovd_d2.cache import EmbeddingCache
from ovd_d2.clip.crops import CropRecipe
from ovd_d2.clip.dense import DenseRecipe
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.engine import build
from ovd_d2.engine.cache_builder import build_cache
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.structures import cached_proposals_of
from ovd_d2.systems import SetupContext
from ovd_d2.vild import checks
from ovd_d2.vild.online_teacher import OnlineTeacher, online_recipe
from tests.proposal_stores import DATASET, random_proposals, write_proposals
from tests.tiny import tiny_config
from tests.tiny_vits import DIM, EVA, folder_of_architecture, tiny_clip, tiny_teacher

SIZE, IDS = 64, (1, 2)
ONLINE = "MODEL.VILD.DISTILLATION.ONLINE"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architecture")
    folder_of_architecture(folder, EVA)
    state = {key: value.contiguous() for key, value in tiny_clip(EVA).state_dict().items()}
    save_file(state, folder / "vit.safetensors")
    return folder / "vit.safetensors"


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    folder, rng, entries = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for image_id in IDS:
        path = folder / f"{image_id}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
        size = {"height": SIZE, "width": SIZE}
        entries.append({"file_name": str(path), "image_id": image_id, **size, "annotations": []})
    return entries


@pytest.fixture(scope="module")
def proposals(dicts, tmp_path_factory):
    tensors = {k: random_proposals(3 * k, SIZE, SIZE, seed=k, smallest=8.0) for k in IDS}
    return write_proposals(tmp_path_factory.mktemp("stores") / "proposals", dicts, tensors)


@pytest.fixture
def cfg(weights, dicts, proposals, monkeypatch):
    monkeypatch.setattr(build, "load_training_dicts", lambda _: dicts)
    cfg = tiny_config("vild")
    cfg.MODEL.OVD.EMBEDDING_DIM = DIM
    cfg.MODEL.OVD.TEACHER.ARCHITECTURE = EVA
    cfg.MODEL.OVD.TEACHER.PRETRAINED = str(weights)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE,), SIZE
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    online = cfg.MODEL.VILD.DISTILLATION.ONLINE
    online.PROPOSALS = str(proposals.path)
    online.TEACHER = "dense"
    online.DENSE.SIZE = 48
    return cfg


def problems_of(cfg, dicts, teacher=None):
    context = SetupContext(training=True, embedding_dim=DIM, teacher=teacher, training_images=dicts)
    return list(checks.problems(cfg, context))


def test_a_batch_has_what_a_dense_cache_holds(cfg, dicts, proposals, tmp_path):
    teacher = configured_teacher(cfg, device="cpu")
    options = {"recipe": online_recipe(cfg), "dtype": "float32", "progress": False}
    build_cache(dicts, proposals, teacher, tmp_path, dataset_name=DATASET, **options)
    cache = EmbeddingCache(tmp_path)
    batch = next(iter(build.build_train_loader(cfg)))
    assert len(batch) == 2
    for record in batch:
        found = cached_proposals_of(record["instances"]).teacher_embeddings
        stored = cache[record["image_id"]].embeddings
        torch.testing.assert_close(found, stored, atol=3e-7, rtol=0)  # stored with unit length


def test_options_reach_the_recipe(cfg):
    dense = cfg.MODEL.VILD.DISTILLATION.ONLINE.DENSE
    dense.SQUARE, dense.WINDOW_SIZE, dense.GLOBAL_ATTENTION_BLOCKS = True, 3, [1]
    recipe = DenseRecipe(48, square=True, window=3, global_blocks=(1,))
    assert build.build_train_loader(cfg).embed.keywords["recipe"] == recipe
    cfg.MODEL.VILD.DISTILLATION.ONLINE.TEACHER = "crops"
    assert online_recipe(cfg) == CropRecipe()


def test_what_fits_has_no_problem(cfg, dicts):
    teacher = configured_teacher(cfg, device="cpu")
    assert problems_of(cfg, dicts, teacher.fingerprint) == []


def test_a_resnet_has_no_dense_features(cfg, dicts):
    cfg.MODEL.OVD.TEACHER.ARCHITECTURE = ARCHITECTURE
    cfg.MODEL.OVD.TEACHER.PRETRAINED = SHIPPED_TAG
    cfg.MODEL.OVD.EMBEDDING_DIM = 64
    context = SetupContext(training=True, embedding_dim=64, teacher=None, training_images=dicts)
    (problem,) = checks.problems(cfg, context)
    assert problem.startswith(f"{ARCHITECTURE} cannot embed proposals densely")
    cfg.MODEL.VILD.DISTILLATION.ONLINE.TEACHER = "crops"
    assert list(checks.problems(cfg, context)) == []


def test_values_that_cannot_be_meant(cfg, dicts):
    online = cfg.MODEL.VILD.DISTILLATION.ONLINE
    online.DENSE.SIZE = 0
    (problem,) = problems_of(cfg, dicts)
    assert problem.startswith(f"{ONLINE}.DENSE: size is 0")
    online.TEACHER = "sparse"
    (problem,) = problems_of(cfg, dicts)
    assert problem == f"{ONLINE}.TEACHER: 'sparse' is not one of crops, dense"


def test_keys_of_the_other_teacher_are_idle(cfg):
    online = cfg.MODEL.VILD.DISTILLATION.ONLINE
    online.RESIZE = "squash"
    (notice,) = idle_key_notices(cfg)
    assert f"{ONLINE}.RESIZE 'squash' has no effect: {ONLINE}.TEACHER is dense" in notice
    online.RESIZE, online.TEACHER = "open_clip", "crops"
    (notice,) = idle_key_notices(cfg)
    assert f"{ONLINE}.DENSE.SIZE 48 has no effect: {ONLINE}.TEACHER is crops" in notice


def test_a_lazy_config_gives_the_recipe_as_an_object(dicts):
    wrap = OnlineTeacher(tiny_teacher(EVA), recipe=DenseRecipe(48))
    context = SetupContext(training=True, embedding_dim=DIM, teacher=None, training_images=dicts)
    assert wrap.problems(context) == []
    blocks = OnlineTeacher(tiny_teacher(EVA), recipe=DenseRecipe(window=2, global_blocks=(9,)))
    (problem,) = blocks.problems(context)
    assert "global attention in blocks [9]" in problem
