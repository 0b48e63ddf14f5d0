"""What an image is asked for in one caption: some of many names, or the phrases of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_d2.captions import Asked, Caption
from ovd_d2.errors import brief
from ovd_d2.projects.glip.prompts import MAX_TOKENS, Encoding, Tokenizer, positive_map
from ovd_d2.projects.glip.prompts.chunks import Chunk
from ovd_d2.projects.glip.prompts.spans import Span, span_problem
from ovd_d2.projects.glip.pseudo_labels.noun_phrases import noun_phrases

TOKENS, POSITIVES = "tokens", "positive_map"  # keys of an input


@dataclass(frozen=True)
class Question:
    """What an image is asked for in one caption of L tokens.

    Attributes:
        ids: (L,) int64 tokens.
        positives: (C, L) share of each token in each label.
        labels: (C,) int64 what the rows stand for.
    """

    ids: Tensor
    positives: Tensor
    labels: Tensor


def question_of(chunk: Chunk) -> Question:
    """Some of many names, whose labels are their places among all."""
    return Question(
        ids=torch.tensor(chunk.encoding.ids),
        positives=positive_map(chunk.prompt.spans, chunk.encoding.offsets),
        labels=torch.tensor(chunk.prompt.labels),
    )


def question_inputs(phrases: Sequence[Sequence[Span]], encoding: Encoding) -> dict[str, Tensor]:
    """What an input gets to be asked for C phrases of its own caption: `tokens` (L,) int64 and
    `positive_map` (C, L) float32."""
    return {
        TOKENS: torch.tensor(encoding.ids, dtype=torch.int64),
        POSITIVES: positive_map(phrases, encoding.offsets),
    }


def asked_in(caption: Caption, tokenizer: Tokenizer) -> Asked:
    """The phrases of a text, as an image is asked for them.

    Raises:
        ValueError: a span is none of the text, or has no token; there are no phrases; the text is
            longer than the text encoder reads.
        SetupError: no spans are given, and what finds phrases is not installed.
    """
    text = caption.text
    spans = _found(text) if caption.spans is None else caption.spans
    if problems := [problem for one in spans if (problem := span_problem(text, one))]:
        raise ValueError(f"the span {problems[0]}: {brief(text)}")
    if not spans:
        raise ValueError(f"no phrases to look for in {brief(text)}: give the spans of some")
    encoding = tokenizer.encode(text)
    if len(encoding) > MAX_TOKENS:
        raise ValueError(
            f"the caption has {len(encoding)} tokens, more than {MAX_TOKENS}: shorten it, or ask "
            "for its phrases as names"
        )
    inputs = question_inputs([[one] for one in spans], encoding)
    without = [one for one, row in zip(spans, inputs[POSITIVES], strict=True) if not row.any()]
    if without:
        raise ValueError(f"the span {list(without[0])} has no token: {brief(text)}")
    return Asked(spans, inputs)


def _found(text: str) -> list[Span]:
    return [span for phrase in noun_phrases(text) for span in phrase]
