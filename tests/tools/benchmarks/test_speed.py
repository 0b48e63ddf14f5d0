"""Ratios of times: who takes turns, what is counted, what the operations are."""

import time

import pytest
import torch
from benchmarks.memory import peak_memory
from benchmarks.page import page
from benchmarks.speed import (
    HEAD_REGIONS,
    _with_head_twice,
    classification,
    operations_of,
    ratio_of,
    table_of,
    time_alternately,
)
from detectron2.modeling import build_model

from ovd_d2 import scoring
from ovd_d2.modeling import detection
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


def test_everyone_has_a_turn_in_each_round_and_the_first_is_not_counted():
    calls = []
    things = {name: lambda number, name=name: calls.append((number, name)) for name in "ab"}
    seconds = time_alternately(things, rounds=2, title="test")
    assert calls == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_seconds_are_those_of_the_thing():
    seconds = time_alternately({"sleep": lambda _: time.sleep(0.01)}, rounds=1, title="test")
    assert seconds["sleep"][0] > 0.009


def test_a_slow_round_does_not_count_in_the_ratio():
    seconds = {"slow": [2.0, 20.0, 2.0], "fast": [1.0, 10.0, 1.0]}
    assert ratio_of(seconds, "slow", "fast") == 2.0


def test_operations_of_a_product():
    left, right = torch.rand(3, 5), torch.rand(5, 7)
    assert operations_of(lambda: left @ right) == 2 * 3 * 5 * 7


def test_operations_of_attention_in_evaluation_mode():
    # fused: one kernel, of whose products the counter knows none
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(1, 5, 8)
    with torch.no_grad():
        counted = operations_of(lambda: attention(x, x, x, need_weights=False))
    projections, products = 2 * 5 * 8 * (3 * 8 + 8), 2 * (2 * 5 * 5 * 8)
    assert counted == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("size", [1, 2000])
@pytest.mark.parametrize("ensemble", [False, True])
def test_classification_runs_for_any_vocabulary(size, ensemble):
    classification(size, ensemble=ensemble)(0)


@pytest.mark.parametrize("ensemble", [False, True])
def test_no_more_than_two_score_tensors_are_alive(ensemble, monkeypatch):
    """Logits and scores; what the blocks need makes up the half that is allowed for."""
    monkeypatch.setattr(scoring, "BLOCK", 2**14)
    monkeypatch.setattr(detection, "FIRST_CANDIDATES", 1)
    monkeypatch.setattr(detection, "suppress", lambda boxes, *_: torch.arange(len(boxes)))
    thing = classification(300, ensemble=ensemble)
    scores = 4 * HEAD_REGIONS * 301
    assert 2 * scores <= peak_memory(lambda: thing(0)) < 2.5 * scores


def test_the_head_that_runs_twice_detects_the_same():
    torch.manual_seed(0)
    model = build_model(tiny_config("vild")).eval()
    model.set_vocabulary(tiny_vocabulary())
    inputs = [tiny_input(cached=None)]

    def scores():
        with torch.no_grad():
            return model(inputs)[0]["instances"].scores

    expected, once = scores(), operations_of(scores)
    _with_head_twice(model)
    assert torch.equal(scores(), expected)
    regions = 10  # RPN.POST_NMS_TOPK_TEST of the tiny model
    box_head, projection = model.roi_heads.box_head, model.roi_heads.box_predictor.projection
    weights = [(box_head.conv1, 6 * 6), (box_head.fc1, 1), (projection, 1)]  # places on the map
    added = sum(2 * regions * places * layer.weight.numel() for layer, places in weights)
    assert operations_of(scores) == once + added


ROWS = [
    {"name": "training step, vild / vild_text", "measured": 1.2, "predicted": 1.0},
    {"name": "loading", "measured": 1.01, "predicted": None},
    {
        "name": "classify, 80 names",
        "milliseconds": 3.5,
        "peak_megabytes": 0.7,
        "score_megabytes": 0.3,
    },
]


def test_table_says_how_far_from_the_prediction():
    text = table_of(ROWS)
    assert "120 %" in text and "1.20" in text and "3.5" in text
    origin = {"command": "python z", "date": "2026-01-04", "commit": "c0ffee1", "pictograms": 3}
    assert "`python z`\non 2026-01-04" in page(None, speed={**origin, "rows": ROWS})
