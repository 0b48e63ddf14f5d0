"""Categories, and the vocabulary: categories with text embeddings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError

from ovd_d2.errors import SetupError, brief
from ovd_d2.files import atomic_write

SCHEMA = "ovd_d2.vocabulary/2"
WORDS_ALONE = "alone"
READABLE = ("ovd_d2.vocabulary/1", SCHEMA)  # 1 had no synonyms and no sources

_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Categories:
    """C categories in the order of the classes (Detectron2's contiguous ids).

    From the loader, which reads them, to the evaluator, which counts by them.

    Attributes:
        names: C names, spelt as for a text encoder.
        novel: C flags; a novel category has no boxes in training.
        ids: C ids of the data set; 0 to C - 1 where it has none of its own.
        frequencies: C letters r / c / f (LVIS); None where the format has none.
        synonyms: C lists of what each category is called, its name first; None: by its name alone.

    Raises:
        ValueError: the lengths differ.
    """

    names: list[str]
    novel: list[bool]
    ids: list[int] = field(default_factory=list)
    frequencies: list[str] | None = None
    synonyms: list[list[str]] | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", list(range(len(self.names))))
        for what in ("novel flags", "ids", "frequencies", "synonyms"):
            values = getattr(self, what.split()[0])
            if values is not None and len(values) != len(self.names):
                raise ValueError(f"{len(values)} {what} for {len(self)} categories: give one each")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def name_of(self) -> dict[int, str]:
        """Id -> name."""
        return dict(zip(self.ids, self.names, strict=True))

    @cached_property
    def novel_ids(self) -> frozenset[int]:
        return frozenset(one for one, flag in zip(self.ids, self.novel, strict=True) if flag)


class Vocabulary:
    """C categories with text embeddings, in the order of the data set's contiguous ids.

    A category may have synonyms, other words for the same thing. Each has an embedding of its own,
    and a region's similarity to a category is that to the best of its words.

    Attributes:
        names: C distinct names.
        embeddings: (C, D) float32, L2-normalised rows. D is 0 where there are none
            (:meth:`of_names`): for detectors that read the words themselves.
        novel: (C,) bool; True for categories without training boxes.
        teacher: fingerprint of the teacher whose encoders were used ("" if unknown).
        prompts: name of the prompt family ("" if unknown), and whether synonyms are averaged in.
        background: (D,) float32 unit embedding of the word "background", or None.
        synonyms: C lists of S other words in all.
        synonym_embeddings: (S, D) float32 unit rows, those of the first category first.
        sources: C mappings that say what else than its words an embedding was made of
            (`descriptions`, `examples` with the digests of their images, `example_weight`); None
            where nothing else was.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: torch.Tensor,
        novel: torch.Tensor | None = None,
        *,
        teacher: str = "",
        prompts: str = "",
        background: torch.Tensor | None = None,
        synonyms: Sequence[Sequence[str]] | None = None,
        synonym_embeddings: torch.Tensor | None = None,
        sources: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Checks everything it is given.

        Args:
            names: C >= 1 distinct, non-blank names.
            embeddings: (C, D) float32 unit rows.
            novel: (C,) bool; None means that every category is a base category.
            teacher: fingerprint of the teacher.
            prompts: prompt family.
            background: (D,) unit embedding, for detectors with MODEL.OVD.BACKGROUND "text".
            synonyms, synonym_embeddings: S words and rows; None: no category has any.
            sources: see the attributes.

        Raises:
            ValueError: equal or blank words, NaN, rows that are not unit length, wrong counts.
            TypeError: names is one string, embeddings is not float32, novel is not bool.
        """
        self.synonyms = _checked_synonyms(synonyms, len(names))
        self.names = _checked_names(names)
        others = [word for group in self.synonyms for word in group]
        self.words = _checked_names([*self.names, *others]) if others else self.names
        self.embeddings = _checked_embeddings(embeddings, self.names)
        if synonym_embeddings is None:
            synonym_embeddings = self.embeddings.new_zeros(0, self.embedding_dim)
        if tuple(synonym_embeddings.shape) != (len(others), self.embedding_dim):
            raise ValueError(
                f"synonym_embeddings must have shape ({len(others)}, {self.embedding_dim}): one "
                f"row per synonym; got {tuple(synonym_embeddings.shape)}"
            )
        self.synonym_embeddings = _checked_embeddings(synonym_embeddings, others)
        self.novel = _checked_novel(novel, len(self.names))
        self.teacher = teacher
        self.prompts = prompts
        self.background = _checked_background(background, self.embedding_dim)
        self.sources = _checked_sources(sources, len(self.names))
        self._index = {name: position for position, name in enumerate(self.names)}

    @classmethod
    def of_names(
        cls, categories: Categories, synonyms: Sequence[Sequence[str]] | None = None
    ) -> Vocabulary:
        """For a detector that reads nothing but the words: embeddings of width 0.

        Args:
            categories: their names and novel flags are taken.
            synonyms: other words of each that count as it.

        Raises:
            ValueError: equal or blank words.
        """
        return cls(
            categories.names,
            torch.zeros(len(categories), 0),
            torch.tensor(categories.novel, dtype=torch.bool),
            synonyms=synonyms,
            synonym_embeddings=torch.zeros(sum(map(len, synonyms or ())), 0),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (
            f"Vocabulary({len(self)} names, {int(self.novel.sum())} novel, D={self.embedding_dim}, "
            f"teacher={self.teacher!r}, prompts={self.prompts!r})"
        )

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.embeddings.shape[1]

    @property
    def word_embeddings(self) -> torch.Tensor:
        """(C + S, D), of `words`."""
        return torch.cat([self.embeddings, self.synonym_embeddings])

    @property
    def owners(self) -> torch.Tensor:
        """(C + S,) int64: which category each of `words`, the names and then the synonyms, is."""
        counts = torch.tensor([len(group) for group in self.synonyms])
        own = torch.arange(len(self))
        return torch.cat([own, own.repeat_interleave(counts)])

    @property
    def categories(self) -> Categories:
        """The names without their embeddings."""
        return Categories(self.names, self.novel.tolist())

    def index(self, name: str) -> int:
        """Position of a name; KeyError if it is not in the vocabulary."""
        if name not in self._index:
            raise KeyError(f"'{name}' is not among the {len(self)} names of this vocabulary")
        return self._index[name]

    def select(self, names: Sequence[str]) -> Vocabulary:
        """The entries of these names, in their order; KeyError for one that is not here."""
        rows = [self.index(name) for name in names]
        own = self.synonym_embeddings.split([len(group) for group in self.synonyms])
        return Vocabulary(
            names,
            self.embeddings[rows],
            self.novel[rows],
            teacher=self.teacher,
            prompts=self.prompts,
            background=self.background,
            synonyms=[self.synonyms[row] for row in rows],
            synonym_embeddings=torch.cat([own[row] for row in rows]),
            sources=None if self.sources is None else [self.sources[row] for row in rows],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically; prefixes as for `load`."""
        with atomic_write(PathManager.get_local_path(os.fspath(path))) as temporary:
            temporary.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of a file that `save` writes."""
        tensors = {"novel": self.novel.contiguous()}
        if self.embedding_dim:
            tensors["embeddings"] = self.embeddings.contiguous()
        if self.background is not None:
            tensors["background"] = self.background.contiguous()
        metadata = {
            "schema": SCHEMA,
            "names": json.dumps(self.names, ensure_ascii=False),
            "teacher": self.teacher,
            "prompts": self.prompts,
        }
        if not self.embedding_dim:
            metadata["words"] = WORDS_ALONE
        if any(self.synonyms):
            if self.embedding_dim:
                tensors["synonym_embeddings"] = self.synonym_embeddings.contiguous()
            metadata["synonyms"] = json.dumps(self.synonyms, ensure_ascii=False)
        if self.sources is not None:
            metadata["sources"] = json.dumps(self.sources, ensure_ascii=False, sort_keys=True)
        return _with_sorted_header(safetensors.torch.save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a file written by `save`; `datasets://` and Detectron2's other prefixes work.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or not a vocabulary.
        """
        local = Path(PathManager.get_local_path(os.fspath(path)))
        if not local.is_file():
            raise FileNotFoundError(
                f"vocabulary not found: {path} (make one with tools/build_vocabulary.py)"
            )
        return cls.from_bytes(local.read_bytes(), source=str(local))

    @classmethod
    def _unpacked(
        cls, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
    ) -> Vocabulary:
        names, novel = json.loads(metadata["names"]), tensors["novel"]
        synonyms = json.loads(metadata.get("synonyms", "null"))
        if metadata.get("words") == WORDS_ALONE:
            return cls.of_names(Categories(names, novel.tolist()), synonyms)
        return cls(
            names,
            _with_columns(tensors["embeddings"]),
            novel,
            teacher=metadata.get("teacher", ""),
            prompts=metadata.get("prompts", ""),
            background=tensors.get("background"),
            synonyms=synonyms,
            synonym_embeddings=tensors.get("synonym_embeddings"),
            sources=json.loads(metadata.get("sources", "null")),
        )

    @classmethod
    def from_bytes(cls, content: bytes, *, source: str = "vocabulary") -> Vocabulary:
        """The vocabulary that `to_bytes` packed.

        Args:
            content: of a file or of an entry of a checkpoint.
            source: where it comes from, for messages.

        Raises:
            ValueError: it is damaged, or no vocabulary.
        """
        try:
            tensors = safetensors.torch.load(content)
        except SafetensorError as error:
            raise ValueError(
                f"{source}: damaged or not a safetensors file ({error}); "
                "make it again with tools/build_vocabulary.py"
            ) from error
        metadata = _metadata_of(content)
        schema = metadata.get("schema")
        if schema not in READABLE:
            raise ValueError(
                f"{source}: not a vocabulary of this version (schema: expected '{SCHEMA}', found "
                f"{schema!r}); make one with tools/build_vocabulary.py"
            )
        try:
            return cls._unpacked(tensors, metadata)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{source}: not a vocabulary ({error}); make it again") from error


def _with_columns(embeddings: torch.Tensor) -> torch.Tensor:
    if embeddings.shape[-1] == 0:
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} have no column")
    return embeddings


def configured_vocabulary(cfg: CfgNode) -> Vocabulary | None:
    """`MODEL.OVD.VOCABULARY`; None where the key is empty.

    Raises:
        SetupError: no such file, or no vocabulary.
    """
    path = cfg.MODEL.OVD.VOCABULARY
    if not path:
        return None
    try:
        return Vocabulary.load(path)
    except (OSError, ValueError) as error:
        raise SetupError([f"MODEL.OVD.VOCABULARY: {error}"]) from error


def _with_sorted_header(content: bytes) -> bytes:
    """The library's metadata come in random order; equal vocabularies must have equal bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _metadata_of(content: bytes) -> dict[str, str]:
    """Of sound safetensors: a little-endian length of 8 bytes, then a JSON header."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__") or {}


def _checked_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"names must be a sequence of strings, got the one string {names!r}")
    checked = list(names)
    if not checked:
        raise ValueError("a vocabulary needs at least one name")
    seen: dict[str, int] = {}
    for position, name in enumerate(checked):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name {position} is blank or not a string: {brief(name)}")
        if name in seen:
            raise ValueError(
                f"names {seen[name]} and {position} are equal: {brief(name)}; names must "
                "be distinct"
            )
        seen[name] = position
    return checked


def _checked_synonyms(synonyms: Sequence[Sequence[str]] | None, count: int) -> list[list[str]]:
    if synonyms is None:
        return [[] for _ in range(count)]
    if any(isinstance(group, str) for group in synonyms):
        raise TypeError("synonyms must be a list of words per name, got a string in place of one")
    if len(synonyms) != count:
        raise ValueError(f"{len(synonyms)} lists of synonyms for {count} names: give one each")
    return [list(group) for group in synonyms]


def _checked_sources(
    sources: Sequence[Mapping[str, Any]] | None, count: int
) -> list[dict[str, Any]] | None:
    if sources is None:
        return None
    if len(sources) != count:
        raise ValueError(f"{len(sources)} sources for {count} names: give one each")
    return [dict(one) for one in sources]


def _checked_embeddings(embeddings: torch.Tensor, names: list[str]) -> torch.Tensor:
    if embeddings.dtype != torch.float32:
        raise TypeError(f"embeddings must be float32, got {embeddings.dtype}")
    if embeddings.ndim != 2 or embeddings.shape[0] != len(names):
        raise ValueError(
            f"embeddings must have shape ({len(names)}, D): one row per name; got "
            f"{tuple(embeddings.shape)}"
        )
    values = embeddings.detach()
    if values.numel() == 0:
        return values.clone()
    bad = (~torch.isfinite(values)).any(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"embeddings hold NaN or infinity, first in row {first} ('{names[first]}')"
        )
    error = (values.norm(dim=1) - 1).abs()
    if error.max() > _NORM_TOLERANCE:
        worst = int(error.argmax())
        raise ValueError(
            f"embeddings must have unit rows: row {worst} ('{names[worst]}') has norm "
            f"{float(values[worst].norm()):.4f}; use torch.nn.functional.normalize"
        )
    return values.clone()


def _checked_background(background: torch.Tensor | None, dim: int) -> torch.Tensor | None:
    if background is None:
        return None
    if tuple(background.shape) != (dim,):
        raise ValueError(f"background must have shape ({dim},), got {tuple(background.shape)}")
    return _checked_embeddings(background[None], ["background"])[0]


def _checked_novel(novel: torch.Tensor | None, count: int) -> torch.Tensor:
    if novel is None:
        return torch.zeros(count, dtype=torch.bool)
    if novel.dtype != torch.bool:
        raise TypeError(f"novel must be a bool tensor, got {novel.dtype}")
    if tuple(novel.shape) != (count,):
        raise ValueError(
            f"novel must have shape ({count},): one flag per name; got {tuple(novel.shape)}"
        )
    return novel.detach().clone()
