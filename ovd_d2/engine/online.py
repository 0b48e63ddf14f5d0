"""The teacher inside training: loading it, and whether it fits vocabulary and proposals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from ovd_d2.cache import ProposalStore, coverage_problems
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.online import Embed


def embedder(teacher: CLIPTeacher, *, batch_size: int = 256, resize: str = "open_clip") -> Embed:
    """What a cache built with this teacher and this `resize` would hold, image by image."""
    return partial(embed_proposals, teacher=teacher, batch_size=batch_size, resize=resize)


def online_problems(
    proposals: ProposalStore | None,
    teacher: CLIPTeacher | None,
    *,
    teacher_fingerprint: str | None,
    embedding_dim: int,
    images: Collection[Mapping[str, Any]],
) -> list[str]:
    """Why this teacher cannot embed these proposals for a training, all reasons at once.

    Args:
        proposals, teacher: None where it could not be opened, so that nothing is known of it.
        teacher_fingerprint: of the teacher that embedded the vocabulary; None: not known.
        embedding_dim: width of the vocabulary's embeddings.
        images: every image the training will ask for (file_name, image_id, height, width).
    """
    problems = []
    if teacher is not None and teacher_fingerprint not in (None, teacher.fingerprint):
        problems.append(
            f"the online teacher is '{teacher.fingerprint}', but the vocabulary was made with "
            f"'{teacher_fingerprint}'. Student and text must share one teacher: name the "
            "vocabulary's, or build the vocabulary again with tools/build_vocabulary.py"
        )
    if teacher is not None and teacher.embedding_dim != embedding_dim:
        problems.append(
            f"the online teacher's embeddings are {teacher.embedding_dim} wide, expected "
            f"{embedding_dim}: use one teacher for vocabulary and proposals"
        )
    if proposals is not None:
        fix = "run tools/extract_proposals.py for the training data set"
        problems += coverage_problems(proposals, images, fix)
    return problems
