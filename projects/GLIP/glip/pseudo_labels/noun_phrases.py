"""The noun phrases of an English caption, by TextBlob's parser.

It comes with its lexicon and downloads nothing. `pip install "ovd_d2[phrases]"` brings it.
"""

from __future__ import annotations

from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.prompts.spans import Span

_NOUN = "NN"  # beginning of the tags of nouns: a phrase of pronouns alone is none
_SLASH = "&slash;"  # how the parser writes it
_BEGIN, _INSIDE = "B-NP", "I-NP"


def noun_phrases(caption: str) -> tuple[tuple[Span, ...], ...]:
    """The spans of "two red anchors" and "a sofa" in "two red anchors lie on a sofa".

    Every occurrence is a phrase of its own, as in the public demo. Articles belong to it.

    Raises:
        SetupError: TextBlob is not installed.
    """
    try:
        from textblob.en import parse
    except ImportError as error:
        raise SetupError(
            ['noun phrases of captions need TextBlob: pip install "ovd_d2[phrases]"']
        ) from error
    found: list[tuple[Span, bool]] = []  # span, and whether it has a noun
    position, inside = 0, False
    for sentence in parse(caption, tags=True, chunks=True).split():
        for written, tag, chunk, *_ in sentence:
            word = written.replace(_SLASH, "/")
            start = caption.find(word, position)
            if start < 0:  # the parser spells it in another way
                inside = False
                continue
            position = start + len(word)
            inside = _join(found, (start, position), tag.startswith(_NOUN), chunk, inside)
        inside = False
    return tuple(((one),) for one, is_named in found if is_named and one[1] - one[0] > 1)


def _join(
    found: list[tuple[Span, bool]], word: Span, is_noun: bool, chunk: str, inside: bool
) -> bool:
    """Puts a word into the phrase that it goes on, or begins one; whether it is in one."""
    if chunk == _INSIDE and inside:
        (start, _), named = found[-1]
        found[-1] = (start, word[1]), named or is_noun
    elif chunk in (_BEGIN, _INSIDE):
        found.append((word, is_noun))
    return chunk in (_BEGIN, _INSIDE)
