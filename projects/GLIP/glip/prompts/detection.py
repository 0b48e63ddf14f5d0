"""Names of categories as a caption: "cat. traffic light. cup"."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ovd_d2.projects.glip.prompts.spans import Prompt, Span
from ovd_d2.projects.glip.prompts.tokenizer import MAX_TOKENS, SPECIAL, Tokenizer

SEPARATOR = ". "
LIMIT = MAX_TOKENS - SPECIAL  # tokens of names, each with its separator
NEGATIVES = 85  # names that are asked for in vain, at most
_ALL_NEGATIVES = 0.5  # share of the prompts that have as many as that
BACKGROUND = "__background__"  # a name that the public code asks for


@dataclass(frozen=True)
class Phrase:
    """A name with words that help to find it; the prompt asks for the name alone.

    Attributes:
        name: of the category.
        prefix, suffix: what stands before and behind it, blanks included: "round ".
    """

    name: str
    prefix: str = ""
    suffix: str = ""


def clean_name(name: str) -> str:
    """As the public code's: without what is in brackets, "_" as a blank; "cup_(x)" -> "cup "."""
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def names_prompt(names: Sequence[str | Phrase], labels: Sequence[int] | None = None) -> Prompt:
    """A caption of all the names in their order, with the span of each.

    Args:
        names: cleaned here; one that is a :class:`Phrase` stays as it is.
        labels: what they stand for; None: their places.
    """
    caption = ""
    spans: list[tuple[Span, ...]] = []
    for one in names:
        phrase = one if isinstance(one, Phrase) else Phrase(clean_name(one))
        caption += (SEPARATOR if spans else "") + phrase.prefix
        spans.append(((len(caption), len(caption) + len(phrase.name)),))
        caption += phrase.name + phrase.suffix
    return Prompt(caption, tuple(spans), tuple(range(len(names)) if labels is None else labels))


def phrases_of(rows: Iterable[Sequence[str]]) -> dict[str, Phrase]:
    """Of rows [category, prefix, name, suffix]: what is asked for in place of a category's name."""
    return {category: Phrase(name, prefix, suffix) for category, prefix, name, suffix in rows}


def with_phrases(names: Sequence[str], phrases: Mapping[str, Phrase]) -> list[str | Phrase]:
    """The names, in place of some what is asked for them."""
    return [phrases.get(one, one) for one in names]


def shown(name: str | Phrase) -> str:
    """A name for messages."""
    return name.name if isinstance(name, Phrase) else name


def name_length(name: str | Phrase, tokenizer: Tokenizer) -> int:
    """Tokens of a name in a prompt, its separator among them."""
    phrase = name if isinstance(name, Phrase) else Phrase(clean_name(name))
    return tokenizer.count(phrase.prefix + phrase.name + phrase.suffix + SEPARATOR)


def public_labels(
    positives: Sequence[int],
    ids: Sequence[int],
    lengths: Mapping[int, int],
    shuffler: random.Random,
    drawer: np.random.RandomState,
) -> list[int]:
    """What the public code asks for, draw by draw, and in which order.

    It drops positives (and so their boxes) that do not fit, and `ids` has its background, which it
    draws as it does any other name.

    Args:
        positives: ids of the boxes' categories, in the order of the boxes.
        ids: of all categories.
        lengths: id -> tokens of its name.
        shuffler, drawer: of random numbers; the public code takes the global generators.
    """
    # Sets as there: what a shuffle makes of them depends on their order.
    wanted = set(positives)
    kept = _fitting(_shuffled(list(wanted), shuffler), lengths, LIMIT)
    used = sum(lengths[one] for one in wanted)
    if len(kept) < len(wanted):
        wanted, used = set(kept), LIMIT
    most = min(NEGATIVES, len(ids))
    if shuffler.random() >= _ALL_NEGATIVES:
        shuffler.random()  # drawn there for nothing, as below
        most = int(drawer.choice(most)) + 1
        shuffler.random()
    drawn = drawer.choice(ids, most, replace=False)
    others: set[int] = set()
    for one in drawn:
        if one not in wanted:
            others.add(int(one))
    first = _shuffled(list(wanted), shuffler)
    added = _fitting(_shuffled(list(others), shuffler), lengths, LIMIT - used - 1)
    return _shuffled(added + first, shuffler)


def _shuffled(values: list[int], shuffler: random.Random) -> list[int]:
    shuffler.shuffle(values)
    return values


def _fitting(values: Sequence[int], lengths: Mapping[int, int], room: int) -> list[int]:
    """Those from the beginning on that have no more tokens than there is room."""
    totals = np.cumsum([lengths[one] for one in values])
    return list(values[: int(np.searchsorted(totals, room, side="right"))])


def split_positives(
    positives: Sequence[int], lengths: Mapping[int, int], limit: int = LIMIT
) -> list[list[int]]:
    """Positives in their order as parts that a prompt can hold; one empty part of none."""
    parts: list[list[int]] = [[]]
    room = limit
    for one in positives:
        if lengths[one] > room and parts[-1]:
            parts.append([])
            room = limit
        parts[-1].append(one)
        room -= lengths[one]
    return parts


class DetectionPrompts:
    """Prompts from the names of a data set: what an image shows, and names that it does not.

    The positives of an image that do not fit into one prompt are split over several, of which each
    call draws one: no category is dropped for good, and what a prompt does not name it does not
    teach, either.

    Attributes:
        names: of the categories, by contiguous id.
    """

    def __init__(
        self,
        names: Sequence[str | Phrase],
        tokenizer: Tokenizer,
        *,
        negatives: int = NEGATIVES,
        withheld: Collection[int] = (),
        limit: int = LIMIT,
    ) -> None:
        """
        Args:
            names: of the categories.
            tokenizer: counts their tokens.
            negatives: names that an image does not show, at most: in half of the prompts as many,
                in the others a number drawn from 1 on.
            withheld: categories that are never negatives: novel ones, which images may show without
                a box.
            limit: tokens of the names in a prompt, each with its separator.

        Raises:
            ValueError: a name alone is longer.
        """
        self.names = list(names)
        self._negatives = negatives
        self._limit = limit
        self._lengths = dict(enumerate(name_length(one, tokenizer) for one in names))
        self._candidates = [k for k in range(len(names)) if k not in set(withheld)]
        long = [one for k, one in enumerate(names) if self._lengths[k] > limit]
        if long:
            raise ValueError(
                f"the name '{shown(long[0])}' has more than {limit} tokens: shorten it"
            )

    def __call__(
        self,
        positives: Collection[int],
        generator: np.random.Generator,
        withheld: Collection[int] = (),
    ) -> Prompt:
        """
        Args:
            positives: contiguous ids of the categories of an image's boxes.
            generator: of all that is drawn.
            withheld: further categories that are no negatives of this image.

        Returns:
            `labels` are contiguous ids, in random order. Boxes of categories that are not among
            them have no place in this prompt.
        """
        order = generator.permutation(sorted(set(positives))).tolist()
        parts = split_positives(order, self._lengths, self._limit)
        part = parts[int(generator.integers(len(parts)))]
        room = self._limit - sum(self._lengths[one] for one in part)
        used = set(positives) | set(withheld)
        others = [one for one in self._candidates if one not in used]
        count = self._negatives
        if count and generator.random() >= _ALL_NEGATIVES:
            count = int(generator.integers(count)) + 1
        drawn = generator.permutation(others)[:count].tolist()
        labels = generator.permutation([*part, *_fitting(drawn, self._lengths, room)]).tolist()
        return names_prompt([self.names[int(k)] for k in labels], [int(k) for k in labels])


class PublicPrompts:
    """The public code's way (:func:`public_labels`), for a comparison with it."""

    def __init__(self, names: Sequence[str | Phrase], tokenizer: Tokenizer) -> None:
        self._names: dict[int, str | Phrase] = {k + 1: name for k, name in enumerate(names)}
        self._names[0] = BACKGROUND
        self._lengths = {k: name_length(name, tokenizer) for k, name in self._names.items()}

    def __call__(
        self,
        positives: Collection[int],
        generator: np.random.Generator,
        withheld: Collection[int] = (),
    ) -> Prompt:
        """As :class:`DetectionPrompts`; the label of the background is -1."""
        shuffler = random.Random(int(generator.integers(2**63)))
        drawer = np.random.RandomState(int(generator.integers(2**32)))
        wanted = [one + 1 for one in positives]
        order = public_labels(wanted, list(self._names), self._lengths, shuffler, drawer)
        return names_prompt([self._names[k] for k in order], [k - 1 for k in order])


class AllNames:
    """Every name in every prompt: for a few of them, as in fine-tuning."""

    def __init__(
        self, names: Sequence[str | Phrase], tokenizer: Tokenizer, *, shuffle: bool = True
    ) -> None:
        """
        Raises:
            ValueError: together they are longer than a prompt.
        """
        length = sum(name_length(one, tokenizer) for one in names)
        if length - 1 > LIMIT:  # the last one has no separator
            raise ValueError(
                f"its {len(names)} names have {length} tokens, a prompt {LIMIT}: sample some"
            )
        self._names = list(names)
        self._shuffle = shuffle

    def __call__(
        self,
        positives: Collection[int],
        generator: np.random.Generator,
        withheld: Collection[int] = (),
    ) -> Prompt:
        """As :class:`DetectionPrompts`, with all names."""
        order = np.arange(len(self._names))
        if self._shuffle:
            order = generator.permutation(order)
        labels = [int(k) for k in order]
        return names_prompt([self._names[k] for k in labels], labels)
