"""Fixed AP's best detections of a category, kept while images come."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pycocotools.mask as mask_utils
import pytest
from detectron2.structures import Instances
from evaluation_scenes import NAMES, feed, make_dataset, noisy_detections

from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.protocols import COCO, FEDERATED, FIXED, Protocol, select
from ovd_d2.evaluation.streaming import BestPerCategory

IDS = list(range(1, len(NAMES) + 1))


def stream(seed: int, count: int, levels: int) -> list[dict]:
    """`levels` different scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    return [
        {"category_id": int(rng.integers(4)), "score": float(rng.integers(levels)), "k": k}
        for k in range(count)
    ]


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("limit", [0, 1, 7, 500])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_keeps_what_selecting_at_the_end_keeps(seed, limit, levels):
    detections, best = stream(seed, 300, levels), BestPerCategory(limit)
    for start in range(0, len(detections), 11):
        part = detections[start : start + 11]
        categories = np.array([one["category_id"] for one in part])
        admitted = best.admits(categories, np.array([one["score"] for one in part]))
        best.add(one for one, good in zip(part, admitted, strict=True) if good)
        assert sum(len(heap) for heap in best._heaps.values()) <= 4 * limit
    assert best.detections() == select(detections, Protocol("test", "lvis", per_category=limit))


def test_what_cannot_count_any_more_is_not_admitted():
    best = BestPerCategory(2)
    best.add({"category_id": 1, "score": score} for score in (0.5, 0.7, 0.6))
    admitted = best.admits(np.array([1, 1, 1, 2]), np.array([0.6, 0.61, np.nan, 0.0]))
    assert admitted.tolist() == [False, True, True, True]


def test_a_score_that_is_not_a_number_is_kept_for_the_check():
    best = BestPerCategory(1)
    best.add({"category_id": 1, "score": score} for score in (0.5, float("nan"), 0.7))
    assert [one["score"] for one in best.detections()] == [pytest.approx(np.nan, nan_ok=True), 0.7]


FEW = dataclasses.replace(FIXED, per_category=9)


@pytest.fixture
def pairs():
    """Three detectors in one, in 12 images; many of their scores are equal."""
    together, *others = (noisy_detections(make_dataset(IDS), IDS, seed=k) for k in (1, 2, 3))
    for k, (_, output) in enumerate(together):
        found = Instances.cat(
            [output["instances"], *(pairs[k][1]["instances"] for pairs in others)]
        )
        found.scores = (found.scores * 10).round() / 10
        output["instances"] = found
    return together


@pytest.fixture
def evaluate(register, pairs):
    register("ov_streaming", make_dataset(IDS), "lvis", thing_classes=NAMES)

    def run(protocol, *, streams=True, feed_with=pairs, **options):
        evaluator = OpenVocabularyLVISEvaluator(
            "ov_streaming", ("bbox", "segm"), False, protocol=protocol, **options
        )
        evaluator.streams = streams
        return feed(evaluator, feed_with)

    return run


def test_the_numbers_are_those_of_selecting_at_the_end(evaluate):
    found, expected = evaluate(FEW), evaluate(FEW, streams=False)
    for task in ("bbox", "segm"):
        assert found[task] == pytest.approx(expected[task], nan_ok=True, abs=1e-9)
    assert found["segm"]["AP"] > 5
    assert found["segm"]["AP"] != pytest.approx(evaluate(FIXED)["segm"]["AP"])  # the limit matters


def test_files_hold_what_counts(evaluate, tmp_path):
    evaluate(FEW, output_dir=str(tmp_path / "streamed"))
    evaluate(FEW, streams=False, output_dir=str(tmp_path / "whole"))
    name = OpenVocabularyLVISEvaluator.results_file
    streamed, whole = (
        json.loads((tmp_path / folder / name).read_text()) for folder in ("streamed", "whole")
    )
    assert streamed == select(whole, FEW)
    assert len(streamed) < len(whole) / 2


def test_masks_of_detections_that_cannot_count_are_not_encoded(evaluate, pairs, monkeypatch):
    encoded, encode = [], mask_utils.encode
    monkeypatch.setattr(mask_utils, "encode", lambda mask: encoded.append(1) or encode(mask))
    for _, output in pairs[4:]:
        output["instances"].scores *= 0
    evaluate(FEW)
    early = sum(len(output["instances"]) for _, output in pairs[:4])
    everything = sum(len(output["instances"]) for _, output in pairs)
    assert early < everything / 2
    assert len(encoded) <= early + 9 * len(NAMES)


def test_the_model_s_limit_is_noticed_although_detections_are_dropped(evaluate, pairs, caplog):
    evaluate(FEW, model_limit=len(pairs[0][1]["instances"]))
    assert "cut them off in 12 of 12 images" in caplog.text


def test_a_score_that_is_not_finite_is_still_refused(evaluate, pairs):
    pairs[11][1]["instances"].scores[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        evaluate(FEW)


def test_evaluating_twice_and_images_without_detections(evaluate, pairs, register):
    pairs[3] = (pairs[3][0], {"instances": pairs[3][1]["instances"][:0]})
    evaluator = OpenVocabularyLVISEvaluator("ov_streaming", ("bbox",), False, protocol=FEW)
    assert feed(evaluator, pairs)["bbox"] == pytest.approx(
        evaluator.evaluate()["bbox"], nan_ok=True
    )


@pytest.mark.parametrize("protocol", [FEDERATED, COCO, dataclasses.replace(FEW, per_image=5)])
def test_other_limits_are_applied_at_the_end(evaluate, protocol):
    found, expected = evaluate(protocol), evaluate(protocol, streams=False)
    assert found["bbox"] == pytest.approx(expected["bbox"], nan_ok=True, abs=0)
