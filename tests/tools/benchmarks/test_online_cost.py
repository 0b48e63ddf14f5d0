"""The cost of an online teacher is measured on the same images and crops as the cached training."""

import statistics

import cv2
import numpy as np
import pytest
import torch
from benchmarks import online as measured
from benchmarks.online import OnlineCost, online_cost
from benchmarks.speed import Ratio, table_of

from ovd_d2.clip.loading import configured_teacher
from ovd_d2.engine import build
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.vocabulary import Vocabulary
from tests.proposal_stores import random_proposals, write_cache, write_proposals
from tests.tiny import BASE_NAMES, NOVEL_NAMES, tiny_config

SIZE, COUNTS = 64, {1: 3, 2: 0, 3: 7}


def config():
    cfg = tiny_config("vild")
    cfg.MODEL.OVD.EMBEDDING_DIM = 64
    cfg.MODEL.OVD.TEACHER.ARCHITECTURE, cfg.MODEL.OVD.TEACHER.PRETRAINED = ARCHITECTURE, SHIPPED_TAG
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (SIZE,), SIZE
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 3, 0
    return cfg


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """(cached, online) over three images."""
    dicts = []
    for image_id in COUNTS:
        path = str(tmp_path / f"{image_id}.png")
        cv2.imwrite(path, np.full((SIZE, SIZE, 3), 40 * image_id, np.uint8))
        record = {"file_name": path, "image_id": image_id, "height": SIZE, "width": SIZE}
        dicts.append({**record, "annotations": []})
    tensors = {k: random_proposals(n, SIZE, SIZE, seed=k, smallest=8.0) for k, n in COUNTS.items()}
    proposals = write_proposals(tmp_path / "proposals", dicts, tensors)
    words = torch.nn.functional.normalize(torch.randn(4, 64), dim=1)
    Vocabulary(BASE_NAMES + NOVEL_NAMES, words).save(tmp_path / "vocabulary.safetensors")
    cached, online = config(), config()
    for cfg in (cached, online):
        cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    online.MODEL.VILD.DISTILLATION.CACHE = ""
    online.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS = str(proposals.path)
    teacher = configured_teacher(online, device="cpu")
    cached.MODEL.VILD.DISTILLATION.CACHE = str(
        write_cache(tmp_path / "cache", dicts, proposals, teacher)
    )
    monkeypatch.setattr(build, "load_training_dicts", lambda _: dicts)
    return cached, online


def test_they_take_turns_and_the_floor_is_the_cached_iteration_and_the_teacher(
    configs, monkeypatch
):
    taken = {}

    def turns(things, rounds, title):
        for number in range(rounds + 1):
            for thing in things.values():
                thing(number)
        taken.update(
            {"online": [9.0, 9.0, 30.0], "cached": [3.0, 3.0, 10.0], "teacher": [3.0, 6.0, 10.0]}
        )
        return taken

    monkeypatch.setattr(measured, "time_alternately", turns)
    cost = online_cost(*configs, rounds=3)
    assert cost.ratio.measured == 3.0
    assert cost.ratio.predicted == 2.0  # of 6/3, 9/3 and 20/10
    assert cost.crops == 2 * sum(COUNTS.values())  # 1x and 1.5x of every proposal of the batch
    assert cost.seconds == {k: statistics.median(v) for k, v in taken.items()}


def test_the_teacher_alone_encodes_as_many_crops(configs, monkeypatch):
    _, online = configs
    online.MODEL.VILD.DISTILLATION.ONLINE.BATCH_SIZE = 8
    seen = []
    teacher = configured_teacher(online, device="cpu")
    monkeypatch.setattr(measured, "configured_teacher", lambda *_, **__: teacher)
    monkeypatch.setattr(teacher, "encode_images", lambda batch: seen.append(len(batch)))
    encode = measured._teacher_pass(online, [20, 0, 8])
    for number in range(3):
        encode(number)
    assert seen == [8, 8, 4, 8]


def test_an_iteration_trains_on_the_images_of_the_other(configs, monkeypatch):
    batches = []
    model = torch.nn.Linear(1, 1)
    model.forward = lambda batch: (
        batches.append([x["image_id"] for x in batch]) or {"loss": model.weight.sum()}
    )
    monkeypatch.setattr(measured, "build_open_vocabulary_model", lambda *_, **__: model)
    for cfg in configs:
        cfg.SOLVER.LR_MULTIPLIERS = []
        iterate = measured._iteration(cfg)
        iterate(0), iterate(1)
    assert batches[:2] == batches[2:]
    assert sorted(batches[0]) == [1, 2, 3]


def test_predicted_ratio_grows_with_the_proposals_and_not_without():
    cfg = config()
    few, many = 5, 25
    ratios = []
    for cfg.MODEL.VILD.DISTILLATION.PROPOSALS_PER_IMAGE in (few, many):
        ratios.append(measured.predicted_ratio(cfg))
    # Linear but for the student's own share: five times the crops, five times what comes on top.
    assert 3 < (ratios[1] - 1) / (ratios[0] - 1) <= 5


def test_a_row_for_the_table():
    cost = OnlineCost(Ratio("online / cached", 1.5, 1.25), 186.0, {"online": 0.3, "cached": 0.2})
    row = cost.row()
    assert row["iteration_milliseconds"] == {"online": 300.0, "cached": 200.0}
    assert "1.50" in table_of([row]) and "120 %" in table_of([row])
