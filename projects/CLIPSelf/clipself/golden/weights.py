"""The random weights of the golden numbers, made again from their names."""

from __future__ import annotations

import csv
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovd_d2.clip.loading import load_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.clip.untrained import untrained_model
from ovd_d2.golden import GoldenFolder

_CONSTANTS = {"logit_scale": math.log(1 / 0.07), "detect_temperature": 50.0}
_POSITIONS = ("cls_token", "pos_embed", "class_embedding", "positional_embedding")
_NOT_DRAWN = ("freqs_cos", "freqs_sin", "num_batches_tracked", "all_embeddings")


def key_file(name: str) -> str:
    """Where a checkpoint's list of keys is in the folder."""
    return f"keys/{name}.tsv"


def key_shapes(folder: GoldenFolder, name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a checkpoint, out of `keys/NAME.tsv`; without keys that hold no weights."""
    with (folder.path / key_file(name)).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    shapes = {row["name"]: row["shape"] for row in rows}
    return {
        key: () if shape == "scalar" else tuple(int(one) for one in shape.split("x"))
        for key, shape in shapes.items()
        if key.rpartition(".")[2] not in _NOT_DRAWN
    }


def random_weights(
    folder: GoldenFolder, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Each tensor from its name alone, float32 (README of the folder, section 1)."""
    return {key: random_weight(folder, key, shape) for key, shape in shapes.items()}


def random_weight(folder: GoldenFolder, key: str, shape: tuple[int, ...]) -> Tensor:
    """One of them."""
    leaf = key.rpartition(".")[2]
    if leaf in _CONSTANTS:
        return torch.full(shape, _CONSTANTS[leaf])
    drawn = folder.random(key, shape)
    return torch.from_numpy(np.asarray(_scaled(key, leaf, drawn), dtype=np.float32))


def _scaled(key: str, leaf: str, drawn: np.ndarray) -> np.ndarray:
    shape = drawn.shape
    if leaf == "running_mean":
        return 0.1 * drawn
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(drawn)
    if leaf in _POSITIONS or key.endswith("token_embedding.weight"):
        return 0.5 * drawn
    if len(shape) == 1 and leaf == "weight":
        return 1 + 0.1 * drawn
    if len(shape) <= 1:
        return 0.02 * drawn
    outputs_first = leaf in ("proj", "text_projection") or key.endswith("upsample.weight")
    if outputs_first or "interpolate" in key:
        return drawn / math.sqrt(shape[0])
    near = 0.1 if key.endswith(("rpn_cls.weight", "rpn_reg.weight")) else 1.0
    return near * drawn / math.sqrt(math.prod(shape[1:]))


def random_image(folder: GoldenFolder, name: str, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB from a name (section 2)."""
    seed = zlib.crc32((folder.instance["salt"] + name).encode())
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@contextmanager
def checkpoint(state: Mapping[str, Tensor]) -> Iterator[Path]:
    """A file with a state dict, in the way in which a user has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.pt")
        torch.save({"state_dict": dict(state)}, path)
        yield path


def golden_teacher(folder: GoldenFolder, name: str, architecture: str) -> CLIPTeacher:
    """A teacher with the weights of `keys/NAME.tsv`, loaded from a file.

    The text tower of a list that has none is drawn as well, under open_clip's names.
    """
    own = untrained_model(architecture, "meta").state_dict()
    rest = {key: tuple(one.shape) for key, one in own.items() if not key.startswith("visual.")}
    shapes = {**rest, **key_shapes(folder, name)}
    with checkpoint(random_weights(folder, shapes)) as path:
        return load_teacher(architecture, os.fspath(path))
