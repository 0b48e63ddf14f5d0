"""From category names to a `Vocabulary`, by a teacher's text encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ovd_d2.clip.prompts import embed_names, embed_synonyms
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.vocabulary import Vocabulary


def build_vocabulary(
    names: Sequence[str],
    teacher: CLIPTeacher,
    *,
    is_novel: Sequence[bool] | None = None,
    synonyms: Sequence[Sequence[str]] | None = None,
    prompts: str = "vild63",
    progress: bool = False,
) -> Vocabulary:
    """Embeds names with a prompt family.

    Args:
        names: C distinct category names, in the order of the data set's contiguous ids.
        teacher: its fingerprint goes into the vocabulary.
        is_novel: C flags; None means that every category is a base category.
        synonyms: C lists of what each category is called, `names` among them; None: `names` alone.
        prompts: key of `ovd_d2.clip.PROMPT_FAMILIES`.
        progress: show a progress bar.
    """
    novel = None if is_novel is None else torch.tensor(list(is_novel), dtype=torch.bool)
    groups = [[name] for name in names] if synonyms is None else synonyms
    several = any(len(group) > 1 for group in groups)
    return Vocabulary(
        names,
        embed_synonyms(groups, teacher, prompts, progress=progress),
        novel,
        teacher=teacher.fingerprint,
        prompts=f"{prompts}, synonyms" if several else prompts,
        background=embed_names(["background"], teacher, prompts)[0],
    )


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Names from a UTF-8 text file, one a line; blank lines and `#` comments are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no name.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"file of names not found: {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ValueError(f"{file} holds no name; expected one category name a line")
    return names


def novel_flags(names: Sequence[str], novel_names: Sequence[str]) -> list[bool]:
    """Flags of the names that `novel_names` lists; ValueError for one that is not among them."""
    unknown = [name for name in novel_names if name not in set(names)]
    if unknown:
        raise ValueError(
            f"novel names that are not in the vocabulary: {', '.join(unknown[:5])}; "
            "spell them as in the list of names"
        )
    return [name in set(novel_names) for name in names]
