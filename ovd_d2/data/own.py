"""Data sets of one's own, named in one yaml file: COCO-format JSONs and their base categories."""

from __future__ import annotations

import difflib
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.coco_json import register_coco_json
from ovd_d2.errors import SetupError, brief
from ovd_d2.files import read_text

VARIABLE = "OVD_DATASETS"
CONFIG_KEY = "DATASETS.OWN"
REQUIRED = {"json_file": str, "image_root": str}
OPTIONAL = {"base": list, "evaluator_type": str}
EXPECTED = "'name: {json_file: ..., image_root: ...}' entries"

_registered_from: str | None = None  # the value of OVD_DATASETS that has been registered


def register_own(path: str | os.PathLike[str]) -> list[str]:
    """Registers every data set of a yaml file and returns their names.

    The file maps a name to `json_file` (COCO format), `image_root` and, where categories are held
    out, `base`: the list of names that have boxes in training; every other name of the JSON is
    novel. `evaluator_type` says how it is evaluated, where not as COCO. Relative paths start at the
    yaml file's folder, `~` is the home folder. The JSONs are read when they are used. The metadata
    field `own_file` is the yaml file's path.

    Raises:
        SetupError: no such file, not yaml, and every entry that is not as described or whose name
            is taken. Nothing is registered then.
    """
    file = Path(path).expanduser().absolute()
    entries = _read(file)
    problems = [f"{file}: {one}" for key in entries for one in _problems(key, entries[key])]
    if problems:
        raise SetupError(problems)
    for name, entry in entries.items():
        metadata: dict[str, Any] = {"own_file": str(file)}
        if "base" in entry:
            metadata["base_classes"] = [_name(one) for one in entry["base"]]
        if "evaluator_type" in entry:
            metadata["evaluator_type"] = entry["evaluator_type"]
        json_file, image_root = (_absolute(entry[key], file.parent) for key in REQUIRED)
        register_coco_json(name, json_file, image_root, **metadata)
    return list(entries)


def register_from_environment() -> None:
    """Registers what the environment variable `OVD_DATASETS` names, if it is set; once.

    Raises:
        SetupError: see :func:`register_own`.
    """
    global _registered_from
    path = os.environ.get(VARIABLE)
    if not path or path == _registered_from:
        return
    try:
        register_own(path)
    except SetupError as error:
        raise SetupError([f"{VARIABLE}: {problem}" for problem in error.problems]) from error
    _registered_from = path


def register_configured(path: str) -> None:
    """Registers what the yaml file of a config names, once per process.

    A file that is not there is left to the checks of the config: another step may yet write it.

    Raises:
        SetupError: see :func:`register_own`.
    """
    if not path or not Path(path).expanduser().is_file():
        return
    file = str(Path(path).expanduser().absolute())
    taken = (MetadataCatalog.get(name).get("own_file", None) for name in DatasetCatalog)
    if file in taken:
        return
    try:
        register_own(file)
    except SetupError as error:
        raise SetupError([f"{CONFIG_KEY}: {problem}" for problem in error.problems]) from error


@dataclass(frozen=True)
class _NotText:
    """A plain scalar that yaml reads as something other than text."""

    source: str
    kind: str
    value: Any

    def __repr__(self) -> str:
        return self.source

    @property
    def is_unchanged_number(self) -> bool:
        """Whether the number reads as it is written, as 7 does and 007 does not."""
        return self.kind == "a number" and str(self.value) == self.source

    def problem(self) -> str:
        """Says what yaml made of it and how to write it."""
        written = repr(self.source) if self.source else "a name in quotes"
        return f"yaml reads `{self.source}` as {self.kind}; write {written}"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses equal keys and keeps what is not text as it is written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"'{key.value}' is there a second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return dict(super().construct_mapping(node, deep))


def _not_text(loader: _Loader, node: yaml.ScalarNode, *, kind: str, reader: Any) -> _NotText:
    return _NotText(node.value, kind, reader(loader, node))


for _tag, _kind in {
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "null": "nothing (null)",
    "timestamp": "a date",
}.items():
    _full = f"tag:yaml.org,2002:{_tag}"
    _reader = yaml.SafeLoader.yaml_constructors[_full]
    _Loader.add_constructor(_full, partial(_not_text, kind=_kind, reader=_reader))


def _read(file: Path) -> dict[Any, Any]:
    """The entries of the file, as yaml has them."""
    if not file.is_file():
        raise SetupError([f"no file at {file}"])
    try:
        # _Loader is a SafeLoader: it builds plain values only
        entries = yaml.load(read_text(file), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise SetupError([f"{file}: not a yaml file ({_said_by(error)})"]) from error
    except (OSError, ValueError) as error:  # not UTF-8, a date such as 2020-13-45, no permission
        said = str(error)
        raise SetupError([said if str(file) in said else f"{file}: {said}"]) from error
    if not isinstance(entries, dict) or not entries:
        found = "an empty file" if _is_null(entries) else _short(entries)
        raise SetupError([f"{file}: expected {EXPECTED}, found {found}"])
    return entries


def _said_by(error: Exception) -> str:
    """One line: yaml's own messages have several, with a drawing of the place."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{hint}"


def _problems(name: Any, entry: Any) -> Iterator[str]:
    if isinstance(name, _NotText):
        yield f"{name}: as the name of a data set {name.problem()}"
    elif not isinstance(name, str) or not isinstance(entry, dict):
        yield f"{name}: expected json_file and image_root below the name, found {_short(entry)}"
    else:
        if name in DatasetCatalog:
            yield f"{name}: a data set of this name is registered already; choose another name"
        yield from (f"{name}: {problem}" for problem in _key_problems(entry))
        yield from (f"{name}: {problem}" for problem in _value_problems(entry))


def _key_problems(entry: dict[Any, Any]) -> Iterator[str]:
    known = [*REQUIRED, *OPTIONAL]
    missing = [key for key in REQUIRED if key not in entry]
    for key in sorted(set(entry) - set(known), key=str):
        close = difflib.get_close_matches(str(key), [k for k in known if k not in entry], n=1)
        if close:
            missing = [one for one in missing if one != close[0]]  # said by this very problem
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        yield f"unknown key '{key}'; {hint}"
    yield from (f"{key} is missing" for key in missing)


def _value_problems(entry: dict[Any, Any]) -> Iterator[str]:
    for key, kind in {**REQUIRED, **OPTIONAL}.items():
        value = entry.get(key, kind())
        if isinstance(value, _NotText) and kind is str:
            yield f"{key}: {value.problem()}"
        elif not isinstance(value, kind):
            expected = "text" if kind is str else "a list of names, [ant, bee]"
            yield f"{key}: expected {expected}, found {_short(value)}"
        elif kind is list:
            for one in value:
                if isinstance(one, _NotText) and not one.is_unchanged_number:
                    yield f"{key}: {one.problem()}"
                elif not isinstance(one, str | _NotText):
                    yield f"{key}: expected names, found {_short(one)} among them"


def _name(entry: str | _NotText) -> str:
    return entry.source if isinstance(entry, _NotText) else entry


def _absolute(path: str, folder: Path) -> str:
    """The path from the yaml file's folder; PathManager's prefixes (`datasets://`) stay."""
    return path if "://" in path else str(folder / os.path.expanduser(path))


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, _NotText) and value.value is None)


def _short(value: Any) -> str:
    return "nothing" if _is_null(value) else textwrap.shorten(brief(value), 100)
