"""The last word of a phrase, in English mostly what it is about: "two red *anchors*"."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable


def words_of(text: str) -> list[str]:
    """In lower case."""
    return re.findall(r"\w+", text.lower())


def last_words(phrases: Iterable[str]) -> list[str]:
    """Of each phrase that has a word."""
    return [words[-1] for words in map(words_of, phrases) if words]


def with_singulars(words: Iterable[str]) -> frozenset[str]:
    """The words, and what they may be the plural of: two that share a form name the same thing."""
    return frozenset(
        form for word in words for form in (word, word.removesuffix("s"), word.removesuffix("es"))
    )


def singular(word: str, known: Collection[str]) -> str:
    """What the word is the plural of, where that is among the known ones; else the word."""
    forms = (word.removesuffix("s"), word.removesuffix("es"))
    return next((one for one in forms if one in known), word)
