"""Comparing this package with reference numbers of another implementation, file by file.

A folder of golden numbers has safetensors / JSON files whose inputs and weights are random, but can
be made again from their names (:func:`random_numbers`). What differs between folders of one layout,
the salt of the names first, is in an `instance.json`, or in the JSON files of the cases. A system
lists in its module (`System.golden`) the parts that it compares (:class:`Part`);
`tools/check_golden.py` prints them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovd_d2.errors import SetupError

# (config file of this repository, KEY VALUE pairs) -> the model it builds, in eval mode; any kind
# of model, so that its parts have no types here
Build = Callable[[str, Sequence[str]], Any]


INSTANCE = "instance.json"  # not every layout has one

# of one tensor: its name, its difference, the tolerance
Found = Iterator[tuple[str, float, float]]


@dataclass(frozen=True)
class Comparison:
    """One tensor (or count) beside its reference.

    Attributes:
        file: the reference is in.
        name: of the tensor there.
        difference: the largest absolute one, or another measure that `name` says.
        tolerance: that is allowed.
    """

    file: str
    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """NaN is not."""
        return self.difference <= self.tolerance


class GoldenFolder:
    """The files of one folder, and what they were made from.

    Attributes:
        path: of the folder.
        build: makes the models that are compared.
    """

    def __init__(self, path: str | Path, build: Build) -> None:
        """
        Raises:
            SetupError: there is no such folder, or its `instance.json` cannot be read.
        """
        self.path = Path(path)
        self.build = build
        if not self.path.is_dir():
            raise SetupError([f"no such folder: {self.path}"])
        if self.has(INSTANCE):
            _ = self.instance  # a damaged one is told before anything is compared

    @cached_property
    def instance(self) -> dict[str, Any]:
        """What differs between folders of one layout."""
        return self.json(INSTANCE)

    def has(self, file: str) -> bool:
        return (self.path / file).is_file()

    def tensors(self, file: str) -> dict[str, Tensor]:
        """All tensors of a safetensors file."""
        try:
            return load_file(self.path / file)
        except (OSError, SafetensorError) as error:
            raise SetupError(
                [f"{self.path / file} cannot be read as safetensors: {error}"]
            ) from error

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file, an object."""
        path = self.path / file
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SetupError([f"{path} cannot be read as JSON: {error}"]) from error

    def random(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """Standard normal numbers, float64, that depend on the name and the instance's salt."""
        return random_numbers(self.instance["salt"] + name, shape)

    def input(self, name: str, shape: Sequence[int], scale: float = 1.0) -> Tensor:
        """`scale` times random numbers, float32."""
        return torch.from_numpy((scale * self.random(f"input.{name}", shape)).astype(np.float32))


@dataclass(frozen=True)
class Part:
    """A comparison, and the files without which it cannot be made.

    Attributes:
        name: unlike those of the system's other parts.
        files: all that it reads, by their paths in the folder; the first has the reference numbers.
        compare: (folder, first file) -> its tensors.
    """

    name: str
    files: tuple[str, ...]
    compare: Callable[[GoldenFolder, str], Found]

    def missing(self, folder: GoldenFolder) -> str | None:
        """The first of its files that the folder does not have."""
        return next((file for file in self.files if not folder.has(file)), None)

    def comparisons(self, folder: GoldenFolder) -> Iterator[Comparison]:
        """
        Args:
            folder: with all of its files.

        Raises:
            SetupError: a file cannot be read.
        """
        file = self.files[0]
        return (Comparison(file, *one) for one in self.compare(folder, file))


def random_numbers(name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normal numbers, float64, that depend on the name alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(tuple(shape))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; infinity where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over that of `theirs`; infinity where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def unmatched_boxes(
    ours: Tensor, theirs: Tensor, classes: tuple[Tensor, Tensor] | None, within: float
) -> int:
    """How many of `theirs` (M, 4) have no box of `ours` (N, 4), of the same class, this near.

    Args:
        ours, theirs: in any order; each of ours stands for any number of theirs.
        classes: (N,) and (M,), or None where there are none.
        within: pixels, of every coordinate.
    """
    apart = torch.cdist(theirs.double(), ours.double(), p=float("inf"))  # (M, N)
    if classes is not None:
        apart[classes[1][:, None] != classes[0][None]] = torch.inf
    return int((apart.amin(dim=1) > within).sum())
