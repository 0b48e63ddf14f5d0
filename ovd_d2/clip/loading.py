"""Loading a teacher by name, with every failure as one message."""

from __future__ import annotations

import torch

from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.errors import SetupError


def load_teacher(
    architecture: str,
    pretrained: str,
    device: str | torch.device = "cpu",
    *,
    key: str = "MODEL.OVD.TEACHER",
) -> CLIPTeacher:
    """A teacher; the state of PyTorch's random numbers is afterwards as it was.

    open_clip draws initial weights before it loads the real ones: without care a training with the
    same seed would take another course online than with a cache.

    Args:
        architecture, pretrained, device: as for `CLIPTeacher.from_open_clip`.
        key: what names the teacher, for the message: a config key or an option of a tool.

    Raises:
        SetupError: unknown architecture or tag; a file that is missing, damaged or of another
            architecture; weights that are not here and cannot be downloaded; a library that the
            architecture needs and that is not installed.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # the weights are drawn on the CPU
            return CLIPTeacher.from_open_clip(architecture, pretrained, device=device)
    except (OSError, ValueError, ImportError) as error:
        raise SetupError([f"{key}: {error}"]) from error
