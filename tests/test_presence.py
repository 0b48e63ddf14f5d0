"""Whether a name is there: the fit, its file, and what predictor and files make of it."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from ovd_d2.errors import SetupError
from ovd_d2.prediction import Prediction
from ovd_d2.presence import (
    Presence,
    calibration_error,
    fit_presence,
    least_presence,
    load_presence,
    reliability,
)
from ovd_d2.vocabulary import Categories

DRAWN = 20_000


def drawn(temperature, bias, absent_per_present=1):
    """Scores whose presence is known to be `sigmoid(logit(score) / temperature + bias)`."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(DRAWN, generator=generator, dtype=torch.float64) * 0.96 + 0.02
    true = (scores.logit() / temperature + bias).sigmoid()
    present = torch.rand(DRAWN, generator=generator, dtype=torch.float64) < true
    # both kinds count alike, whatever their numbers
    absent = (~present).nonzero().flatten().repeat(absent_per_present)
    rows = torch.cat([present.nonzero().flatten(), absent])
    return scores[rows], present[rows]


@pytest.mark.parametrize("absent_per_present", [1, 7])
def test_the_fit_finds_what_the_scores_were_drawn_from(absent_per_present):
    scores, present = drawn(1.6, 0.0, absent_per_present)
    presence = fit_presence(scores, present)
    assert presence.temperature == pytest.approx(1.6, rel=0.05)
    assert presence.bias == pytest.approx(0, abs=0.05) and presence.crop_weight == 0
    assert calibration_error(presence.of(scores), present) < 0.01
    assert calibration_error(scores, present) > 0.05


def test_the_fit_finds_what_scores_and_crops_were_drawn_from():
    generator = torch.Generator().manual_seed(0)
    scores, crops, chance = torch.rand(3, DRAWN, generator=generator, dtype=torch.float64)
    true = Presence(1.6, 0.0, 0.0, crop_weight=0.6)
    present = chance < true.of(scores, crops)
    fitted = fit_presence(scores, present, crops)
    assert fitted.temperature == pytest.approx(1.6, rel=0.06)
    assert fitted.crop_weight == pytest.approx(0.6, rel=0.06)
    assert fitted.bias == pytest.approx(0, abs=0.06)
    assert calibration_error(fitted.of(scores, crops), present) < 0.02
    with pytest.raises(SetupError, match="score no higher"):
        fit_presence(scores, present, 1 - crops)


def test_a_crop_counts_by_its_weight():
    """0.2 and 0.8 have the log-odds -1.386 and 1.386."""
    presence = Presence(2.0, 0.5, 0.0, crop_weight=0.25)
    found = presence.of(torch.tensor([0.8, 0.8]), torch.tensor([0.8, 0.2]))
    odds = torch.tensor([0.5 * 1.386294 + 0.5 + 0.25 * 1.386294, 0.25 * 1.386294 + 0.5])
    assert found.tolist() == pytest.approx(odds.sigmoid().tolist())
    with pytest.raises(ValueError, match="fitted with crops, and none are given"):
        presence.of(torch.tensor([0.8]))
    with pytest.raises(ValueError, match="crop_weight -1.0: expected"):
        Presence(1.0, 0.0, 0.0, crop_weight=-1.0)


def test_bins_are_weighted_by_kind():
    presences = torch.tensor([0.05, 0.05, 0.05, 0.95])
    present = torch.tensor([False, False, True, True])
    low, high = reliability(presences, present)
    assert low.weight == pytest.approx(0.75) and low.rate == pytest.approx(1 / 3)
    assert high == pytest.approx((0.95, 1.0, 0.25))
    assert calibration_error(presences, present) == pytest.approx(0.75 * (1 / 3 - 0.05) + 0.0125)


def test_kinds_that_do_not_overlap_have_a_finite_fit():
    presence = fit_presence(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 1, 0]).bool())
    assert 0 < presence.temperature < 10 and abs(presence.bias) < 10


@pytest.mark.parametrize(
    "scores, present, message",
    [
        ([0.9, 0.8], [True, True], "2 names that are in an image and 0 that are not"),
        ([], [], "0 names that are"),
        ([0.1, 0.9, 0.2, 0.8], [True, False, True, False], "score no higher"),
        ([0.0, 0.0], [True, False], "score no higher"),
    ],
)
def test_what_cannot_be_fitted(scores, present, message):
    with pytest.raises(SetupError, match=message):
        fit_presence(torch.tensor(scores), torch.tensor(present, dtype=torch.bool))


def test_the_least_presence_keeps_false_boxes_few():
    presences = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1] * 2, dtype=torch.float64)
    boxes = torch.tensor([1, 2, 1, 0, 0] * 2)
    for false_boxes in (0.0, 0.2, 0.3, 0.6, 0.8, 1.0):
        least = least_presence(presences, boxes, false_boxes)
        assert int(boxes[presences >= least].sum()) <= false_boxes * 10
    assert least_presence(presences, boxes, 1.0) == 0.0
    assert 0.9 < least_presence(presences, boxes, 0.1) <= 1


def test_a_calibration_and_its_file(tmp_path):
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(b"weights")
    assert load_presence(str(weights)) is None and load_presence("") is None
    presence = Presence(1.5, 0.25, 0.7, crop_weight=0.5, measured={"images": 3})
    path = presence.save(weights)
    assert load_presence(str(weights)) == presence
    assert load_presence(str(weights)).measured == {"images": 3}
    weights.write_bytes(b"others")
    with pytest.raises(SetupError, match="presence.json is of other weights than .*again"):
        load_presence(str(weights))
    content = json.loads(path.read_text())
    wrong = [
        "{",
        "[]",
        json.dumps({**content, "schema": "ovd_d2.presence/1"}),
        json.dumps({**content, "temperature": 0}),
        json.dumps({**content, "bias": float("nan")}),
        json.dumps({**content, "bias": "0"}),
        json.dumps({key: value for key, value in content.items() if key != "least"}),
    ]
    for text in wrong:
        path.write_text(text)
        with pytest.raises(SetupError, match="is no calibration of presence .*again, or remove it"):
            load_presence(str(weights))


def test_names_that_are_unlikely_give_nothing():
    instances = Instances(
        (10, 10),
        pred_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 4, 4]])),
        scores=torch.tensor([0.9, 0.6, 0.5]),
        pred_classes=torch.tensor([0, 1, 0]),
    )
    categories = Categories(["kite", "bell", "bow"], [False] * 3)
    found = Prediction(instances, categories, (0.9, 0.6, 0.0), torch.zeros(3, 4))
    calibration = Presence(1.0, 0.0, 0.5)
    judged = found.judged(calibration, 0.7)
    assert judged.names == ["kite", "kite"]
    assert judged.instances.presence.tolist() == pytest.approx([0.9, 0.9])
    assert judged.presence == pytest.approx((0.9, 0.6, 0.01))
    assert found.presence is None and len(found.judged(calibration, 0.0)) == 3
