"""Random numbers that depend on where a training is, not on how it came there."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def mixed_seed(*key: int) -> int:
    """64 bits from whole numbers >= 0; keys that differ in one place give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_generators(*key: int, devices: bool) -> None:
    """Seeds the generators of random, NumPy and torch.

    Args:
        key: whole numbers >= 0, e.g. seed, rank and iteration.
        devices: also torch's generators on GPUs.
    """
    seed = mixed_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """The CPU's generators of random, NumPy and torch are afterwards as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
