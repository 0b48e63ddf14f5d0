"""Weights between those before and after a training (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def average_weights(
    after: Mapping[str, Tensor], before: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """alpha * after + (1 - alpha) * before, tensor by tensor.

    Args:
        after, before: the same names, on one device; equal values stay bit by bit. What is not
            floating-point (counts, tables of indices) is that of `after`.
        alpha: in [0, 1].

    Returns:
        New tensors of all names.
    """
    return {
        name: before[name].lerp(value, alpha) if value.is_floating_point() else value.clone()
        for name, value in after.items()
    }
