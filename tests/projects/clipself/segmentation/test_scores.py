"""Cosine maps of whole images and of windows."""

import pytest
import torch
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT
from ovd_d2.projects.clipself.segmentation.scores import (
    cosine_map,
    sliding_scores,
    whole_scores,
    window_starts,
)
from tests.tiny_vits import DIM, FAMILIES, PATCH, random_images, tiny_clip


def embeddings(count=3):
    return F.normalize(random_images(count, DIM, seed=5), dim=1)


def scores_of(family):
    return DenseViT(tiny_clip(family).visual).requires_grad_(False)


def test_the_map_holds_cosines():
    dense = F.normalize(random_images(2, DIM, 3, 4), dim=1)
    found = cosine_map(dense, embeddings())
    assert found.shape == (2, 3, 3, 4)
    by_hand = (dense[1, :, 2, 3] * embeddings()[2]).sum()
    assert found[1, 2, 2, 3] == pytest.approx(by_hand.item(), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (37, 51)])
def test_a_window_that_covers_the_image_is_the_whole(family, size):
    images, dense = random_images(1, 3, *size), scores_of(family)
    whole = whole_scores(images, dense, embeddings(), patch_size=PATCH)
    assert whole.shape == (1, 3, *size)
    for window, stride in ((max(size), max(size)), (100, 10)):
        sliding = sliding_scores(
            images, dense, embeddings(), patch_size=PATCH, window=window, stride=stride
        )
        assert torch.equal(sliding, whole)


def test_windows_are_averaged_where_they_overlap():
    images, names = random_images(1, 3, 16, 24), embeddings()

    def dense(part):  # says where the window begins, by its first pixel
        value = part[:, 0, 0, 0].reshape(1, 1, 1, 1)
        return value * torch.ones(1, DIM, part.shape[2] // PATCH, part.shape[3] // PATCH)

    found = sliding_scores(images, dense, names, patch_size=PATCH, window=16, stride=8)
    total = names.sum(dim=1)  # (C,)
    first, second = (images[0, 0, 0, x] * total for x in (0, 8))
    assert torch.allclose(found[0, :, 5, 2], first, atol=1e-6)
    assert torch.allclose(found[0, :, 5, 20], second, atol=1e-6)
    assert torch.allclose(found[0, :, 5, 12], (first + second) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (100, 100, 50, [0]),
        (60, 100, 50, [0]),
        (150, 100, 50, [0, 50]),
        (160, 100, 50, [0, 50, 60]),
        (101, 100, 100, [0, 1]),
    ],
)
def test_windows_cover_the_image_and_end_at_its_border(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize("stride", [0, 101, -1])
def test_strides_with_gaps_are_refused(stride):
    with pytest.raises(ValueError, match="expected 1 to 100"):
        sliding_scores(
            torch.zeros(1, 3, 8, 8),
            lambda x: x,
            embeddings(),
            patch_size=PATCH,
            window=100,
            stride=stride,
        )


def test_the_best_of_synonyms_counts():
    dense = F.normalize(random_images(1, DIM, 3, 4), dim=1)
    owners = torch.tensor([0, 1, 0])  # the third word means the first category, too
    of_words = cosine_map(dense, embeddings())
    found = cosine_map(dense, embeddings(), owners)
    assert torch.equal(found, torch.stack([of_words[:, ::2].amax(dim=1), of_words[:, 1]], dim=1))
    assert (of_words[:, 2] > of_words[:, 0]).any() and (of_words[:, 2] < of_words[:, 0]).any()


def test_windows_know_synonyms():
    images, owners = random_images(1, 3, 16, 24), torch.tensor([0, 1, 0])
    dense = scores_of(FAMILIES[0])
    found = sliding_scores(
        images, dense, embeddings(), owners, patch_size=PATCH, window=30, stride=8
    )
    assert found.shape == (1, 2, 16, 24)
    assert torch.equal(found, whole_scores(images, dense, embeddings(), owners, patch_size=PATCH))
