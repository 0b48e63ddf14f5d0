"""A caption as a value, and the names of its phrases."""

from ovd_d2.captions import Caption, phrase_names


def test_equal_captions_are_one_key():
    lists, tuples = Caption("a cup", [[2, 5]]), Caption("a cup", ((2, 5),))
    assert lists == tuples and hash(lists) == hash(tuples)
    assert Caption("a cup").spans is None and Caption("a cup") != lists


def test_equal_phrases_have_names_of_their_own():
    text = "red dog, cup, red   dog"
    names = phrase_names(text, [(0, 7), (9, 12), (14, 23)])
    assert names == ["red dog", "cup", "red dog (2)"]
