import math

import pytest
import torch

from ovd_d2 import scoring
from ovd_d2.scoring import (
    image_probabilities,
    in_blocks,
    mix_objectness,
    objectness_probabilities,
    text_probabilities,
    vild_ensemble,
)


def test_text_probabilities_drop_the_background():
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]])
    torch.testing.assert_close(text_probabilities(logits), torch.tensor([[1 / 8, 2 / 8]]))


def test_image_probabilities_are_a_softmax_over_names():
    regions = torch.tensor([[1.0, 0.0]])
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    probs = image_probabilities(regions, names, temperature=0.5)
    expected = math.exp(2) / (math.exp(2) + 1)
    torch.testing.assert_close(probs, torch.tensor([[expected, 1 - expected]]))


def test_similarities_are_exact_under_autocast():
    regions, names = torch.nn.functional.normalize(torch.rand(2, 20, 64) - 0.5, dim=2)
    exact = image_probabilities(regions, names, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(image_probabilities(regions, names, temperature=0.01), exact)


def test_ensemble_by_hand():
    text = torch.tensor([[0.8, 0.1]])
    image = torch.tensor([[0.1, 0.8]])
    scores = vild_ensemble(text, image, torch.tensor([False, True]))
    base = 0.8 ** (2 / 3) * 0.1 ** (1 / 3)  # 0.4
    novel = 0.1 ** (1 / 3) * 0.8 ** (2 / 3)  # 0.4
    torch.testing.assert_close(scores, torch.tensor([[base, novel]]))
    assert scores[0, 0].item() == pytest.approx(0.4)


def test_ensemble_weight_one_is_text_for_base_and_image_for_novel():
    text = torch.tensor([[0.3, 0.2]])
    image = torch.tensor([[0.5, 0.7]])
    scores = vild_ensemble(text, image, torch.tensor([False, True]), base_weight=1.0)
    torch.testing.assert_close(scores, torch.tensor([[0.3, 0.7]]))


def test_one_weight_for_all_categories_where_both_are_equal():
    text, image = torch.tensor([[0.81, 0.81]]), torch.tensor([[0.16, 0.16]])
    flags = torch.tensor([False, True])
    scores = vild_ensemble(text, image, flags, base_weight=0.5, novel_weight=0.5)
    torch.testing.assert_close(scores, torch.tensor([[0.36, 0.36]]))
    scores = vild_ensemble(text, image, flags, base_weight=0.5, novel_weight=0.25)
    torch.testing.assert_close(scores[0, 1].item(), 0.81**0.25 * 0.16**0.75)


@pytest.mark.parametrize("base_weight", [0.0, 0.3, 2 / 3, 1.0])
def test_ensemble_is_a_product_of_powers_from_0_to_1(base_weight):
    generator = torch.Generator().manual_seed(0)
    text, image = 10 ** (-30 * torch.rand(2, 50, 40, generator=generator))
    text[:, ::7], image[::5], image[:, ::3] = 0, 0, 1
    novel = torch.arange(40) % 2 == 0
    weight = torch.where(novel, 1 - base_weight, base_weight).double()
    expected = text.double() ** weight * image.double() ** (1 - weight)
    scores = vild_ensemble(text, image, novel, base_weight)
    torch.testing.assert_close(scores, expected.float(), rtol=2e-5, atol=0)


def test_ensemble_of_no_regions_and_of_one_category():
    empty = vild_ensemble(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(3, dtype=torch.bool))
    assert empty.shape == (0, 3)
    one = vild_ensemble(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([True]))
    assert one.tolist() == [[0.0]]


def test_ensemble_weight_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="1.5"):
        vild_ensemble(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([True]), 1.5)
    with pytest.raises(ValueError, match="novel_weight must lie in .* got -0.1"):
        vild_ensemble(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([True]), 0.5, -0.1)


def test_objectness_as_probabilities():
    logits = torch.tensor([-3.0, 0.0, 3.0])
    probabilities = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(objectness_probabilities(logits, "logit"), logits.sigmoid())
    assert torch.equal(objectness_probabilities(probabilities, "probability"), probabilities)
    assert objectness_probabilities(logits[:0], "probability").shape == (0,)
    with pytest.raises(ValueError, match=r"2 of 3 objectness prob.*first -3.*OBJECTNESS to \"log"):
        objectness_probabilities(logits, "probability")
    with pytest.raises(ValueError, match="one of .*got 'logits'"):
        objectness_probabilities(logits, "logits")


def test_objectness_half_is_the_geometric_mean():
    mixed = mix_objectness(torch.tensor([[0.25, 1.0]]), torch.tensor([0.64]), 0.5)
    torch.testing.assert_close(mixed, torch.tensor([[0.4, 0.8]]))
    probs = torch.tensor([[0.25]])
    torch.testing.assert_close(mix_objectness(probs, torch.tensor([0.64]), 0.0), probs)


@pytest.mark.parametrize("regions", [0, 1, 7, 8, 9])
def test_blocks_are_put_together_in_order(regions, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 4 * 3)  # four regions of three names
    first, second = torch.rand(2, regions, 3, generator=torch.Generator().manual_seed(0))
    sizes = []

    def score(one, other):
        sizes.append(len(one))
        return one - other

    expected = first - second
    assert in_blocks(score, first, second, into=second) is second  # in place of what it reads
    assert torch.equal(second, expected)
    assert all(size <= 4 for size in sizes) and sum(sizes) == regions


def test_one_region_is_the_smallest_block(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 1)
    rows = torch.arange(6.0).view(2, 3)
    doubled = in_blocks(lambda one: 2 * one, rows, into=torch.empty(2, 3))
    assert torch.equal(doubled, 2 * rows)
