"""Accuracy by hand."""

import pytest
import torch

from ovd_d2.projects.clipself.region_classification.metrics import best_classes, macro_accuracy


def test_every_category_weighs_the_same():
    # category 4: 1 of 3; category 7: 1 of 1; 9: 0 of 2
    found = macro_accuracy([True, False, False, True, False, False], [4, 4, 4, 7, 9, 9])
    assert found.exact == pytest.approx((1 / 3 + 1 + 0) / 3, abs=1e-12)
    assert (found.regions, found.categories) == (6, 3)
    assert found.per_category == pytest.approx({4: 1 / 3, 7: 1.0, 9: 0.0})


def test_float16_rounds_each_category_before_the_mean():
    found = macro_accuracy([True, False, False], [0, 0, 0])
    assert found.rounded == float(torch.tensor(1 / 3).half())
    assert found.rounded != found.exact
    two = macro_accuracy([True, False, False, True, True, False, True], [0, 0, 0, 1, 1, 1, 2])
    parts = [float(torch.tensor(one).half()) for one in (1 / 3, 2 / 3, 1.0)]
    assert two.rounded == pytest.approx(sum(parts) / 3, abs=1e-12)


def test_without_regions_there_is_no_accuracy():
    assert macro_accuracy([], []) is None


def test_the_nearest_categories_first_whatever_the_lengths():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 9.0], [1.0, 1.0]])
    best = best_classes(torch.tensor([[0.1, 0.3], [5.0, 0.0]]), embeddings, 3)
    assert best.tolist() == [[1, 2, 0], [0, 2, 1]]


def test_the_best_of_synonyms_counts():
    owners = torch.tensor([0, 1, 1])
    features = torch.tensor([[0.6, 0.0, 0.8], [0.8, 0.6, 0.0]])
    assert best_classes(features, torch.eye(3), 5, owners).tolist() == [[1, 0], [0, 1]]


def test_fewer_categories_than_asked_for():
    assert best_classes(torch.ones(2, 4), torch.ones(1, 4), 5).tolist() == [[0], [0]]


def test_a_region_without_features_is_like_no_category():
    best = best_classes(torch.zeros(1, 4), torch.eye(4), 5)
    assert best.tolist() == [[-1] * 4]
    assert best_classes(torch.zeros(0, 4), torch.eye(4), 5).shape == (0, 4)
