"""Suppression within categories equals a brute force in float64, for any number of them."""

import pytest
import torch

from ovd_d2.modeling import nms
from ovd_d2.modeling.nms import suppress


def brute_force(boxes, categories, threshold):
    """One box after the other, best first, against all that were kept of its category."""
    boxes = boxes.double()
    low, high = boxes[:, :2], boxes[:, 2:]
    sides = torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)
    shared = sides.clamp(min=0).prod(dim=2)
    areas = (high - low).prod(dim=1)
    overlap = shared / (areas[:, None] + areas - shared) > threshold
    overlap &= categories[:, None] == categories
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    for place in range(len(boxes)):
        kept[place] = not (overlap[place] & kept).any()
    return kept.nonzero().flatten().tolist()


def make(count, names, *, side=12.0, height=800, width=1333, seed=0):
    """Small objects all over a large image, each found several times; scores fall."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float32) - side
    corners = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat([corners, corners + side], dim=1)
    categories = torch.randint(0, names, (count,), generator=generator)
    originals = torch.randint(0, max(1, count // 3), (count,), generator=generator)
    shift = torch.rand(count, 4, generator=generator) * side * 0.6
    return (boxes[originals] + shift)[:count], categories[originals]


@pytest.mark.parametrize("names", [1, 5, 80, 1203, 20_000])
@pytest.mark.parametrize("count", [1, 200, 900, 1500])
def test_equals_brute_force(names, count):
    """In float32, moved by category * 1,334, 12 pixels do not overlap as they do at the origin."""
    boxes, categories = make(count, names, seed=names + count)
    expected = brute_force(boxes, categories, 0.5)
    found = suppress(boxes, torch.linspace(1, 0.5, count), categories, 0.5)
    assert found.tolist() == expected
    assert count == 1 or len(expected) < count


@pytest.mark.parametrize(("height", "width"), [(32, 9000), (160, 160), (6000, 8000)])
def test_any_size_of_image(height, width):
    boxes, categories = make(600, 20_000, height=height, width=width)
    found = suppress(boxes, torch.linspace(1, 0, 600), categories, 0.5)
    assert found.tolist() == brute_force(boxes, categories, 0.5)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6])
@pytest.mark.parametrize("names", [1, 20, 60, 1200])
@pytest.mark.parametrize("one_call", [0, 10_000])
def test_both_ways_are_equal(names, threshold, one_call, monkeypatch):
    """Few boxes of many categories, many of few; an IoU may equal the threshold; no area."""
    monkeypatch.setattr(nms, "ONE_CALL", {"cpu": one_call})
    generator = torch.Generator().manual_seed(names)
    corners = torch.rand(700, 2, generator=generator) * 30
    sizes = torch.randint(0, 40, (700, 2), generator=generator)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    boxes[::3] = boxes[::3].round()
    categories = torch.randint(0, names, (700,), generator=generator)
    found = suppress(boxes, torch.linspace(1, 0, 700), categories, threshold)
    assert found.tolist() == brute_force(boxes, categories, threshold)


def test_boxes_left_of_the_image_stay_in_their_category():
    boxes = torch.tensor([[-50.0, 0, -10, 40], [-50.0, 0, -10, 40], [-50.0, 0, -10, 41]])
    found = suppress(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]), 0.5)
    assert found.tolist() == [0, 1]


def test_equal_scores_keep_their_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [0.0, 0, 10, 10]])
    assert suppress(boxes, torch.ones(3), torch.zeros(3, dtype=torch.int64), 0.5).tolist() == [0]


def test_half_precision_and_nothing():
    boxes, categories = make(40, 3)
    found = suppress(boxes.half(), torch.linspace(1, 0, 40).half(), categories, 0.5)
    assert found.tolist() == brute_force(boxes.half(), categories, 0.5)
    nothing = suppress(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), 0.5)
    assert nothing.shape == (0,) and nothing.dtype == torch.int64
