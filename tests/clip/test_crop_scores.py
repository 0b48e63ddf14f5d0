"""What the teacher says of named boxes; it embeds a crop as its mean colour."""

from __future__ import annotations

import math

import pytest
import torch

from ovd_d2.clip.crop_scores import crop_scores
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.vocabulary import Vocabulary
from tests.clip import test_crops
from tests.clip.test_crops import framed_image

RED = torch.tensor([[34.0, 24, 46, 36]])  # at 1.5x still inside the red square
COLOURS = ["red", "green", "blue"]


def teacher(temperature: float) -> CLIPTeacher:
    found = test_crops.teacher()
    found.temperature = temperature
    return found


def test_names_share_the_probability_of_a_crop() -> None:
    vocabulary = Vocabulary(COLOURS, torch.eye(3))
    found = crop_scores(
        *(framed_image(), RED.repeat(2, 1), torch.tensor([0, 2]), vocabulary, teacher(0.5))
    )
    own, other = math.exp(1 / 0.5), math.exp(0)
    assert found.tolist() == pytest.approx([own / (own + 2 * other), other / (own + 2 * other)])


def test_the_best_word_of_a_name_counts() -> None:
    vocabulary = Vocabulary(
        ["grass", "sky"],
        torch.eye(3)[1:],
        synonyms=[["sunset"], []],
        synonym_embeddings=torch.eye(3)[:1],
    )
    found = crop_scores(framed_image(), RED, torch.tensor([0]), vocabulary, teacher(1.0))
    assert found.item() == pytest.approx(math.e / (math.e + 1))


def test_no_box_needs_no_teacher() -> None:
    vocabulary = Vocabulary(COLOURS, torch.eye(3))
    looking = teacher(1.0)
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert crop_scores(framed_image(), *nothing, vocabulary, looking).shape == (0,)
    assert looking.seen == []  # type: ignore[attr-defined]
