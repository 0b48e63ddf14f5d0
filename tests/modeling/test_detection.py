"""Selection of detections equals Detectron2's, however few candidates a round looks at."""

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch.nn import functional as F

from ovd_d2.modeling import detection
from ovd_d2.modeling.detection import select_detections

SIZE = (80, 100)


def make(regions, names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(regions, 2, generator=generator) * 70 - 5  # some leave the image
    boxes = torch.cat([corners, corners + 15], dim=1)
    # No two scores are equal: their order would be arbitrary.
    ranks = torch.randperm(regions * names, generator=generator).view(regions, names)
    return boxes, (ranks + 1) / (regions * names + 1)


def ours(boxes, scores, threshold=0.1, nms=0.5, limit=100):
    return select_detections(
        [boxes], [scores], [SIZE], score_threshold=threshold, nms_threshold=nms, limit=limit
    )[0]


def theirs(boxes, scores, threshold=0.1, nms=0.5, limit=100):
    found, _ = fast_rcnn_inference([boxes], [F.pad(scores, (0, 1))], [SIZE], threshold, nms, limit)
    return found[0]


def assert_equal(first, second):
    assert first.image_size == second.image_size
    assert torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.pred_classes, second.pred_classes)


@pytest.mark.parametrize("limit", [0, 1, 100, 1_000_000, -1])
@pytest.mark.parametrize("names", [1, 7, 300])
def test_detections_are_detectron2s(names, limit):
    boxes, scores = make(60, names)
    assert_equal(ours(boxes, scores, limit=limit), theirs(boxes, scores, limit=limit))


@pytest.mark.parametrize("limit", [100, -1])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_size_of_groups_makes_no_difference(size, limit, monkeypatch):
    monkeypatch.setattr(detection, "LARGEST_GROUP", size)
    monkeypatch.setattr(detection, "FIRST_CANDIDATES", 1)
    boxes, scores = make(60, 300)
    scores[7, 3] = float("nan")
    assert_equal(ours(boxes, scores, limit=limit), theirs(boxes, scores, limit=limit))


@pytest.mark.parametrize("limit", [5, 2000, -1])
def test_equal_scores_stay_in_their_order(limit):
    boxes, scores = make(60, 300)
    scores = (scores * 20).round() / 20  # 900 of each
    found = ours(boxes, scores, limit=limit, nms=1.0)  # nothing is suppressed
    best, places = scores.flatten().sort(descending=True, stable=True)
    expected = places[best > 0.1][: None if limit < 0 else limit]
    assert torch.equal(found.pred_classes, expected % 300)
    assert torch.equal(found.scores, scores.flatten()[expected])


def test_scores_that_add_up_to_infinity_are_finite():
    boxes, scores = make(60, 30)
    scores *= torch.finfo(torch.float32).max
    assert_equal(ours(boxes, scores), theirs(boxes, scores))


@pytest.mark.parametrize("first", [1, 10, 200])
def test_more_candidates_are_taken_while_too_few_are_left(first, monkeypatch):
    monkeypatch.setattr(detection, "FIRST_CANDIDATES", first)
    boxes, scores = make(200, 3)  # in one small image: most are suppressed
    expected = theirs(boxes, scores, nms=0.1, limit=20)
    assert_equal(ours(boxes, scores, nms=0.1, limit=20), expected)


def test_the_first_round_is_small_where_it_is_enough(monkeypatch):
    seen = []
    real = detection._suppress
    monkeypatch.setattr(
        detection, "_suppress", lambda b, *rest: seen.append(len(b)) or real(b, *rest)
    )
    boxes, scores = make(50, 2000)
    assert len(ours(boxes, scores, threshold=0.0)) == 100
    assert seen == [detection.FIRST_CANDIDATES]  # of 100,000 pairs


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6])
@pytest.mark.parametrize("names", [1, 20, 60, 1200])
def test_suppression_within_categories_is_torchvisions(names, threshold):
    """Few boxes of many categories, many of few (above and below what is compared at once)."""
    generator = torch.Generator().manual_seed(names)
    corners = torch.rand(2500, 2, generator=generator) * 60
    sizes = torch.randint(0, 40, (2500, 2), generator=generator)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    boxes[::3] = boxes[::3].round()  # an IoU may equal the threshold
    scores = torch.linspace(1, 0, 2500)
    categories = torch.randint(0, names, (2500,), generator=generator)
    expected = batched_nms(boxes, scores, categories, threshold)
    assert 0 < len(expected) < 2500
    assert torch.equal(detection._suppress(boxes, scores, categories, threshold), expected)


@pytest.mark.parametrize(("regions", "names"), [(0, 5), (4, 0), (0, 0)])
def test_nothing_in_nothing_out(regions, names):
    boxes, scores = make(regions, names)
    found = ours(boxes, scores)
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_classes.dtype == torch.int64


def test_nothing_above_the_threshold():
    boxes, scores = make(5, 3)
    assert len(ours(boxes, scores, threshold=1.0)) == 0


def test_regions_that_are_not_finite_are_left_out_and_inputs_stay():
    boxes, scores = make(6, 4)
    boxes[1, 2], scores[3, 0] = float("nan"), float("inf")
    before = boxes.clone(), scores.clone()
    assert_equal(ours(boxes, scores), theirs(boxes, scores))
    assert torch.equal(boxes.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(scores, before[1])


def test_several_images_keep_apart():
    first, second = make(10, 3, seed=1), make(20, 3, seed=2)
    both = select_detections(
        *zip(first, second, strict=True),
        [SIZE, SIZE],
        score_threshold=0.1,
        nms_threshold=0.5,
        limit=5,
    )
    assert_equal(both[0], ours(*first, limit=5))
    assert_equal(both[1], ours(*second, limit=5))
