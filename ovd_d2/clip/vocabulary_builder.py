"""From categories to a `Vocabulary`, by a teacher's text encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.prompts import PROMPT_FAMILIES, embed_names, embed_synonyms, render_prompts
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.entries import Entry, Example
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text
from ovd_d2.vocabulary import Categories, Vocabulary

logger = logging.getLogger(__name__)

SYNONYMS = ", synonyms"  # after the family's name, where a vocabulary averages over synonyms


EXAMPLE_WEIGHT = 0.5  # of the example images of an entry that has some; the rest is its words'

ReadImage = Callable[[str | bytes], NDArray[np.uint8]]  # file or content -> (H, W, 3) uint8 RGB


def vocabulary_of_entries(
    entries: Sequence[Entry],
    teacher: CLIPTeacher,
    read_image: ReadImage,
    *,
    prompts: str = "vild63",
    example_weight: float = EXAMPLE_WEIGHT,
    progress: bool = False,
) -> Vocabulary:
    """Embeds the words, descriptions and example images of entries.

    A word's embedding is the normalised mean over its prompts. Each description counts as much as
    all prompts of a word together. The embeddings of the example crops (ViLD's, at 1x and 1.5x) are
    averaged and mixed in, `(1 - w) * words + w * examples`, and the result is normalised.

    Args:
        entries: C of them, of distinct words.
        teacher: its fingerprint goes into the vocabulary.
        read_image: reads the files of examples.
        prompts: key of `ovd_d2.clip.PROMPT_FAMILIES`.
        example_weight: w, between 0 and 1.
        progress: show a progress bar.

    Raises:
        SetupError: a box outside of its image; `example_weight` is no such number.
        ImageError: of `read_image`.
    """
    if not 0 <= example_weight <= 1:
        raise SetupError([f"example weight {example_weight}: expected a number between 0 and 1"])
    words = [word for one in entries for word in one.words]
    warn_of_long_names(words, teacher, prompts)
    of_words = embed_names(words, teacher, prompts, progress=progress)
    rows = of_words.split([len(one.words) for one in entries])
    mixed = [
        _mixed(row, one, teacher, read_image, example_weight)
        for row, one in zip(rows, entries, strict=True)
    ]
    return Vocabulary(
        [one.name for one in entries],
        torch.stack([row[0] for row in mixed]),
        torch.tensor([one.novel for one in entries], dtype=torch.bool),
        teacher=teacher.fingerprint,
        prompts=prompts,
        background=embed_names(["background"], teacher, prompts)[0],
        synonyms=[one.synonyms for one in entries],
        synonym_embeddings=torch.cat([row[1:] for row in mixed]),
        sources=_sources(entries, example_weight),
    )


def vocabulary_of_rows(
    categories: Categories, rows: NDArray[Any], teacher: CLIPTeacher, prompts: str
) -> Vocabulary:
    """A vocabulary of embeddings that somebody else made with a teacher.

    Args:
        categories: C of them.
        rows: (C, D) floats, of any length; they are normalised.
        teacher: what made them; it embeds "background".
        prompts: the family for names that are added later; how `rows` were made is not known.

    Raises:
        SetupError: another shape, or values that are no finite numbers.
    """
    expected = (len(categories), teacher.embedding_dim)
    if rows.shape != expected or rows.dtype.kind != "f":
        turned = "; transpose it" if rows.shape == expected[::-1] else ""
        raise SetupError(
            [
                f"embeddings have shape {rows.shape} and type {rows.dtype}, expected floats "
                f"{expected}: a row per name, as wide as {teacher.architecture}'s{turned}"
            ]
        )
    values = torch.from_numpy(np.ascontiguousarray(rows)).float()
    if not (values.isfinite().all() and values.norm(dim=1).min() > 0):
        raise SetupError(["embeddings hold NaN, infinity or rows of zeros"])
    return Vocabulary(
        categories.names,
        F.normalize(values, dim=1),
        torch.tensor(categories.novel, dtype=torch.bool),
        teacher=teacher.fingerprint,
        background=embed_names(["background"], teacher, prompts)[0],
    )


def _mixed(
    rows: torch.Tensor, entry: Entry, teacher: CLIPTeacher, read_image: ReadImage, weight: float
) -> torch.Tensor:
    """(W, D) unit rows of an entry's words -> the same with descriptions and examples."""
    if entry.descriptions:
        said = teacher.encode_text(list(entry.descriptions)).cpu()
        rows = F.normalize(rows + said.sum(dim=0), dim=1)
    if not entry.examples:
        return rows
    seen = torch.cat([_example_embedding(one, teacher, read_image) for one in entry.examples])
    return F.normalize((1 - weight) * rows + weight * F.normalize(seen.mean(dim=0), dim=0), dim=1)


def _example_embedding(
    example: Example, teacher: CLIPTeacher, read_image: ReadImage
) -> torch.Tensor:
    """(1, D)."""
    image = read_image(example.image)
    height, width = image.shape[:2]
    box = example.box or (0.0, 0.0, float(width), float(height))
    if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
        raise SetupError(
            [f"example {example.label}: box {list(box)} is outside of its {width} x {height} px"]
        )
    return embed_proposals(image, torch.tensor([box]), teacher)


def _sources(entries: Sequence[Entry], weight: float) -> list[dict[str, Any]] | None:
    if not any(one.descriptions or one.examples for one in entries):
        return None
    return [dict(_source(one, weight)) for one in entries]


def _source(entry: Entry, weight: float) -> Iterator[tuple[str, Any]]:
    if entry.descriptions:
        yield "descriptions", list(entry.descriptions)
    if entry.examples:
        yield (
            "examples",
            [{"sha256": one.sha256(), "box": one.box and list(one.box)} for one in entry.examples],
        )
        yield "example_weight", weight


def warn_of_long_names(names: Sequence[str], teacher: CLIPTeacher, prompts: str) -> None:
    """Says what of names is behind the text encoder's context, where it reads no further."""
    for name in names:
        longest = max(render_prompts(name, prompts), key=len)
        if cut := teacher.cut_off(longest):
            logger.warning(
                "'%s' is too long for the teacher's text encoder: '%s' of its prompt is cut off. "
                "Shorten the name",
                *(name, cut),
            )


def build_vocabulary(
    categories: Categories,
    teacher: CLIPTeacher,
    *,
    prompts: str = "vild63",
    progress: bool = False,
) -> Vocabulary:
    """Embeds the names of categories, or the mean over their synonyms, with a prompt family.

    Args:
        categories: C of them, distinct.
        teacher: its fingerprint goes into the vocabulary.
        prompts: key of `ovd_d2.clip.PROMPT_FAMILIES`.
        progress: show a progress bar.
    """
    groups = categories.synonyms or [[name] for name in categories.names]
    several = any(len(group) > 1 for group in groups)
    warn_of_long_names([name for group in groups for name in group], teacher, prompts)
    return Vocabulary(
        categories.names,
        embed_synonyms(groups, teacher, prompts, progress=progress),
        torch.tensor(categories.novel, dtype=torch.bool),
        teacher=teacher.fingerprint,
        prompts=prompts + SYNONYMS if several else prompts,
        background=embed_names(["background"], teacher, prompts)[0],
    )


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names from a UTF-8 text file, one per line; blank lines and `#` comments are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not UTF-8, holds no name, or one name twice.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"file of names not found: {file}")
    lines: dict[str, int] = {}  # name -> number of its line
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in lines:
            raise ValueError(
                f"{file}: '{name}' is on line {lines[name]} and again on line {number}; names must "
                "be distinct: remove one"
            )
        lines[name] = number
    if not lines:
        raise ValueError(f"{file} holds no name; expected one category name per line")
    return list(lines)


def prompt_family(vocabulary: Vocabulary | None, configured: str) -> str:
    """The family of prompts that new names need, to be embedded as a vocabulary's are.

    Args:
        vocabulary: what a detector was trained with; None: not at hand.
        configured: the family to take where the vocabulary names none that is known.
    """
    trained_with = "" if vocabulary is None else vocabulary.prompts.removesuffix(SYNONYMS)
    family = trained_with if trained_with in PROMPT_FAMILIES else configured
    if trained_with not in ("", configured):
        logger.warning(
            "The vocabulary was made with the prompts '%s', MODEL.OVD.TEACHER.PROMPTS is '%s': new "
            "names are embedded with '%s'.",
            *(trained_with, configured, family),
        )
    return family


def novel_flags(names: Sequence[str], novel_names: Sequence[str]) -> list[bool]:
    """Flags of the names that `novel_names` lists; ValueError for one that is not among them."""
    unknown = [name for name in novel_names if name not in set(names)]
    if unknown:
        raise ValueError(
            f"novel names that are not in the vocabulary: {', '.join(unknown[:5])}; "
            "spell them as in the list of names"
        )
    return [name in set(novel_names) for name in names]
