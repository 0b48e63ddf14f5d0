"""Weights between student and teacher (the paper's section 3.4, after WiSE-FT)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def average_weights(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """alpha * student + (1 - alpha) * teacher, tensor by tensor.

    Args:
        student, teacher: the same names, on one device; equal values stay bit by bit. What is not
            floating-point (counts, tables of indices) is the student's.
        alpha: in [0, 1].

    Returns:
        New tensors of all names.
    """
    return {
        name: teacher[name].lerp(value, alpha) if value.is_floating_point() else value.clone()
        for name, value in student.items()
    }
