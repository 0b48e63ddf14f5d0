"""Loading a teacher by name, with every failure as one message."""

from __future__ import annotations

import open_clip
import torch
from detectron2.config import CfgNode

from ovd_d2.clip.shipped import shipped_weights
from ovd_d2.clip.teacher import SCHEMAS, CLIPTeacher
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary


def configured_teacher(cfg: CfgNode, *, device: str) -> CLIPTeacher:
    """`MODEL.OVD.TEACHER` on a device; raises SetupError as :func:`load_teacher`."""
    teacher = cfg.MODEL.OVD.TEACHER
    key = "MODEL.OVD.TEACHER"
    return load_teacher(teacher.ARCHITECTURE, teacher.PRETRAINED, device, key=key)


def configured_image_size(cfg: CfgNode) -> int:
    """Side in pixels of the square that `MODEL.OVD.TEACHER` takes; weights are read only where an
    architecture's name does not tell.

    Raises:
        SetupError: as :func:`load_teacher`; the teacher takes no squares.
    """
    name = cfg.MODEL.OVD.TEACHER.ARCHITECTURE
    shipped_weights(name)  # open_clip knows it now
    known = None if name.startswith(SCHEMAS) else open_clip.get_model_config(name.replace("/", "-"))
    if known is None:
        size = configured_teacher(cfg, device="cpu").image_size
    else:
        side = known["vision_cfg"]["image_size"]
        size = (side, side) if isinstance(side, int) else tuple(side)
    if size[0] != size[1]:
        raise SetupError([f"MODEL.OVD.TEACHER {name} takes {size} images, expected squares"])
    return size[0]


def teacher_problems(teacher: CLIPTeacher, vocabulary: Vocabulary | None, name: str) -> list[str]:
    """Whether `MODEL.OVD.TEACHER` embedded a vocabulary, as far as that says; at most one line.

    Args:
        teacher: what the config names.
        vocabulary: None: not at hand.
        name: of the vocabulary, for the message.
    """
    if vocabulary is None or vocabulary.teacher in ("", teacher.fingerprint):
        return []
    return [
        f"MODEL.OVD.TEACHER is {teacher.fingerprint}, but {name} was made with "
        f"{vocabulary.teacher}: their embeddings do not compare; name that teacher"
    ]


def load_teacher(
    architecture: str,
    pretrained: str,
    device: str | torch.device = "cpu",
    *,
    key: str = "teacher",
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
