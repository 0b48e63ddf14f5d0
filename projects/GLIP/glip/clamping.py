"""Scores and activations that half precision can hold."""

from __future__ import annotations

from torch import Tensor

LIMIT = 50_000.0  # float16 ends at 65,504


def clamped(values: Tensor) -> Tensor:
    """Between -LIMIT and LIMIT; the gradient is 0 outside."""
    return values.clamp(-LIMIT, LIMIT)
