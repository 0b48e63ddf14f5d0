"""GLIP in onnxruntime: the same detections, whatever captions it is asked."""

from __future__ import annotations

import runpy
from itertools import product

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from ovd_d2 import add_ovd_config
from ovd_d2.errors import SetupError
from ovd_d2.export import OnnxDetector, compare, export_detector
from ovd_d2.projects.glip.export import GLIPNetwork, glip_network
from ovd_d2.vocabulary import Vocabulary
from tests.tiny_glip import WORDS, image, tiny_glip

CLOSE = 1e-3
NAMES = WORDS[5:]


def export(folder, *, fused=False, across="resized", dynamic=True, tuning="full"):
    """The model in PyTorch, what of it is exported, and that in onnxruntime."""
    cfg = get_cfg()
    add_ovd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "GLIP"
    options = {"fused": fused, "across": across, "dynamic": dynamic, "tuning": tuning}
    model = tiny_glip(**options, vocabulary=vocabulary_of(3)).eval()
    if model.prompt_offset is not None:
        torch.nn.init.normal_(model.prompt_offset)
    model.selection = type(model.selection)(score_threshold=0.0101, limit=20)
    network = export_detector(cfg, model, folder / "model.onnx")
    return model, network, OnnxDetector(folder / "model.onnx", threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("glip")


@pytest.fixture(scope="module", params=["plain", "fused", "large kernels"])
def exported(request, folder):
    """With all else that a network may have: offsets of official weights, tuned prompts."""
    if request.param == "plain":
        return export(folder)
    if request.param == "large kernels":
        return export(folder, fused=True, dynamic=False)
    return export(folder, fused=True, across="flat", tuning="prompt")


def vocabulary_of(count):
    names = [*NAMES, *map(" ".join, product(NAMES, repeat=4))][:count]
    return Vocabulary(names, torch.eye(1).expand(count, 1))


def by_pytorch(model, pixels, vocabulary):
    with torch.no_grad():
        found = [model([{"image": one}], vocabulary)[0]["instances"] for one in pixels]
    return [
        {
            "boxes": one.pred_boxes.tensor.numpy(),
            "scores": one.scores.numpy(),
            "categories": one.pred_classes.numpy(),
        }
        for one in found
    ]


def assert_same(exported, count, height, width, names):
    model, network, detector = exported
    vocabulary = vocabulary_of(names)
    pixels = torch.stack([image(k, height, width)["image"] for k in range(count)])
    words = {name: value.numpy() for name, value in network.words_of(vocabulary).items()}

    wanted = by_pytorch(model, pixels, vocabulary)
    parity = compare(wanted, detector(pixels.numpy(), words))

    assert parity.detections > 0
    assert parity.same == count, parity
    assert max(parity.largest.values()) < CLOSE


@pytest.mark.parametrize(
    ("count", "height", "width", "names"),
    [(1, 64, 96, 5), (2, 130, 97, 1), (1, 96, 64, 30), (1, 64, 64, 1203)],
)
def test_it_finds_what_pytorch_finds(exported, count, height, width, names):
    assert_same(exported, count, height, width, names)


def test_the_example_reads_the_words(exported, folder):
    read_words = runpy.run_path("docs/export/run_onnx.py")["read_words"]

    names, arrays = read_words(folder / "model.safetensors")

    assert names == vocabulary_of(3).names
    for name, value in exported[1].words_of(vocabulary_of(3)).items():
        np.testing.assert_array_equal(arrays[name], value)


def test_a_threshold_that_nothing_reaches_leaves_nothing(exported):
    _, network, detector = exported
    words = {name: value.numpy() for name, value in network.words_of(vocabulary_of(3)).items()}
    words["positives"] = np.zeros_like(words["positives"])  # names without tokens score 0

    (found,) = detector(image(0)["image"].numpy()[None], words)
    assert {name: len(value) for name, value in found.items()} == dict.fromkeys(found, 0)


def test_a_backbone_that_is_no_swin_is_traced_as_it_is():
    model = tiny_glip(fused=False)
    model.backbone.bottom_up = torch.nn.Identity()
    assert isinstance(GLIPNetwork(model).backbone.bottom_up, torch.nn.Identity)


def test_other_scores_are_refused():
    model = tiny_glip()
    model.selection = type(model.selection)(aggregation="max")
    with pytest.raises(SetupError, match="'max' cannot be exported: 'mean' can"):
        glip_network(model)
