"""One caption a scene, with the character spans of its phrases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_NUMBERS = ("", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLURAL_ONLY = frozenset({"crossed swords", "scissors", "scales", "hot springs", "beamed notes"})
_INVARIANT = frozenset({"skull and crossbones", "aries", "pisces"}) | _PLURAL_ONLY
_IRREGULAR = {"die": "dice", "fleur-de-lis": "fleurs-de-lis"}
_NOTHING = "nothing but clutter"


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a caption, without its article or number.

    Attributes:
        span: first character and one past the last, in the caption.
        category: 0-based category index.
        objects: positions, in the list given to `caption_of`, of the objects it stands for.
    """

    span: tuple[int, int]
    category: int
    objects: tuple[int, ...]


def plural(name: str) -> str:
    """The plural of a glyph's name: "wheel of dharma" -> "wheels of dharma"."""
    if name in _INVARIANT:
        return name
    for link in (" of ", " with "):
        head, found, tail = name.partition(link)
        if found:
            return plural(head) + link + tail
    first, _, noun = name.rpartition(" ")
    if noun in _IRREGULAR:
        noun = _IRREGULAR[noun]
    elif noun.endswith(("s", "x", "ch", "sh")):
        noun += "es"
    elif noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return f"{first} {noun}".lstrip()


def caption_of(
    objects: Sequence[tuple[int, str, str]], crowds: Collection[int] = ()
) -> tuple[str, list[Phrase]]:
    """Describe objects in the given order, those of one category and colour together.

    Args:
        objects: (category index, colour name, glyph name) of each.
        crowds: positions of those that are crowds.

    Returns:
        For instance "a red anchor and two blue umbrellas" and its phrases; of a crowd "many red
        anchors".
    """
    groups: dict[tuple[int, str, str, bool], list[int]] = {}
    for position, key in enumerate(objects):
        groups.setdefault((*key, position in crowds), []).append(position)
    caption, phrases = "", []
    for rank, ((category, colour, glyph, is_crowd), members) in enumerate(groups.items()):
        caption += _separator(rank, len(groups))
        start, noun_phrase = _phrase(colour, glyph, None if is_crowd else len(members))
        caption += start
        span = (len(caption), len(caption) + len(noun_phrase))
        caption += noun_phrase
        phrases.append(Phrase(span, category, tuple(members)))
    return caption or _NOTHING, phrases


def _separator(rank: int, count: int) -> str:
    if rank == 0:
        return ""
    return " and " if rank == count - 1 else ", "


def _phrase(colour: str, glyph: str, count: int | None) -> tuple[str, str]:
    """What stands before the noun phrase ("a ", "two " or nothing), and the noun phrase; without a
    count they are many."""
    if count is None:
        return "many ", f"{colour} {plural(glyph)}"
    noun_phrase = f"{colour} {glyph if count == 1 else plural(glyph)}"
    if count > 1:
        return f"{_NUMBERS[count]} ", noun_phrase
    if glyph in _PLURAL_ONLY:
        return "", noun_phrase
    return ("an " if colour[0] in "aeiou" else "a "), noun_phrase
