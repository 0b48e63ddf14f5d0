"""What all recipes for the embeddings of proposals have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ovd_d2.clip.teacher import CLIPTeacher

# (H, W, 3) uint8 RGB on the teacher's device, and its (n, 4) windows on the CPU.
Source = tuple[torch.Tensor, torch.Tensor]


class Recipe(Protocol):
    """How the proposals of an image become embeddings; the same offline and in training.

    An image has n windows, the parts of it that get an embedding each, in pixels; `encode` takes
    the windows of one image or of many, and `combine` makes one embedding per proposal of them.
    """

    @property
    def whole_images(self) -> bool:
        """Whether the windows of an image go through the teacher together."""

    def describe(self) -> dict[str, Any]:
        """What a cache manifest says about it."""

    def problems(self, teacher: CLIPTeacher) -> list[str]:
        """Why this teacher cannot do it; empty: it can."""

    def per_pass(self, batch_size: int | None) -> int:
        """Windows in a pass of the teacher, images where they are `whole_images`.

        Args:
            batch_size: as asked for; None: the recipe's own.

        Raises:
            ValueError: it is less than 1, or more than the recipe can.
        """

    def windows(self, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(K, 4) XYXY boxes -> (n, 4) windows of an image of this size, those of a box together.

        Raises:
            ValueError: boxes with NaN or infinity.
        """

    def encode(
        self, sources: Sequence[Source], teacher: CLIPTeacher, *, fill_to: int = 0
    ) -> torch.Tensor:
        """One pass of the teacher.

        Args:
            sources: images and their windows, n in all.
            teacher: the image encoder; it gives size, mean, std and interpolation.
            fill_to: what a pass has at least, as `per_pass` counts: black ones are added, so that
                how a kernel rounds does not depend on what else is in the pass.

        Returns:
            (n, D) float32 unit rows on the teacher's device, in the order of the windows.
        """

    def combine(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, D) rows in the order of `windows` -> (K, D) unit rows."""


def checked_batch_size(batch_size: int) -> int:
    """The same.

    Raises:
        ValueError: it is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    return batch_size


def uses_amp(device: torch.device, amp: bool | None) -> bool:
    """Whether the teacher computes in bfloat16: unless `amp` says otherwise, on CUDA.

    Raises:
        ValueError: `amp` elsewhere than on CUDA.
    """
    is_cuda = device.type == "cuda"
    if amp and not is_cuda:
        raise ValueError(f"amp is for CUDA devices, the teacher runs on {device}; leave it out")
    return is_cuda if amp is None else amp


def precision(amp: bool) -> str:
    """What a manifest says of it."""
    return "bfloat16-autocast" if amp else "float32"
