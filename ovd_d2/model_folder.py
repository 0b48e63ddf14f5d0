"""A trained detector as a folder: everything that finding things with it needs.

config.yaml               the whole config; paths in it start at the folder
model.safetensors         the weights
vocabulary.safetensors    what it was trained with, where it has one
presence.json             how likely a name with a given score is there, where that was calibrated
preprocessing.json        how an image becomes the model's input
files/                    other files that the config names, e.g. the teacher's weights
README.md                 the model card
SHA256SUMS                of all of them, for sha256sum -c
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import nn

from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.run import load_config
from ovd_d2.engine.weights import weights_problems
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_folder, sha256_file
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.presence import load_presence
from ovd_d2.systems import system_of
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary

CONFIG, WEIGHTS, VOCABULARY = "config.yaml", "model.safetensors", "vocabulary.safetensors"
PREPROCESSING, CARD, SUMS, FILES = "preprocessing.json", "README.md", "SHA256SUMS", "files"
_WHOLE = (CONFIG, WEIGHTS, PREPROCESSING, CARD)  # what no folder is without
_TEACHER = "MODEL.OVD.TEACHER.PRETRAINED"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Card:
    """What a model card says that no file does.

    Attributes:
        licence: of the weights, as the Hugging Face hub spells it, e.g. "apache-2.0".
        metrics: name -> value, of an evaluation.
        about: a sentence or more.
    """

    licence: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    about: str = ""


def pretrained_config(
    source: str | os.PathLike[str], weights: str = "", options: Sequence[str] = ()
) -> CfgNode:
    """The config of a trained detector, `MODEL.WEIGHTS` and all other files in it.

    Args:
        source: a model folder, "owner/name" of one on the Hugging Face hub, or a config file.
        weights: a checkpoint, with a config file.
        options: config keys and their values in turn.

    Raises:
        SetupError: there is none, it is damaged, or the hub cannot be reached.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_file() or path.suffix in _YAML:
        return load_config(name, [*(["MODEL.WEIGHTS", weights] if weights else []), *options])
    if weights:
        raise SetupError([f"weights {weights} go with a config file, but {name} is none"])
    return folder_config(path if path.is_dir() else _from_hub(name), options)


def folder_config(folder: Path, options: Sequence[str] = ()) -> CfgNode:
    """The config of a model folder, with the paths of its files.

    Raises:
        SetupError: it is no model folder; a file of it is missing, cut short or another.
    """
    if problems := list(folder_problems(folder)):
        raise SetupError(problems)
    cfg = load_config(str(folder / CONFIG), options)
    cfg.MODEL.WEIGHTS = str(folder / WEIGHTS)
    if (folder / VOCABULARY).is_file():
        cfg.MODEL.OVD.VOCABULARY = str(folder / VOCABULARY)
    for key in _file_keys(cfg):
        if (value := _value(cfg, key)).startswith(f"{FILES}/"):
            cfg.merge_from_list([key, str(folder / value)])
    return cfg


def folder_problems(folder: Path) -> Iterator[str]:
    """Why this is no whole model folder."""
    missing = [name for name in (*_WHOLE, SUMS) if not (folder / name).is_file()]
    if len(missing) > len(_WHOLE) - 1:
        yield (
            f"{folder} is no model folder: it has no {', '.join(missing)}. Write one with "
            "tools/export_model.py, or give a config file with its weights"
        )
        return
    if missing:
        yield f"{folder} has no {', '.join(missing)}: copy or download the folder again"
        return
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if unnamed := [name for name in _WHOLE if name not in sums]:
        yield f"{folder / SUMS} lacks {', '.join(unnamed)}: copy or download the folder again"
    for name, digest in sums.items():
        if not (folder / name).is_file():
            yield f"{folder / name} is missing: copy or download the folder again"
        elif sha256_file(folder / name) != digest:
            yield (
                f"{folder / name} is not the file that was exported (SHA-256 differs from "
                f"{SUMS}; it is cut short or was changed): copy or download the folder again"
            )


def export_model(cfg: CfgNode, folder: Path, card: Card) -> None:
    """Writes a trained detector as a model folder, whole or not at all.

    Args:
        cfg: `MODEL.WEIGHTS` names the checkpoint.
        folder: is made; an empty one may be there.
        card: for the model card.

    Raises:
        SetupError: the weights are missing or another model's; the folder is there.
    """
    if problems := weights_problems(cfg.MODEL.WEIGHTS, needed=True):
        raise SetupError(problems)
    model = build_open_vocabulary_model(cfg)
    try:
        with atomic_folder(folder) as temporary:
            _write(temporary, cfg, model, card)
    except FileExistsError as error:
        raise SetupError([f"--output: {error}"]) from error


def push_model(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a model folder to the Hugging Face hub; returns its address.

    Args:
        folder: a model folder.
        name: "owner/name"; it is made where it is not there.
        private: whether others may not see it, if it is made.

    Raises:
        SetupError: no model folder; the hub cannot be reached or refuses.
    """
    if problems := list(folder_problems(folder)):
        raise SetupError(problems)
    try:
        made = huggingface_hub.create_repo(name, private=private, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # noqa: BLE001 (of the hub, of its client, of the network)
        raise SetupError(
            [
                f"--push {name}: {_first_line(error)}. {folder} is whole: push it later with "
                f"'hf upload {name} {folder}'"
            ]
        ) from error
    return str(made)


def _from_hub(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise SetupError(
            [f"no model folder and no config file at '{name}', and no owner/name of the hub either"]
        )
    try:
        return Path(huggingface_hub.snapshot_download(name))
    except Exception as error:  # noqa: BLE001 (of the hub, of its client, of the network)
        raise SetupError(
            [
                f"'{name}' is no folder here, and cannot be had from the Hugging Face hub "
                f"({_first_line(error)}): download it where there is a network ('hf download "
                f"{name} --local-dir FOLDER'), and give the folder"
            ]
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__


def _write(folder: Path, cfg: CfgNode, model: nn.Module, card: Card) -> None:
    safetensors.torch.save_file(_weights(model), folder / WEIGHTS, metadata={"format": "pt"})
    part = open_vocabulary_part(model)
    vocabulary = configured_vocabulary(cfg) or (None if part is None else part.vocabulary)
    if vocabulary is not None:
        vocabulary.save(folder / VOCABULARY)
    if (presence := load_presence(cfg.MODEL.WEIGHTS)) is not None:
        presence.save(folder / WEIGHTS)
    (folder / CONFIG).write_text(_portable(cfg, folder).dump(), encoding="utf-8")
    content = json.dumps(preprocessing(cfg), indent=2)
    (folder / PREPROCESSING).write_text(content + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(cfg, card, vocabulary, folder), encoding="utf-8")
    (folder / SUMS).write_text(_sums(folder), encoding="utf-8")


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of parameters and buffers; the vocabulary has a file of its own."""
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
        if name.rpartition(".")[2] != "vocabulary"
    }


def _file_keys(cfg: CfgNode) -> tuple[str, ...]:
    system = system_of(cfg)
    return (_TEACHER, *(() if system is None else system.file_keys))


def _value(cfg: CfgNode, key: str) -> str:
    return str(reduce(getattr, key.split("."), cfg))


def _portable(cfg: CfgNode, folder: Path) -> CfgNode:
    """The config with no path of this machine; files that it names are copied into the folder."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.MODEL.OVD.VOCABULARY = ""
    cfg.OUTPUT_DIR = "./output"
    for key in _file_keys(cfg):
        value = _value(cfg, key)
        local = Path(PathManager.get_local_path(value) if "://" in value else value)
        if not value or not local.exists():
            continue  # a name of a library
        kept = f"{FILES}/{key.rpartition('.')[2].lower()}{local.suffix}"
        (folder / FILES).mkdir(exist_ok=True)
        copy = shutil.copytree if local.is_dir() else shutil.copyfile
        copy(local, folder / kept)
        cfg.merge_from_list([key, kept])
    return cfg


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """How an image becomes the model's input; sizes in pixels, mean and deviation of 0 to 255."""
    return {
        "channels": cfg.INPUT.FORMAT,
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge_at_most": cfg.INPUT.MAX_SIZE_TEST,
        "resize": cfg.INPUT.RESIZE,
        "size_rule": cfg.INPUT.SIZE_RULE,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
    }


def _sums(folder: Path) -> str:
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    return "".join(f"{sha256_file(one)}  {one.relative_to(folder).as_posix()}\n" for one in files)


def _card(cfg: CfgNode, card: Card, vocabulary: Vocabulary | None, folder: Path) -> str:
    system = system_of(cfg)
    kind = cfg.MODEL.META_ARCHITECTURE if system is None else system.name
    parts = [
        "---",
        f"license: {card.licence}",
        "library_name: ovd_d2",
        "pipeline_tag: zero-shot-object-detection",
        "---",
        f"\n# {kind}, an open-vocabulary detector\n",
        *([f"{card.about}\n"] if card.about else []),
        "```python\nfrom ovd_d2.predictor import OpenVocabularyPredictor\n",
        'predictor = OpenVocabularyPredictor.from_pretrained("this folder, or owner/name")',
        'print(predictor("image.jpg", ["red car", "unicycle"]).to_pipeline())\n```\n',
        f"## Data\n\n{_data(cfg)}\n\n## Vocabulary\n\n{_words(vocabulary)}\n",
        f"## Licence\n\n{card.licence}\n",
        "## Metrics\n",
        *(f"- {name}: {value:.4g}" for name, value in sorted(card.metrics.items())),
        *([] if card.metrics else ["None were recorded."]),
        f"\n## Files\n\nSHA-256:\n\n```\n{_sums(folder)}```\n",
    ]
    return "\n".join(parts)


def _data(cfg: CfgNode) -> str:
    names = list(cfg.DATASETS.TRAIN)
    register_data_sets(names)
    lines = []
    for name in names:
        file = MetadataCatalog.get(name).get("json_file", None)
        local = None if file is None else Path(PathManager.get_local_path(file))
        there = local is not None and local.is_file()
        digest = f", annotations SHA-256 {sha256_file(local)}" if there and local else ""
        lines.append(f"- trained on {name}{digest}")
    return "\n".join(lines) or "The config names no training set."


def _words(vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return "None; names are given with each call."
    novel = int(vocabulary.novel.sum())
    teacher = vocabulary.teacher or "unknown"
    return (
        f"{len(vocabulary)} categories, {novel} of them novel: without boxes in training. "
        f"Teacher: {teacher}; prompts: {vocabulary.prompts or 'unknown'}."
    )
