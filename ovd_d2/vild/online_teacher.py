"""The teacher inside training, in place of a cache."""

from __future__ import annotations

from functools import partial

from ovd_d2.clip.crops import VILD_RECIPE, CropRecipe, embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.online import Embed, OnlineTeacherLoader
from ovd_d2.systems import Batches, SetupContext


class OnlineTeacher:
    """Wraps a training loader, so that each batch gets the embeddings that a cache would hold.

    The mapper must bring proposals along (:class:`ovd_d2.data.passengers.ProposalsToEmbed`).
    """

    def __init__(
        self, teacher: CLIPTeacher, *, batch_size: int = 256, recipe: CropRecipe = VILD_RECIPE
    ) -> None:
        """
        Args:
            teacher: the one that embedded the vocabulary.
            batch_size: crops in one pass of the teacher; the result does not depend on it.
            recipe: how crops become embeddings.
        """
        self.teacher = teacher
        self.embed: Embed = partial(
            embed_proposals, teacher=teacher, recipe=recipe, batch_size=batch_size
        )

    def __call__(self, loader: Batches) -> OnlineTeacherLoader:
        return OnlineTeacherLoader(loader, self.embed)

    def problems(self, context: SetupContext) -> list[str]:
        """Whether student and text share this teacher."""
        teacher, problems = self.teacher, []
        if context.teacher not in (None, teacher.fingerprint):
            problems.append(
                f"the online teacher is '{teacher.fingerprint}', but the vocabulary was made with "
                f"'{context.teacher}'. Student and text must share one teacher: name the "
                "vocabulary's, or build the vocabulary again with tools/build_vocabulary.py"
            )
        if teacher.embedding_dim != context.embedding_dim:
            problems.append(
                f"the online teacher's embeddings are {teacher.embedding_dim} wide, expected "
                f"{context.embedding_dim}: use one teacher for vocabulary and proposals"
            )
        return problems
