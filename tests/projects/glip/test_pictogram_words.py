"""The small BERT of Pictograms: what its phrases mean."""

import random

import pytest
import torch

from ovd_d2.clip.loading import load_teacher
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.projects.glip import pictogram_words
from ovd_d2.projects.glip.pictogram_words import SIZES, Meanings, read, train_words, words_known
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.text import TextEncoder

TOKENIZER = load_tokenizer("pictograms")


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(ARCHITECTURE, SHIPPED_TAG, "cpu")


@pytest.fixture(scope="module")
def meanings(teacher):
    return Meanings(teacher)


def test_the_shipped_one_knows_the_names(teacher):
    assert (
        words_known(TextEncoder(SIZES, pretrained="pictograms").eval(), TOKENIZER, teacher) > 0.97
    )


def test_training_brings_phrases_nearer_to_their_meanings(teacher, meanings, monkeypatch):
    monkeypatch.setattr(pictogram_words, "Meanings", lambda _: meanings)
    known = [
        words_known(train_words(teacher, TOKENIZER, steps=n), TOKENIZER, teacher) for n in (1, 60)
    ]
    assert known[0] < 0.1 < known[1]


def test_captions_and_their_meanings(meanings):
    draw = random.Random(0)
    for _ in range(20):
        caption, spans, rows = meanings.caption(draw)
        assert rows.shape == (len(spans), 64)
        words = [caption[start:end] for ((start, end),) in spans]
        assert all(words) and len(TOKENIZER.encode(caption)) <= SIZES.positions
    torch.testing.assert_close(meanings.rows.norm(dim=1), torch.ones(len(meanings.phrases)))


def test_a_phrase_is_the_mean_of_its_tokens():
    encoder = TextEncoder(SIZES, dropout=0.0).eval()
    captions = [("red anchor . sun", [((0, 10),), ((13, 16),)]), ("sun", [((0, 3),)])]
    rows = read(encoder, TOKENIZER, captions)
    ids = torch.tensor([TOKENIZER.encode("red anchor . sun").ids])
    tokens = encoder(ids, ids > -1)[0]  # [CLS] red anchor . sun [SEP]
    torch.testing.assert_close(rows[0], tokens[1:3].mean(dim=0))
    torch.testing.assert_close(rows[1], tokens[4])
    assert rows.shape == (3, SIZES.width)
