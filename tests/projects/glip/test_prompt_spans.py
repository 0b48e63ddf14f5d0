"""Characters to tokens, and scores of tokens to those of phrases."""

import pytest
import torch

from ovd_d2.projects.glip.prompts import (
    Prompt,
    padded_columns,
    phrase_scores,
    positive_map,
    token_batch,
    token_targets,
    truncated,
)
from ovd_d2.projects.glip.prompts.spans import span_problem, tokens_of
from tests.projects.glip.small_words import small_tokenizer

CAPTION = "two snowmen, a red cup - and the Café of a cat"


def tokens(caption, *phrases):
    """Token numbers of the first place of each phrase, together."""
    spans = [(caption.index(one), caption.index(one) + len(one)) for one in phrases]
    return tokens_of(spans, small_tokenizer().encode(caption).offsets)


@pytest.mark.parametrize(
    ("caption", "phrases", "expected"),
    [
        ("a red cup on a sofa", ["red cup"], [2, 3]),
        ("a snowman", ["snowman"], [2, 3]),  # sub-words
        ("a snowman", ["man"], [3]),  # the second half of a word
        ("a snowman", ["ow"], [2]),  # characters inside of a token
        ("a cat. a dog", ["cat. a"], [2, 3, 4]),  # with the stop between
        ("a cat, a dog", ["cat", "dog"], [2, 5]),
        ("the Café, a cup", ["Café"], [2]),  # an accent is dropped, characters are still counted
        ("cafe\u0301 cup", ["cup"], [2]),  # a combining accent is a character of its own
        ("\U0001f408 cat", ["cat"], [2]),  # beyond 16 bits
        ("a  cat ", [" cat "], [2]),  # blanks at both ends
    ],
)
def test_tokens_of_spans(caption, phrases, expected):
    assert tokens(caption, *phrases) == expected


def test_the_second_of_two_equal_words():
    offsets = small_tokenizer().encode("a cat and a cat").offsets
    assert tokens_of([(12, 15)], offsets) == [5]


def test_up_to_two_blanks_are_passed_over_and_no_more():
    offsets = small_tokenizer().encode("a    cat").offsets
    assert tokens_of([(3, 8)], offsets) == [2]
    assert tokens_of([(2, 8)], offsets) == []  # as the public code: it looks no further


def test_what_was_cut_off_is_left_out():
    whole = small_tokenizer().encode("a cat and a dog")
    cut = truncated(whole, 4)
    assert len(cut) == 4 and cut.ids[-1] == whole.ids[-1]
    assert tokens_of([(2, 5)], cut.offsets) == [2]
    assert tokens_of([(12, 15)], cut.offsets) == []
    assert truncated(whole, 7) is whole


def test_characters_are_looked_up_once_for_all_spans_of_a_caption():
    class Counted(list):
        looks = 0

        def __iter__(self):
            self.looks += 1
            return super().__iter__()

    offsets = Counted(small_tokenizer().encode("a cat and a dog").offsets)
    assert token_targets([[(2, 5)], [(12, 15)]], offsets).nonzero().tolist() == [[0, 2], [1, 5]]
    assert offsets.looks == 1


def test_rows_of_a_positive_map_sum_to_one():
    encoding = small_tokenizer().encode("snowman. cat. light")
    spans = [[(0, 7)], [(9, 12), (14, 19)], []]
    found = positive_map(spans, encoding.offsets, 12)
    assert found.dtype == torch.float32 and found.shape == (3, 12)
    assert found[0].tolist()[:3] == [0, 0.5, 0.5]
    assert found.sum(dim=1).tolist() == [1, 1, 0]
    targets = token_targets(spans, encoding.offsets)
    assert targets.dtype == torch.bool and targets.shape == (3, len(encoding))
    assert torch.equal(padded_columns(targets, 12), found > 0)


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((0, 47), "does not fit"),
        ((-1, 4), "does not fit"),
        ((4, 4), "does not fit"),
        ((3, 4), "blanks"),
        ((0, 1.5), "no pair"),
        ([0, 1, 2], "no pair"),
        ((True, 4), "no pair"),
        ("ab", "no pair"),
    ],
)
def test_spans_that_are_none_of_the_caption(span, reason):
    assert reason in span_problem(CAPTION, span)
    assert span_problem(CAPTION, (4, 11)) is None


def test_a_prompt_has_spans_for_each_label():
    with pytest.raises(ValueError, match="1 spans for 2 labels"):
        Prompt("cat", (((0, 3),),), (0, 1))


SCORES = torch.tensor([[0.1, 0.8, 0.2, 0.5, 0.9]])
MAP = torch.tensor([[0, 0.5, 0.5, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("mean", [0.5, 0.5, 0]),
        ("max", [0.8, 0.5, 0]),
        ("power", [0.4, 0.5, 0]),  # the root of 0.8 * 0.2
        ("one_hot", [0.1, 0.8, 0.2]),
    ],
)
def test_scores_of_phrases(how, expected):
    found = phrase_scores(SCORES, MAP, how)
    assert torch.allclose(found, torch.tensor([expected]))
    assert torch.equal(phrase_scores(SCORES[None].expand(2, 4, 5), MAP, how)[1, 3], found[0])


def test_an_unknown_way_to_make_scores():
    with pytest.raises(ValueError, match="'median' is no way"):
        phrase_scores(SCORES, MAP, "median")


def test_a_batch_of_tokens():
    batch = token_batch([[2, 8, 3], torch.tensor([2, 3])])
    assert batch.ids.tolist() == [[2, 8, 3], [2, 3, 0]] and batch.ids.dtype == torch.int64
    assert batch.mask.tolist() == [[True] * 3, [True, True, False]]
    assert token_batch([[2, 3]], length=5, pad_id=7).ids.tolist() == [[2, 3, 7, 7, 7]]
    assert len(token_batch([])) == 0
    with pytest.raises(ValueError, match="3 tokens, more than 2"):
        token_batch([[1, 2, 3]], length=2)
