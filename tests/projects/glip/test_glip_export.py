"""GLIP without fusion in onnxruntime: the same detections, whatever captions it is asked."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from ovd_d2.errors import SetupError
from ovd_d2.export.runtime import OnnxDetector, compare
from ovd_d2.export.tracing import trace
from ovd_d2.projects.glip.export import glip_network
from ovd_d2.vocabulary import Vocabulary
from tests.tiny_glip import WORDS, image, tiny_glip

CLOSE = 1e-3
NAMES = WORDS[5:]


@pytest.fixture(scope="module", params=["resized", "flat"])
def exported(request):
    """The model in PyTorch, what of it is exported, and that in onnxruntime."""
    model = tiny_glip(fused=False, across=request.param).eval()
    model.selection = type(model.selection)(score_threshold=0.0101, limit=20)
    network = glip_network(model)
    graph = trace(network, image(0, height=160, width=224)["image"])
    return model, network, OnnxDetector(graph.SerializeToString(), threads=1)


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


@pytest.mark.parametrize(
    ("count", "height", "width", "names"),
    [(1, 64, 96, 5), (2, 130, 97, 1), (1, 96, 64, 30), (1, 64, 64, 1203)],
)
def test_it_finds_what_pytorch_finds(exported, count, height, width, names):
    model, network, detector = exported
    vocabulary = vocabulary_of(names)
    pixels = torch.stack([image(k, height, width)["image"] for k in range(count)])
    words = {name: value.numpy() for name, value in network.words_of(vocabulary).items()}

    wanted = by_pytorch(model, pixels, vocabulary)
    parity = compare(wanted, detector(pixels.numpy(), words))

    assert parity.detections > 0
    assert parity.same == count, parity
    assert max(parity.largest.values()) < CLOSE


def test_a_threshold_that_nothing_reaches_leaves_nothing(exported):
    _, network, detector = exported
    words = {name: value.numpy() for name, value in network.words_of(vocabulary_of(3)).items()}
    words["positives"] = np.zeros_like(words["positives"])  # names without tokens score 0

    (found,) = detector(image(0)["image"].numpy()[None], words)
    assert {name: len(value) for name, value in found.items()} == dict.fromkeys(found, 0)


def test_fusion_and_other_scores_are_refused():
    with pytest.raises(SetupError, match="MODEL.GLIP.FUSION False"):
        glip_network(tiny_glip(fused=True))
    model = tiny_glip(fused=False)
    model.selection = type(model.selection)(aggregation="max")
    with pytest.raises(SetupError, match="'max' cannot be exported: 'mean' can"):
        glip_network(model)
