"""Captions of other images beside an image's own: what they name must not be found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ovd_d2.projects.glip.last_words import last_words, with_singulars, words_of
from ovd_d2.projects.glip.prompts.tokenizer import MAX_TOKENS, SPECIAL, Tokenizer

# The paper's (config of GLIP-L): none; all of MOST; 0 to MOST - 1.
SHARES = (0.4, 0.3, 0.3)
MOST = 20


class NegativeCaptions:
    """A stock of captions.

    The paper draws from millions of captions, which seldom name what the image shows. Here a
    caption with the last word of one of the image's own phrases, singular or plural, is passed
    over: in a small world every other image would be taught that its own objects are not there.
    """

    def __init__(self, captions: Sequence[str], tokenizer: Tokenizer) -> None:
        """
        Args:
            captions: of all images.
            tokenizer: counts their tokens.
        """
        self._captions = captions
        self._tokenizer = tokenizer

    def beside(
        self, caption: str, phrases: Iterable[str], generator: np.random.Generator
    ) -> tuple[str, int]:
        """The caption among others, in random order, and the place where it begins.

        Each is closed with a full stop; together they have no more tokens than the text encoder
        reads, the caption itself being shorter.

        Args:
            caption: the image's own.
            phrases: parts of it that the image has boxes of.
            generator: of all that is drawn.
        """
        shown = with_singulars(last_words(phrases))
        others = self._fitting(caption, self._drawn(caption, shown, generator))
        parts = [caption, *others]
        whole, start = "", 0
        for k in generator.permutation(len(parts)):
            if k == 0:
                start = len(whole)
            part = parts[int(k)]
            whole += part if part.rstrip().endswith(".") else f"{part}."
            whole += " "
        return (whole.rstrip(), start) if others else (caption, 0)

    def _drawn(
        self, caption: str, shown: frozenset[str], generator: np.random.Generator
    ) -> list[str]:
        kind = int(generator.choice(len(SHARES), p=SHARES))
        count = (0, MOST, int(generator.integers(MOST)))[kind]
        places = generator.integers(len(self._captions), size=count).tolist()
        others = [one for one in (self._captions[k] for k in places) if one != caption]
        return [one for one in others if not with_singulars(words_of(one)) & shown]

    def _fitting(self, caption: str, others: Sequence[str]) -> list[str]:
        """Those that fit, from the first on; a full stop more for each."""
        room = MAX_TOKENS - SPECIAL - self._tokenizer.count(caption) - 1
        kept = []
        for one in others:
            room -= self._tokenizer.count(one) + 1
            if room < 0:
                break
            kept.append(one)
        return kept
