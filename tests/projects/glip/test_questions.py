"""The phrases of a text, as an image is asked for them."""

import sys

import pytest

from ovd_d2.captions import Caption
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.questions import asked_in
from tests.projects.glip.small_words import small_tokenizer

TEXT = "a red cup on two umbrellas"


def test_phrases_in_their_sentence():
    asked = asked_in(Caption(TEXT, [(2, 9), (13, 26)]), small_tokenizer())
    assert asked.spans == ((2, 9), (13, 26))
    assert len(asked.inputs["tokens"]) == 9  # [CLS] a red cup on two umbrella ##s [SEP]
    assert [row.nonzero()[:, 0].tolist() for row in asked.inputs["positive_map"]] == [
        [2, 3],
        [5, 6, 7],
    ]
    assert asked.inputs["positive_map"].sum(dim=1).tolist() == pytest.approx([1, 1])


def test_phrases_are_found_where_none_are_given():
    pytest.importorskip("textblob", reason="the extra 'phrases' is not installed")
    assert list(asked_in(Caption(TEXT), small_tokenizer()).spans) == [(0, 9), (13, 26)]
    with pytest.raises(ValueError, match="no phrases to look for in 'it is him': give the spans"):
        asked_in(Caption("it is him"), small_tokenizer())


def test_what_finds_phrases_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    with pytest.raises(SetupError, match=r'pip install "ovd_d2\[phrases\]"'):
        asked_in(Caption(TEXT), small_tokenizer())
    assert asked_in(Caption(TEXT, [(6, 9)]), small_tokenizer()).spans == ((6, 9),)


@pytest.mark.parametrize(
    ("text", "spans", "message"),
    [
        (TEXT, [(2, 9), (20, 27)], r"\[20, 27\] does not fit a caption of 26 characters: 'a red"),
        (TEXT, [(-1, 3)], r"\[-1, 3\] does not fit"),
        (TEXT, [(4, 4)], r"\[4, 4\] does not fit"),
        (TEXT, [(1, 2)], r"\[1, 2\] covers nothing but blanks"),
        (TEXT, [(2, 5, 9)], "is no pair of characters' places"),
        (TEXT, ["red"], "'red' is no pair"),
        (TEXT, [], "no phrases to look for in 'a red"),
        ("", [(0, 1)], "does not fit a caption of 0 characters"),
        ("cup \x01 dog", [(0, 3), (4, 5)], r"\[4, 5\] has no token"),
        ("cup " * 255, [(0, 3)], "257 tokens, more than 256: shorten it"),
    ],
)
def test_what_cannot_be_asked(text, spans, message):
    with pytest.raises(ValueError, match=message):
        asked_in(Caption(text, spans), small_tokenizer())


def test_as_long_as_the_encoder_reads():
    asked = asked_in(Caption("cup " * 254, [(0, 3)]), small_tokenizer())
    assert len(asked.inputs["tokens"]) == 256
