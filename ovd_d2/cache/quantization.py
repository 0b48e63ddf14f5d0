"""Stored types of unit vectors: float32, float16, and int8 with one scale per row. Pure functions.

int8 is symmetric: scale = max |x| of the row / 127, stored = round(x / scale), so that
stored * scale is x up to half a scale per component. A unit row of width D moves by at most
sqrt(D) / 2 scales; decoding normalises again, which leaves the error of the direction alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ovd_d2.cache.manifest import DTYPES

INT8_MAX = 127


def encode(rows: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """The stored fields of unit rows (K, D) float32.

    Returns:
        `embeddings` (K, D) of the type `dtype` and, for int8, `scales` (K,) float32.
    """
    if dtype != "int8":
        return {"embeddings": rows.to(DTYPES[dtype])}
    scales = rows.abs().amax(dim=1) / INT8_MAX  # (K,)
    return {"embeddings": (rows / scales[:, None]).round().to(torch.int8), "scales": scales}


def decode(embeddings: torch.Tensor) -> torch.Tensor:
    """Stored rows (K, D) -> float32 unit rows (K, D) in memory of their own.

    The scales of int8 rows are not needed: a row's scale changes its length, and every row is
    brought to length 1.
    """
    rows = embeddings.to(torch.float32, copy=True)
    values = rows.numpy()
    return rows.mul_(torch.from_numpy(1.0 / np.sqrt(np.vecdot(values, values)))[:, None])


def lengths(embeddings: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """The Euclidean length of every stored row, (K,) float32: 1 up to `length_tolerance`."""
    norms = embeddings.float().norm(dim=1)
    return norms if scales is None else norms * scales


def length_tolerance(embeddings: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor | float:
    """How far rounding can move the length of a unit row: a number, or one per row for int8."""
    if scales is not None:
        return scales * (math.sqrt(embeddings.shape[1]) / 2)  # the triangle inequality
    # fp16 keeps 11 bits: a relative error of at most 2^-11 per component.
    return 2**-11 if embeddings.dtype == torch.float16 else 0.0
