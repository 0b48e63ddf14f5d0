"""Text to word pieces with the places of their characters, by the `tokenizers` library."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers
import torch
from detectron2.utils.file_io import PathManager
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, read_text
from ovd_d2.projects.glip.prompts.spans import Span

MAX_TOKENS = 256  # that the text encoder reads, [CLS] and [SEP] among them
SPECIAL = 2  # [CLS] and [SEP]
_CLS, _SEP, _UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
# Tokenizers that come with this package, by name.
SHIPPED = {"pictograms": Path(__file__).parents[1] / "pictogram_tokenizer.json"}
_FILES = ("tokenizer.json", "vocab.txt")  # of a folder, the first that is there


@dataclass(frozen=True)
class Encoding:
    """The L tokens of a text.

    Attributes:
        ids: of the tokens, [CLS] first and [SEP] last.
        offsets: the characters of each; empty, (0, 0), of [CLS] and [SEP].
    """

    ids: tuple[int, ...]
    offsets: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """What the prompts are made with."""

    def encode(self, text: str) -> Encoding:
        """All tokens of a text, however many."""

    def count(self, text: str) -> int:
        """How many those are, without [CLS] and [SEP]."""


class WordPieces:
    """BERT's word pieces, or whatever else a tokenizer of the `tokenizers` library makes."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """
        Args:
            tokenizer: puts one special token before a text and one behind it; its own padding and
                truncation are switched off.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._state = tokenizer.to_str()
        self._tokenizer = tokenizer

    @classmethod
    def from_vocabulary(cls, words: Sequence[str], *, lower_case: bool = True) -> WordPieces:
        """Of the lines of a vocab.txt, as BERT cuts text into them.

        Raises:
            ValueError: [CLS], [SEP] or [UNK] is not among them, or a word is there twice.
        """
        ids = {word: k for k, word in enumerate(words)}
        missing = [one for one in (_CLS, _SEP, _UNKNOWN) if one not in ids]
        if missing:
            raise ValueError(f"{', '.join(missing)} not among its {len(words)} words")
        if len(ids) != len(words):
            raise ValueError(f"{len(words) - len(ids)} of its {len(words)} words are there twice")
        tokenizer = tokenizers.Tokenizer(WordPiece(ids, unk_token=_UNKNOWN))
        tokenizer.normalizer = BertNormalizer(lowercase=lower_case)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        special = [(one, ids[one]) for one in (_CLS, _SEP)]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{_CLS} $A {_SEP}", special_tokens=special
        )
        return cls(tokenizer)

    def encode(self, text: str) -> Encoding:
        found = self._tokenizer.encode(text)
        return Encoding(tuple(found.ids), tuple(found.offsets))

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @staticmethod
    def words_of(text: str) -> list[str]:
        """The words and marks that BERT cuts into pieces, in lower case."""
        normal = BertNormalizer(lowercase=True).normalize_str(text)
        return [word for word, _ in BertPreTokenizer().pre_tokenize_str(normal)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """As a tokenizer.json, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self._tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")

    def __getstate__(self) -> str:
        return self._state

    def __setstate__(self, state: str) -> None:
        self._state = state
        self._tokenizer = tokenizers.Tokenizer.from_str(state)


class LazyTokenizer:
    """One that :func:`load_tokenizer` loads when it is first used, if it is."""

    def __init__(self, where: str) -> None:
        self._where = where

    @cached_property
    def _loaded(self) -> WordPieces:
        return load_tokenizer(self._where)

    def encode(self, text: str) -> Encoding:
        """As :class:`Tokenizer`; SetupError where there is none."""
        return self._loaded.encode(text)

    def count(self, text: str) -> int:
        """As :class:`Tokenizer`; SetupError where there is none."""
        return self._loaded.count(text)


def load_tokenizer(where: str) -> WordPieces:
    """A tokenizer by its place.

    Args:
        where: a tokenizer.json, a vocab.txt, a folder with one of them (whose tokenizer_config.json
            may say that case matters), "pictograms" (small, of the words of that data set), or a
            name of the Hugging Face hub.

    Raises:
        SetupError: there is none, or it cannot be read.
    """
    if where in SHIPPED:
        return _of_file(SHIPPED[where])
    local = Path(PathManager.get_local_path(where)) if "://" in where else Path(where)
    if local.is_dir():
        return _of_folder(local)
    if local.is_file():
        return _of_file(local)
    if local.suffix in (".json", ".txt"):
        raise SetupError([f"tokenizer: no file at '{local}'"])
    return _of_hub(where)


def _of_folder(folder: Path) -> WordPieces:
    for name in _FILES:
        if (folder / name).is_file():
            return _of_file(folder / name)
    raise SetupError([f"tokenizer: '{folder}' has neither {' nor '.join(_FILES)}: copy one there"])


def _of_file(path: Path) -> WordPieces:
    try:
        if path.suffix == ".json":
            tokenizer = tokenizers.Tokenizer.from_str(read_text(path))
            return _checked(WordPieces(tokenizer))
        words = read_text(path).splitlines()
        return WordPieces.from_vocabulary(words, lower_case=_lower_case(path.parent))
    except Exception as error:  # noqa: BLE001 (tokenizers raises plain Exceptions)
        raise SetupError(
            [f"tokenizer: {path} is no tokenizer.json and no vocab.txt of BERT ({error})"]
        ) from error


def _lower_case(folder: Path) -> bool:
    """BERT's uncased vocabularies are the rule; a file beside the vocabulary can say otherwise."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return True
    content: dict[str, Any] = json.loads(read_text(path))
    return bool(content.get("do_lower_case", True))


def _of_hub(name: str) -> WordPieces:
    try:
        return _checked(WordPieces(tokenizers.Tokenizer.from_pretrained(name)))
    except Exception as error:  # noqa: BLE001 (tokenizers raises plain Exceptions)
        raise SetupError(
            [
                f"tokenizer: '{name}' is no file, no folder, and cannot be had from the Hugging "
                f"Face hub ({error}): name a vocab.txt, a tokenizer.json or a folder with one"
            ]
        ) from error


def _checked(tokenizer: WordPieces) -> WordPieces:
    special = [offset for offset in tokenizer.encode("a").offsets if offset[0] == offset[1]]
    if len(special) != SPECIAL:
        raise ValueError(
            f"it puts {len(special)} special tokens around a text, expected [CLS] and [SEP]"
        )
    return tokenizer


def truncated(encoding: Encoding, limit: int = MAX_TOKENS) -> Encoding:
    """The first tokens, [SEP] still the last; the same where it is no longer than `limit`."""
    if len(encoding) <= limit:
        return encoding
    return Encoding(
        encoding.ids[: limit - 1] + encoding.ids[-1:],
        encoding.offsets[: limit - 1] + encoding.offsets[-1:],
    )


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of N texts, padded to L.

    Attributes:
        ids: (N, L) int64.
        mask: (N, L) bool, False where padded.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, *args: Any, **kwargs: Any) -> TokenBatch:
        """To a device, as a tensor's."""
        return TokenBatch(self.ids.to(*args, **kwargs), self.mask.to(*args, **kwargs))


def token_batch(
    texts: Sequence[Sequence[int] | Tensor], *, length: int | None = None, pad_id: int = 0
) -> TokenBatch:
    """Pads the ids of N texts.

    Args:
        texts: token ids of each.
        length: L; None: that of the longest.
        pad_id: of the padding token.

    Raises:
        ValueError: a text is longer than `length`.
    """
    longest = max((len(one) for one in texts), default=0)
    if length is not None and longest > length:
        raise ValueError(f"a text has {longest} tokens, more than {length}: cut it first")
    ids = torch.full((len(texts), length or longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, valid, one in zip(ids, mask, texts, strict=True):
        row[: len(one)] = torch.as_tensor(one, dtype=torch.int64)
        valid[: len(one)] = True
    return TokenBatch(ids, mask)
