"""Where tokenizers come from."""

import json
import pickle

import pytest

from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.prompts.tokenizer import WordPieces
from tests.projects.glip.small_words import WORDS, small_tokenizer


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def test_all_places_give_the_same_tokens(vocabulary, tmp_path):
    expected = small_tokenizer().encode("A Red snowman, of course")
    assert expected.ids == tuple(
        WORDS.index(one)
        for one in ("[CLS]", "a", "red", "snow", "##man", ",", "of", "[UNK]", "[SEP]")
    )
    assert expected.offsets[3:5] == ((6, 10), (10, 13))
    saved = tmp_path / "saved" / "tokenizer.json"
    saved.parent.mkdir()
    saved.write_text(small_tokenizer().__getstate__(), encoding="utf-8")
    for where in (vocabulary, vocabulary.parent, saved, saved.parent):
        assert load_tokenizer(str(where)).encode("A Red snowman, of course") == expected


def test_workers_get_a_copy():
    copy = pickle.loads(pickle.dumps(small_tokenizer()))  # noqa: S301
    assert copy.encode("a snowman") == small_tokenizer().encode("a snowman")
    assert copy.count("a snowman") == 3


def test_case_where_the_folder_says_so(vocabulary):
    config = vocabulary.parent / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False}), encoding="utf-8")
    found = load_tokenizer(str(vocabulary)).encode("Cat")
    assert found.ids[1] == WORDS.index("[UNK]")


def test_padding_and_truncation_of_a_file_are_off(tmp_path):
    tokenizer = small_tokenizer()._tokenizer
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    assert len(load_tokenizer(str(path)).encode("a cat and a dog")) == 7


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.txt", "a\nb\n", "not among its 2 words"),
        ("vocab.txt", "\n".join([*WORDS, "cat"]), "1 of its .* words are there twice"),
        ("tokenizer.json", "{", "no tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizers(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SetupError, match=reason):
        load_tokenizer(str(path))


def test_a_tokenizer_without_marks_is_refused(tmp_path):
    tokenizer = small_tokenizer()._tokenizer
    bare = json.loads(tokenizer.to_str())
    bare["post_processor"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(bare), encoding="utf-8")
    with pytest.raises(SetupError, match="0 special tokens"):
        load_tokenizer(str(path))


def test_nothing_there(tmp_path):
    with pytest.raises(SetupError, match="no file at"):
        load_tokenizer(str(tmp_path / "vocab.txt"))
    with pytest.raises(SetupError, match="has neither tokenizer.json nor vocab.txt"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(SetupError, match="is no file, no folder, and cannot be had"):
        load_tokenizer("no-such/tokenizer")


def test_a_vocabulary_is_no_place_for_two_words():
    with pytest.raises(ValueError, match="twice"):
        WordPieces.from_vocabulary([*WORDS, "cat"])
