"""Many names as several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.prompts.detection import (
    LIMIT,
    Phrase,
    name_length,
    names_prompt,
    shown,
)
from ovd_d2.projects.glip.prompts.spans import Prompt
from ovd_d2.projects.glip.prompts.tokenizer import MAX_TOKENS, Encoding, Tokenizer

PUBLIC_SIZE = 40  # names per chunk of the public code's evaluation on LVIS

Name: TypeAlias = str | Phrase


@dataclass(frozen=True)
class Chunk:
    """Some of the names.

    Attributes:
        prompt: its labels are the names' places in the whole list.
        encoding: of its caption, no longer than the text encoder reads.
    """

    prompt: Prompt
    encoding: Encoding


def chunks_of(names: Sequence[Name], tokenizer: Tokenizer, size: int = 0) -> list[Chunk]:
    """So many names per chunk; 0: as many as fit.

    Raises:
        ValueError: a name, or so many, have more tokens than the text encoder reads.
    """
    return chunks_by_count(names, tokenizer, size) if size else chunks_by_length(names, tokenizer)


def asked_chunks(
    source: str, names: Sequence[Name], tokenizer: Tokenizer, size: int
) -> list[Chunk]:
    """:func:`chunks_of` the names of a data set or the like, `source`, as a config has it.

    Raises:
        SetupError: they do not fit into chunks.
    """
    try:
        return chunks_of(names, tokenizer, size)
    except ValueError as error:
        raise SetupError([f"'{source}', MODEL.GLIP.NAMES_PER_CAPTION {size}: {error}"]) from error


def chunks_by_count(
    names: Sequence[Name], tokenizer: Tokenizer, size: int = PUBLIC_SIZE
) -> list[Chunk]:
    """As the public code's: so many names per chunk, the last one shorter.

    Raises:
        ValueError: a chunk has more tokens than the text encoder reads.
    """
    places = range(0, len(names), size)
    return [_chunk(names, range(k, min(k + size, len(names))), tokenizer) for k in places]


def chunks_by_length(
    names: Sequence[Name], tokenizer: Tokenizer, limit: int = LIMIT
) -> list[Chunk]:
    """As few chunks as the names' order allows: each is filled up to `limit` tokens.

    Raises:
        ValueError: a name alone is longer than a chunk.
    """
    starts, room = [0], limit
    for k, name in enumerate(names):
        length = name_length(name, tokenizer) - 1  # the last one has no separator
        if length > limit:
            raise ValueError(
                f"the name '{shown(name)}' has {length} tokens, more than a chunk's {limit}: "
                "shorten it"
            )
        if length > room:
            starts.append(k)
            room = limit
        room -= length + 1
    ends = [*starts[1:], len(names)]
    return [
        _chunk(names, range(first, end), tokenizer)
        for first, end in zip(starts, ends, strict=True)
        if end > first
    ]


def _chunk(names: Sequence[Name], places: range, tokenizer: Tokenizer) -> Chunk:
    prompt = names_prompt([names[k] for k in places], list(places))
    encoding = tokenizer.encode(prompt.caption)
    if len(encoding) > MAX_TOKENS:
        raise ValueError(
            f"names {places.start} to {places.stop - 1} have {len(encoding)} tokens together, more "
            f"than {MAX_TOKENS}: take fewer, or 0: as many as fit"
        )
    return Chunk(prompt, encoding)
