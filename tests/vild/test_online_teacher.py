"""The teacher inside training: same loss as with a cache, mistakes found before training starts."""

import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ovd_d2.cache import EmbeddingCache
from ovd_d2.clip.crops import CropRecipe
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.data.online import OnlineTeacherLoader
from ovd_d2.data.passengers import CachedProposals, ProposalsToEmbed
from ovd_d2.engine import build
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_BASE_TAG, SHIPPED_TAG
from ovd_d2.structures import cached_proposals_of
from ovd_d2.systems import SetupContext
from ovd_d2.vild.online_teacher import OnlineTeacher
from ovd_d2.vocabulary import Vocabulary
from tests.proposal_stores import embedder, random_proposals, write_cache, write_proposals
from tests.tiny import BASE_NAMES, NOVEL_NAMES, tiny_config

SIZE = 64
IDS = (1, 2)


def online_config(variant="vild", tag=SHIPPED_TAG):
    cfg = tiny_config(variant)
    cfg.MODEL.OVD.EMBEDDING_DIM = 64
    cfg.MODEL.OVD.TEACHER.ARCHITECTURE = ARCHITECTURE
    cfg.MODEL.OVD.TEACHER.PRETRAINED = tag
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE,), SIZE
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture(scope="module")
def teacher():
    return configured_teacher(online_config(), device="cpu")


@pytest.fixture(scope="module")
def dicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    entries = []
    for image_id in IDS:
        path = folder / f"{image_id}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
        record = {"file_name": str(path), "image_id": image_id, "height": SIZE, "width": SIZE}
        entries.append({**record, "annotations": []})
    return entries


@pytest.fixture(scope="module")
def proposals(dicts, tmp_path_factory):
    tensors = {k: random_proposals(3 * k, SIZE, SIZE, seed=k, smallest=8.0) for k in IDS}
    return write_proposals(tmp_path_factory.mktemp("stores") / "proposals", dicts, tensors)


@pytest.fixture(scope="module")
def cache(dicts, proposals, teacher, tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("stores") / "cache", dicts, proposals, teacher)


@pytest.fixture
def cfg(dicts, proposals, monkeypatch):
    monkeypatch.setattr(build, "load_training_dicts", lambda _: dicts)
    cfg = online_config()
    cfg.MODEL.VILD.DISTILLATION.CACHE = ""
    cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(proposals.path)
    return cfg


def words():
    rows = torch.nn.functional.normalize(torch.randn(4, 64), dim=1)
    novel = torch.tensor([False, False, False, True])
    return Vocabulary(BASE_NAMES + NOVEL_NAMES, rows, novel)


def first_step(cfg):
    """Losses of the first batch and the gradient that the distillation loss alone gives."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    model = build_model(cfg).train()
    model.set_vocabulary(words())
    batch = next(iter(build.build_train_loader(cfg)))
    with EventStorage():
        losses = model(batch)
    losses["loss_distillation"].backward()
    gradient = model.roi_heads.box_predictor.projection.weight.grad
    return {name: loss.detach() for name, loss in losses.items()}, gradient


def test_a_training_step_has_the_loss_it_has_with_a_cache(cfg, cache):
    online, gradient = first_step(cfg)
    cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = ""
    cfg.MODEL.VILD.DISTILLATION.CACHE = str(cache)
    cached, expected = first_step(cfg)
    assert online.keys() == cached.keys()
    assert cached["loss_distillation"] > 0
    for name, loss in cached.items():
        torch.testing.assert_close(online[name], loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_loading_the_teacher_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    configured_teacher(online_config(), device="cpu")
    assert torch.equal(torch.rand(4), expected)


def test_the_teacher_is_frozen_and_in_evaluation_mode(cfg):
    loader = build.build_train_loader(cfg)
    assert isinstance(loader, OnlineTeacherLoader)
    model = loader.embed.keywords["teacher"]._model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(iter(loader))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(
        cached_proposals_of(x["instances"]).teacher_embeddings.requires_grad for x in batch
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # BN, too


def test_options_reach_the_teacher(cfg):
    cfg.MODEL.VILD.DISTILLATION.ONLINE.RESIZE = "squash"
    cfg.MODEL.VILD.DISTILLATION.ONLINE.BATCH_SIZE = 4
    options = build.build_train_loader(cfg).embed.keywords
    assert (options["recipe"], options["batch_size"]) == (CropRecipe(resize="squash"), 4)


def test_a_variant_that_does_not_distil_has_no_teacher(cfg):
    cfg.MODEL.VILD.VARIANT = "vild_text"
    assert not isinstance(build.build_train_loader(cfg), OnlineTeacherLoader)


def test_workers_read_and_the_training_process_embeds(cfg, dicts, cache, teacher):
    cfg.DATALOADER.NUM_WORKERS = 2
    batch = next(iter(build.build_train_loader(cfg)))
    assert len(batch) == 2
    options = OpenVocabularyDatasetMapper.from_config(cfg, is_train=True)
    options["passengers"] = [CachedProposals(EmbeddingCache(cache), per_image=300)]
    from_cache = OpenVocabularyDatasetMapper(**options)
    by_id = {entry["image_id"]: from_cache(entry) for entry in dicts}
    for record in batch:
        expected = cached_proposals_of(by_id[record["image_id"]]["instances"]).teacher_embeddings
        found = cached_proposals_of(record["instances"]).teacher_embeddings
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def problems_with(dicts, proposals, online, **changes):
    needs = {"training": True, "embedding_dim": 64, "training_images": dicts}
    context = SetupContext(**{**needs, **changes})
    store = ProposalsToEmbed(proposals, per_image=300)
    return [*OnlineTeacher(online).problems(context), *store.problems(context)]


def test_what_fits_has_no_problem(dicts, proposals, teacher):
    assert problems_with(dicts, proposals, teacher, teacher=teacher.fingerprint) == []
    assert problems_with(dicts, proposals, teacher, teacher=None) == []


def test_proposals_of_other_images_under_these_ids(dicts, proposals, teacher):
    first, second = dicts
    swapped = [{**first, "image_id": 2}, {**second, "image_id": 1}]
    (problem,) = problems_with(swapped, proposals, teacher)
    assert f"proposals in {proposals.path} were made for other images under these ids" in problem
    assert "2 of 2, first: image 2 was 2.png (64 x 64), is 1.png (64 x 64)" in problem
    assert "tools/extract_proposals.py" in problem
    (problem,) = problems_with([{**first, "image_id": "a"}, second], proposals, teacher)
    assert "1 of 2 image ids cannot be stored, first: 'a'" in problem


def test_another_teacher_another_width_and_missing_images_all_at_once(dicts, proposals):
    other = configured_teacher(online_config(tag=SHIPPED_BASE_TAG), device="cpu")
    shipped = configured_teacher(online_config(), device="cpu").fingerprint
    more = [*dicts, *({**dicts[0], "image_id": one} for one in (78, 77))]
    problems = problems_with(more, proposals, other, teacher=shipped, embedding_dim=512)
    assert len(problems) == 3
    assert other.fingerprint in problems[0] and shipped in problems[0]
    assert "64 wide, expected 512" in problems[1]
    assert "expected the 4" in problems[2] and "2 are missing (first ids: [77, 78])" in problems[2]
    assert "toy_train" in problems[2] and "extract_proposals" in problems[2]


def test_one_pass_or_many_give_the_same(proposals, dicts, teacher):
    image = cv2.imread(dicts[1]["file_name"])
    boxes = proposals[2].boxes
    many, one = (embedder(teacher, batch_size=size)(image, boxes) for size in (2, 256))
    torch.testing.assert_close(many, one, atol=1e-5, rtol=0)
