"""Data sets of one's own, named in one yaml file: COCO-format JSONs and their base categories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

VARIABLE = "OVD_DATASETS"
REQUIRED = {"json_file": str, "image_root": str}
OPTIONAL = {"base": list}


def register_own(path: str | os.PathLike[str]) -> list[str]:
    """Registers every data set of a yaml file and returns their names.

    The file maps a name to `json_file` (COCO format), `image_root` and, where categories are held
    out, `base`: the list of names that have boxes in training; every other name of the JSON is
    novel. Relative paths start at the yaml file's folder. The JSONs are read when they are used.

    Raises:
        FileNotFoundError: no such yaml file.
        ValueError: every entry that is not as described, or whose name is taken.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{VARIABLE}: no file at {file.absolute()}")
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not a yaml file ({error})") from error
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{file}: expected 'name: {{json_file: ..., image_root: ...}}' entries")
    problems = [problem for name, entry in entries.items() for problem in _problems(name, entry)]
    if problems:
        raise ValueError("\n  ".join([f"{file}:", *problems]))
    for name, entry in entries.items():
        metadata = {"base_classes": [str(one) for one in entry["base"]]} if "base" in entry else {}
        paths = (str(file.absolute().parent / entry[key]) for key in REQUIRED)
        register_coco_instances(name, metadata, *paths)
    return list(entries)


def register_from_environment() -> None:
    """Registers what the environment variable `OVD_DATASETS` names, if it is set."""
    if os.environ.get(VARIABLE):
        register_own(os.environ[VARIABLE])


def _problems(name: Any, entry: Any) -> list[str]:
    if not isinstance(name, str) or not isinstance(entry, dict):
        return [f"{name}: expected a name with json_file and image_root below it, got {entry!r}"]
    problems = []
    if name in DatasetCatalog:
        problems.append(f"{name}: a data set of this name is registered already; choose another")
    known = {**REQUIRED, **OPTIONAL}
    for key in sorted(set(entry) - set(known), key=str):
        problems.append(f"{name}: unknown key '{key}'; known: {', '.join(known)}")
    for key, kind in known.items():
        if key in entry and not isinstance(entry[key], kind):
            problems.append(f"{name}: {key} must be a {kind.__name__}, got {entry[key]!r}")
        elif key in REQUIRED and key not in entry:
            problems.append(f"{name}: {key} is missing")
    return problems
