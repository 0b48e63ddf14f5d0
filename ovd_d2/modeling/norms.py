"""Momentum, eps and variance of a model's batch norms, for which Detectron2 has no keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
BEFORE = "_running_var_before"


def set_batch_norms(
    model: nn.Module, *, momentum: float, eps: float, biased_variance: bool
) -> None:
    """Configures every batch norm of `model` that is not frozen, in place.

    Args:
        model: names and types of its modules stay.
        momentum: share of the batch in the running statistics; TensorFlow says 1 - momentum.
        eps: added to variances.
        biased_variance: the running variance is that of the batch, as in TensorFlow, instead of
            PyTorch's n / (n - 1) of it.
    """
    for module in model.modules():
        if not isinstance(module, BATCH_NORMS):
            continue
        module.momentum, module.eps = momentum, eps
        if biased_variance:
            module.register_forward_pre_hook(_remember_variance)
            module.register_forward_hook(_take_biased_variance)


def _remember_variance(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    if norm.training:
        setattr(norm, BEFORE, norm.running_var.clone())


@torch.no_grad()
def _take_biased_variance(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    if not norm.training:
        return
    count = _values_per_channel(norm, inputs[0])
    old = (1 - norm.momentum) * getattr(norm, BEFORE)
    # `.data`: the backward pass of the norm holds the buffer, but does not read it.
    norm.running_var.data.copy_(old + (norm.running_var - old) * (count - 1) / count)


def _values_per_channel(norm: nn.Module, x: Tensor) -> Tensor:
    """n of the variance: over all processes for a synchronised norm."""
    count = x.new_tensor(x.numel() / x.shape[1], dtype=torch.float32)
    if isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, group=norm.process_group)
    return count.clamp(min=1)
