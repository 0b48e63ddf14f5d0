"""Which tokens a phrase is made of, and its score from theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, int]  # first character and one past the last

# Blanks at the ends of a span that are passed over to find its first and last token.
_BLANKS = 2
AGGREGATIONS = ("mean", "max", "power", "one_hot")


@dataclass(frozen=True)
class Prompt:
    """A text with the places of what it asks for.

    Attributes:
        caption: the text.
        spans: of each label the character spans in `caption` that name it; a label may have
            several, or none.
        labels: what they stand for, e.g. contiguous ids of categories; as many as `spans`.
    """

    caption: str
    spans: tuple[tuple[Span, ...], ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.spans) != len(self.labels):
            raise ValueError(f"{len(self.spans)} spans for {len(self.labels)} labels: one each")


def span_problem(caption: str, span: object) -> str | None:
    """Why a span is none of the caption; None where it is one."""
    if not (
        isinstance(span, Sequence)
        and len(span) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) for one in span)
    ):
        return f"{span!r} is no pair of characters' places, [first, one past the last]"
    first, end = span
    if not 0 <= first < end <= len(caption):
        return f"{list(span)} does not fit a caption of {len(caption)} characters"
    if not caption[first:end].strip():
        return f"{list(span)} covers nothing but blanks"
    return None


def tokens_of(spans: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """The tokens of some character spans, in rising order.

    From the token of a span's first character to that of its last, with all between them; up to two
    blanks at either end are passed over. A span of which no token is there, since it has none or
    the text was cut before it, is left out.

    Args:
        spans: of the characters of a text.
        offsets: of each token its characters; empty for those that stand for none ([CLS]).
    """
    return _tokens_of(spans, _owners(offsets))


def _owners(offsets: Sequence[Span]) -> dict[int, int]:
    """Place of a character -> its token, the first of several."""
    return {
        place: token
        for token, (first, end) in reversed(list(enumerate(offsets)))
        for place in range(first, end)
    }


def _tokens_of(spans: Sequence[Span], owner: dict[int, int]) -> list[int]:
    found: set[int] = set()
    for first, end in spans:
        begin = _first_of(owner, range(first, first + _BLANKS + 1))
        last = _first_of(owner, range(end - 1, end - _BLANKS - 2, -1))
        if begin is not None and last is not None:
            found.update(range(begin, last + 1))
    return sorted(found)


def _first_of(owner: dict[int, int], places: range) -> int | None:
    return next((owner[place] for place in places if place in owner), None)


def token_targets(
    spans: Sequence[Sequence[Span]], offsets: Sequence[Span], length: int | None = None
) -> Tensor:
    """(n, length) bool: the tokens of each of n things.

    Args:
        spans: of each its spans.
        offsets: see :func:`tokens_of`.
        length: of the rows; None: as many as there are tokens.
    """
    targets = torch.zeros(len(spans), length or len(offsets), dtype=torch.bool)
    owner = _owners(offsets)  # once for all: a caption has many names
    for row, one in zip(targets, spans, strict=True):
        row[_tokens_of(one, owner)] = True
    return targets


def positive_map(
    spans: Sequence[Sequence[Span]], offsets: Sequence[Span], length: int | None = None
) -> Tensor:
    """(n, length) float32: the share of each token in each of n labels.

    The rows sum to 1; that of a label without a token is 0. Arguments as of :func:`token_targets`.
    """
    targets = token_targets(spans, offsets, length).float()
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def padded_columns(rows: Tensor, length: int) -> Tensor:
    """(n, L) -> (n, length), L at most `length`, with zeros on the right."""
    return torch.nn.functional.pad(rows, (0, length - rows.shape[1]))


def phrase_scores(scores: Tensor, positives: Tensor, how: str = "mean") -> Tensor:
    """The scores of C labels from those of L tokens.

    Args:
        scores: (..., L), probabilities.
        positives: (C, L), as :func:`positive_map` gives them.
        how: "mean"; "max"; "power", the geometric mean; "one_hot": the score of the c-th token,
            wherever its label is (a text encoder that has one token per label).

    Returns:
        (..., C); 0 for a label without tokens.

    Raises:
        ValueError: there is no such way.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"'{how}' is no way to make a score, expected one of {AGGREGATIONS}")
    if how == "one_hot":
        return scores[..., : len(positives)]
    positives = positives.to(scores.device)
    if how == "mean":
        return scores @ positives.to(scores.dtype).T
    counts = (positives > 0).sum(dim=1)
    most = max(int(counts.max()), 1) if len(counts) else 1
    # each label's own tokens first; the others are masked
    order = (positives > 0).int().argsort(dim=1, descending=True, stable=True)[:, :most]
    own = torch.arange(most, device=scores.device) < counts[:, None]  # (C, most)
    chosen = scores[..., order]  # (..., C, most)
    if how == "max":
        return chosen.masked_fill(~own, 0.0).amax(dim=-1)
    product = chosen.masked_fill(~own, 1.0).prod(dim=-1)
    return product.pow(1.0 / counts.clamp(min=1)) * (counts > 0)
