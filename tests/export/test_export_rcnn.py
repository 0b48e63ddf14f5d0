"""Exported two-stage detectors: onnxruntime finds what PyTorch finds, whatever it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ovd_d2.export import OnnxDetector, OnnxModel, compare, export_detector
from ovd_d2.export.network import network_of
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import random_units, tiny_config, tiny_vocabulary
from tests.tiny_fvit import build_tiny_fvit, tiny_fvit_config

CLOSE = 1e-3


def tiny_vild(variant, masks):
    cfg = tiny_config(variant)
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.set_vocabulary(tiny_vocabulary())
    return cfg, model


def tiny_fvit(folder):
    cfg = tiny_fvit_config(folder, masks=True)
    cfg.MODEL.FVIT.WINDOW_SIZE, cfg.MODEL.FVIT.GLOBAL_ATTENTION_BLOCKS = 4, (1,)
    # random embeddings lie so far apart that exp(75 x cosine) would be a denormal number
    cfg.MODEL.FVIT.LOGIT_SCALE = cfg.MODEL.FVIT.IMAGE_LOGIT_SCALE = 20.0
    return cfg, build_tiny_fvit(cfg).eval()


@pytest.fixture(scope="module", params=["text", "ensemble", "fvit"])
def exported(request, tmp_path_factory):
    """Config, model, folder of the files."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "fvit":
        cfg, model = tiny_fvit(folder)
    else:
        cfg, model = tiny_vild(f"vild_{request.param}", masks=request.param == "ensemble")
    export_detector(cfg, model, folder / "model.onnx")
    return cfg, model, folder


@pytest.fixture(scope="module")
def detector(exported):
    return OnnxDetector(exported[2] / "model.onnx", threads=1)


def words_like(exported, count, seed=0):
    dim = exported[0].MODEL.OVD.EMBEDDING_DIM
    rows = random_units(count + 1, seed, dim)
    novel = torch.arange(count) % 3 == 1
    return Vocabulary([f"name {k}" for k in range(count)], rows[:-1], novel, background=rows[-1])


def images(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def by_pytorch(model, pixels, vocabulary):
    found = []
    model.full_masks = False
    for image in pixels:
        with torch.no_grad():
            one = model([{"image": image}], vocabulary)[0]["instances"]
        fields = {"boxes": one.pred_boxes.tensor, "scores": one.scores}
        fields["categories"] = one.pred_classes
        if one.has("pred_masks"):
            fields["masks"] = one.pred_masks.probabilities
        found.append({name: value.numpy() for name, value in fields.items()})
    return found


def by_onnx(exported, detector, pixels, vocabulary):
    classifier = exported[1].roi_heads.classifier
    words = {"embeddings": vocabulary.embeddings.numpy(), "novel": vocabulary.novel.numpy()}
    if not classifier.learns_background:
        words["background"] = vocabulary.background.numpy()
    return detector(pixels.numpy(), words)


@pytest.mark.parametrize(
    ("count", "height", "width", "names"),
    [(1, 96, 128, 4), (1, 130, 97, 1), (2, 64, 160, 30), (1, 96, 96, 1203)],
)
def test_it_finds_what_pytorch_finds(exported, detector, count, height, width, names):
    pixels, vocabulary = images(count, height, width), words_like(exported, names)

    wanted = by_pytorch(exported[1], pixels, vocabulary)
    parity = compare(wanted, by_onnx(exported, detector, pixels, vocabulary))

    assert parity.detections > 0
    assert parity.same == count, wanted
    assert max(parity.largest.values()) < CLOSE
    assert ("masks" in parity.largest) == exported[0].MODEL.MASK_ON


def test_an_image_gives_the_same_alone_and_in_a_batch(exported, detector):
    pixels, vocabulary = images(2, 64, 96), words_like(exported, 5)

    together = by_onnx(exported, detector, pixels, vocabulary)
    alone = [by_onnx(exported, detector, one[None], vocabulary)[0] for one in pixels]

    for one, other in zip(together, alone, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])


def test_without_detections_the_outputs_are_empty(exported, detector):
    vocabulary = words_like(exported, 2)
    vocabulary.embeddings.fill_(torch.nan)  # no score of these is finite

    found = by_onnx(exported, detector, images(2, 64, 64), vocabulary)
    assert [len(one["scores"]) for one in found] == [0, 0]
    assert by_pytorch(exported[1], images(1, 64, 64), vocabulary)[0]["boxes"].shape == (0, 4)


def test_in_the_place_of_the_model_it_gives_the_same_instances(exported, detector):
    cfg, model, _ = exported
    stands_in = OnnxModel(network_of(cfg, model), model, detector)
    inputs = [{"image": images(1, 96, 128)[0], "height": 48, "width": 64}]
    model.full_masks = False
    with torch.no_grad():
        (wanted,), (found,) = model(inputs), stands_in(inputs)
    wanted, found = wanted["instances"], found["instances"]
    assert found.image_size == (48, 64)
    torch.testing.assert_close(
        found.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=CLOSE, rtol=0
    )
    torch.testing.assert_close(found.scores, wanted.scores, atol=CLOSE, rtol=0)
    if cfg.MODEL.MASK_ON:
        differences = found.pred_masks.probabilities - wanted.pred_masks.probabilities
        assert differences.abs().max() < CLOSE
