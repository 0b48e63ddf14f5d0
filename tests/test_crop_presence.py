"""A predictor whose calibration was fitted with crops: the teacher looks at what it finds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from ovd_d2.clip.crop_scores import crop_scores
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.errors import SetupError
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.presence import LEAST_SCORE, Presence
from ovd_d2.tiles import predict_in_tiles
from ovd_d2.vocabulary import Vocabulary
from tests.tiny_fvit import build_tiny_fvit, tiny_fvit_config, wide_vocabulary

NAMES = ["red anchor", "blue cup"]
PRESENCE = Presence(2.0, 0.5, 0.0, crop_weight=0.7)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An F-ViT and its config, whose teacher is a file."""
    folder = tmp_path_factory.mktemp("fvit")
    cfg = tiny_fvit_config(folder)
    cfg.MODEL.OVD.VOCABULARY = str(folder / "vocabulary.safetensors")
    cfg.MODEL.OVD.TEMPERATURE = 1e-9  # the teacher has its own, F-ViT does not read this one
    wide_vocabulary().save(cfg.MODEL.OVD.VOCABULARY)
    cfg.MODEL.OVD.TEACHER.PROMPTS = "single"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    return cfg, build_tiny_fvit(cfg)


@pytest.fixture(scope="module")
def predictor(built):
    cfg, model = built
    return OpenVocabularyPredictor(cfg, model=model, presence=PRESENCE)


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (*size, 3), dtype=np.uint8) for size in [(64, 90), (80, 64)]]


def test_presence_is_of_scores_and_crops(built, predictor, images):
    cfg, model = built
    found, other = predictor(images, NAMES, 0.0, "BGR")
    assert min(found.best_scores) > LEAST_SCORE and len(found.crop_scores) == len(NAMES)
    competing = predictor._wanted(NAMES)[0]  # with the configured vocabulary
    assert len(competing) > len(NAMES)
    rgb, places = np.ascontiguousarray(images[0][:, :, ::-1]), torch.arange(2)
    expected = crop_scores(rgb, found.best_boxes, places, competing, predictor.teacher)
    assert found.crop_scores == pytest.approx(expected.tolist())
    scores = torch.tensor(found.best_scores)
    assert found.presence == tuple(PRESENCE.of(scores, expected).tolist())
    alone = predictor(images[1], NAMES, 0.0, "BGR")
    assert other.crop_scores == pytest.approx(alone.crop_scores, abs=1e-4)
    encoded = predictor(predictor.encode(images[0], "BGR"), NAMES, 0.0)
    assert encoded.crop_scores == pytest.approx(found.crop_scores, abs=1e-4)
    plain = OpenVocabularyPredictor(cfg, model=model)  # not calibrated: the same boxes
    without = plain(images[0], NAMES, 0.0, "BGR")
    assert without.crop_scores is None and without.presence is None
    assert torch.equal(without.instances.scores, found.instances.scores)


def test_the_best_boxes_are_of_the_best_scores(predictor, images):
    found = predictor(images[0], None, 0.0, "BGR")
    for k, score in enumerate(found.best_scores):
        of_name = found.instances[found.instances.pred_classes == k]
        if len(of_name):
            assert score == of_name.scores[0] == of_name.scores.max()
            assert torch.equal(found.best_boxes[k], of_name.pred_boxes.tensor[0])
    below = predictor(images[0], None, 1.1, "BGR")
    assert len(below) == 0 and below.presence == found.presence


def test_the_teacher_is_not_asked_where_the_score_says_nothing(predictor, images):
    found = predictor(images[0], NAMES, 0.0, "BGR")
    without = replace(found, best_scores=(LEAST_SCORE, found.best_scores[1]))
    judged = predictor.judged(without, images[0], NAMES, "BGR")
    assert judged.crop_scores == (0.0, pytest.approx(found.crop_scores[1]))
    assert judged.presence[0] < found.presence[0]
    assert judged.presence[1] == pytest.approx(found.presence[1])


def test_the_vocabulary_of_another_teacher(predictor, images):
    own = wide_vocabulary()
    foreign = Vocabulary(own.names, own.embeddings, background=own.background, teacher="yours")
    with pytest.raises(SetupError, match="MODEL.OVD.TEACHER is .* was made with yours"):
        predictor(images[0], foreign, 0.0, "BGR")


def test_tiles_are_judged_once_and_in_the_whole_image(predictor, images, monkeypatch):
    seen = []

    def counted(image, boxes, *rest):
        seen.append(image.shape)
        return crop_scores(image, boxes, *rest)

    monkeypatch.setattr("ovd_d2.predictor.crop_scores", counted)
    image = np.tile(images[0], (2, 2, 1))
    found = predict_in_tiles(predictor, image, NAMES, 0.0, side=64, overlap=0.2)
    assert seen == [image.shape]
    whole = predictor.detected([image], NAMES, 0.0, "BGR")[0]
    assert all(a >= b for a, b in zip(found.best_scores, whole.best_scores, strict=True))
    again = predictor.judged(found, image, NAMES, "BGR")
    assert again.crop_scores == found.crop_scores and again.presence == found.presence


def test_threads_load_one_teacher(built, images, monkeypatch):
    cfg, model = built
    loaded = []

    def counted(*args, **options):
        loaded.append(args)
        return configured_teacher(*args, **options)

    monkeypatch.setattr("ovd_d2.predictor.configured_teacher", counted)
    shared = OpenVocabularyPredictor(cfg, model=model, presence=PRESENCE)
    started = threading.Barrier(3)

    def call(names):
        started.wait()
        return shared(images[0], names, 0.0, "BGR").presence

    wanted = [None, ["dog"], NAMES]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(call, wanted))
    assert len(loaded) == 1
    for one, names in zip(together, wanted, strict=True):
        assert one == pytest.approx(shared(images[0], names, 0.0, "BGR").presence)
