"""The random weights of the golden numbers, made again from their names (its README)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.golden import GoldenFolder, random_numbers

_COMPUTED = ("relative_position_index", "position_ids", "token_type_ids")  # buffers
_ENDINGS = {
    "head.bias0": (-2.0, 0.1),
    "head.log_scale": (0.0, 0.1),
    "head.bias_lang": (0.0, 0.5),
}
_LEAVES = {
    "scale": (1.0, 0.1),
    "gamma_v": (0.0, 0.2),
    "gamma_l": (0.0, 0.2),
    "relative_position_bias_table": (0.0, 0.5),
}
# Ending of a weight's name -> factor of 1 / sqrt(fan in); the first that fits.
_FACTORS = {
    ".offset.weight": 0.5,
    "rpn.head.bbox_pred.weight": 3.0,
    "rpn.head.centerness.weight": 3.0,
    ".relu.fc.2.weight": 4.0,
    ".attention.output.dense.weight": 0.3,
    ".output.dense.weight": 0.5,
    ".query.weight": 2.0,
    ".key.weight": 2.0,
}


def key_file(name: str) -> str:
    """The list of a checkpoint's keys."""
    return f"keys_{name}.json"


def keys(folder: GoldenFolder, name: str) -> dict[str, Any]:
    """Official key -> what its list says of it."""
    return folder.json(key_file(name))


def shapes(folder: GoldenFolder, name: str) -> dict[str, tuple[int, ...]]:
    """Official key, without the prefix, -> its shape."""
    return {
        key: tuple(one["shape"] if isinstance(one, dict) else one)
        for key, one in keys(folder, name).items()
    }


def random_weights(shapes: Mapping[str, tuple[int, ...]], salt: str) -> dict[str, Tensor]:
    """Each drawn tensor from its name alone, float32; computed ones are not among them."""
    return {
        name: torch.from_numpy(drawn(name, shape, salt))
        for name, shape in shapes.items()
        if not is_computed(name)
    }


def is_computed(name: str) -> bool:
    """Whether it is a buffer that a model computes by itself."""
    return name.rpartition(".")[2] in _COMPUTED or "anchor_generator" in name


def drawn(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    """One of them."""
    mean, std = mean_and_std(name, shape)
    return (mean + std * random_numbers(salt + name, shape)).astype(np.float32)


def mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Of the tensor of this name."""
    leaf = name.rpartition(".")[2]
    for ending, found in _ENDINGS.items():
        if name.endswith(ending):
            return found
    if leaf in _LEAVES:
        return _LEAVES[leaf]
    if "embeddings" in name and len(shape) == 2:
        return 0.0, 0.02
    if leaf == "weight" and len(shape) == 1:
        return 1.0, 0.1
    if leaf == "bias":
        return 0.0, 0.05
    if "dot_product_projection_text" in name:
        return 0.0, 0.5
    factor = next((k for ending, k in _FACTORS.items() if name.endswith(ending)), 1.0)
    return 0.0, factor / math.sqrt(math.prod(shape[1:]))


def random_image(name: str, height: int, width: int, salt: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB: coarse cells of 32 pixels and fine noise."""
    cells = (math.ceil(height / 32), math.ceil(width / 32), 3)
    coarse = random_numbers(f"{salt}{name}.coarse", cells)
    coarse = coarse.repeat(32, axis=0).repeat(32, axis=1)[:height, :width]
    fine = random_numbers(f"{salt}{name}.fine", (height, width, 3))
    return np.clip(np.rint(127.5 + 60 * coarse + 20 * fine), 0, 255).astype(np.uint8)
