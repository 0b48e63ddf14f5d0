"""From categories to a `Vocabulary`, by a teacher's text encoder."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ovd_d2.clip.prompts import PROMPT_FAMILIES, embed_names, embed_synonyms
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.files import read_text
from ovd_d2.vocabulary import Categories, Vocabulary

logger = logging.getLogger(__name__)

SYNONYMS = ", synonyms"  # after the family's name, where a vocabulary averages over synonyms


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
