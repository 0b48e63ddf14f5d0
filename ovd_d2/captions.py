"""A text whose phrases are looked for, for detectors that read whole sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Span: TypeAlias = tuple[int, int]  # first character and one past the last


@dataclass(frozen=True)
class Caption:
    """A text, and which words of it are looked for.

    >>> Caption("a red anchor left of two suns", [(2, 12), (25, 29)])

    Attributes:
        text: the text.
        spans: the characters of each phrase; None: the noun phrases that the detector finds in the
            text. The detector checks them.
    """

    text: str
    spans: Sequence[Span] | None = None

    def __post_init__(self) -> None:
        if self.spans is not None:  # lists of lists as well: it has to be hashable
            spans = tuple(tuple(one) if isinstance(one, list) else one for one in self.spans)
            object.__setattr__(self, "spans", spans)


class Asked(NamedTuple):
    """A caption as a detector takes it.

    Attributes:
        spans: the characters of each of its C phrases, what labels from 0 to C - 1 stand for.
        inputs: what every input of the detector gets beside its image.
    """

    spans: Sequence[Span]
    inputs: dict[str, Any]


def phrase_names(text: str, spans: Sequence[Span]) -> list[str]:
    """The words of each phrase; the second of equal ones is "red anchor (2)"."""
    return list(_numbered(" ".join(text[first:end].split()) for first, end in spans))


def _numbered(phrases: Iterator[str]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for one in phrases:
        seen[one] += 1
        yield one if seen[one] == 1 else f"{one} ({seen[one]})"
