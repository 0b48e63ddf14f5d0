"""English captions to noun phrases with their characters."""

import sys

import pytest

from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.pseudo_labels.captions import FINDERS, images_of_folder
from ovd_d2.projects.glip.pseudo_labels.noun_phrases import noun_phrases


def texts(caption):
    return [caption[first:end] for ((first, end),) in noun_phrases(caption)]


@pytest.fixture
def needs_textblob():
    pytest.importorskip("textblob", reason="the extra 'phrases' is not installed")


@pytest.mark.usefixtures("needs_textblob")
@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        (
            "Two red anchors and a blue umbrella are standing next to a small snowman.",
            ["Two red anchors", "a blue umbrella", "a small snowman"],
        ),
        (
            "A man in a black jacket is riding his mountain bike. Three dogs run behind him.",
            ["A man", "a black jacket", "his mountain bike", "Three dogs"],
        ),
        ("a dog beside a dog", ["a dog", "a dog"]),  # each occurrence
        ("Café tables on a sidewalk; people", ["Café tables", "a sidewalk", "people"]),
        ("salt/pepper  on  the   table", ["salt/pepper", "the   table"]),
        ("there are some holes on the road", ["some holes", "the road"]),
        ("it is him", []),
        ("", []),
    ],
)
def test_phrases(caption, phrases):
    assert texts(caption) == phrases


def test_the_extra_is_named_where_it_is_missing(monkeypatch, tmp_path):
    for name in ("textblob", "textblob.en"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SetupError, match=r'need TextBlob: pip install "ovd_d2\[phrases\]"'):
        noun_phrases("a dog")
    captions = tmp_path / "captions.tsv"
    captions.write_text("")
    assert images_of_folder(tmp_path, captions, FINDERS["english"]) == []
