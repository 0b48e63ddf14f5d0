"""The loss of the self-distillation: pure functions of tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def distillation_distances(student: Tensor, teacher: Tensor) -> Tensor:
    """(K, D) features of any length -> (K,) 1 - cosine. A row of zeros has distance 1."""
    cosines = (F.normalize(student.float(), dim=1) * F.normalize(teacher.float(), dim=1)).sum(dim=1)
    return 1 - cosines


def joint_mean(values: Tensor) -> Tensor:
    """The mean over the values of all processes, as far as gradients are concerned.

    `DistributedDataParallel` averages gradients over processes, whatever number of values each of
    them has. The sum here over the mean number of values is therefore a loss whose gradients,
    averaged, are those of one process with all values; the average of the losses is their mean.
    Without gradient, and in one process, the mean of the own values.

    Args:
        values: (K,); at least one among all processes.

    Returns:
        A scalar.
    """
    if not (torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()):
        return values.mean()
    count = torch.tensor(float(len(values)), device=values.device)
    dist.all_reduce(count)
    return values.sum() * (dist.get_world_size() / count)
