"""What is asked for in place of the names of small sets: a yaml or JSON file.

EgoHands/generic:                  # a folder; also of all sets below it
  hand: {suffix: " of a person"}   # category: prefix, name, suffix; the name is the category's
pothole:
  pothole: {prefix: "there are some ", name: holes, suffix: " on the road"}
Raccoon:
  raccoon: a raccoon               # another name alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ovd_d2.errors import SetupError, brief
from ovd_d2.files import read_text
from ovd_d2.projects.glip.folders.layout import FolderSet
from ovd_d2.projects.glip.prompts.detection import clean_name

Row = tuple[str, str, str, str]  # category, prefix, name, suffix, as of MODEL.GLIP.PROMPTS.PHRASES
_PARTS = ("prefix", "name", "suffix")


def read_prompts(path: Path) -> dict[str, dict[str, Any]]:
    """Folder -> category -> what is asked for, checked.

    Raises:
        SetupError: no such file, or one of another form; all that is wrong is listed.
    """
    if not path.is_file():
        raise SetupError([f"--prompts: no file at '{path}'"])
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise SetupError([f"{path}: neither yaml nor JSON ({error})"]) from error
    if problems := list(_problems(content)):
        raise SetupError([f"{path}: {one}" for one in problems])
    return dict(content)


def _problems(content: Any) -> Iterator[str]:
    if not isinstance(content, Mapping) or not all(
        isinstance(v, Mapping) for v in content.values()
    ):
        yield f"expected folders with categories below them, found {brief(content)}"
        return
    for folder, categories in content.items():
        for category, wanted in categories.items():
            parts = {"name": wanted} if isinstance(wanted, str) else wanted
            if not isinstance(parts, Mapping) or not set(parts) <= set(_PARTS):
                expected = f"a name, or some of {', '.join(_PARTS)}"
                yield f"{folder}: {category}: expected {expected}, found {brief(wanted)}"
            elif not all(isinstance(one, str) for one in (category, *parts.values())):
                yield f"{folder}: {category}: expected texts, found {brief(wanted)}: write quotes"


def rows_of(one: FolderSet, names: list[str], prompts: Mapping[str, Any]) -> list[Row]:
    """What a set is asked for, of a file's content.

    Args:
        one: the set.
        names: its categories.
        prompts: of :func:`read_prompts`.

    Raises:
        SetupError: the file has categories for it that it does not have.
    """
    rows, problems = [], []
    for folder, categories in prompts.items():
        if not one.begins_with(folder):
            continue
        for category, wanted in categories.items():
            if category not in names:
                problems.append(
                    f"--prompts: {folder} has no category '{category}'; its are {', '.join(names)}"
                )
                continue
            parts = {"name": wanted} if isinstance(wanted, str) else wanted
            name = parts.get("name", clean_name(category))
            rows.append((category, parts.get("prefix", ""), name, parts.get("suffix", "")))
    if problems:
        raise SetupError(problems)
    return rows
