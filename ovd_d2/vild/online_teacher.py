"""The teacher inside training, in place of a cache."""

from __future__ import annotations

from functools import partial

from detectron2.config import CfgNode

from ovd_d2.clip.crops import VILD_RECIPE, CropRecipe, embed_proposals
from ovd_d2.clip.dense import DenseRecipe
from ovd_d2.clip.recipe import Recipe
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.online import Embed, OnlineTeacherLoader
from ovd_d2.systems import Batches, SetupContext

TEACHERS = ("crops", "dense")


def online_recipe(cfg: CfgNode) -> Recipe:
    """How `MODEL.VILD.DISTILLATION.ONLINE` makes embeddings of boxes.

    Raises:
        ValueError: no such teacher, or an option that cannot be meant.
    """
    online = cfg.MODEL.VILD.DISTILLATION.ONLINE
    if online.TEACHER not in TEACHERS:
        raise ValueError(f"'{online.TEACHER}' is not one of {', '.join(TEACHERS)}")
    if online.TEACHER == "crops":
        return CropRecipe(resize=online.RESIZE)
    dense = online.DENSE
    return DenseRecipe(
        dense.SIZE, dense.SQUARE, dense.WINDOW_SIZE, tuple(dense.GLOBAL_ATTENTION_BLOCKS)
    )


class OnlineTeacher:
    """Wraps a training loader, so that each batch gets the embeddings that a cache would hold.

    The mapper must bring proposals along (:class:`ovd_d2.data.passengers.ProposalsToEmbed`).
    """

    def __init__(
        self, teacher: CLIPTeacher, *, batch_size: int = 256, recipe: Recipe = VILD_RECIPE
    ) -> None:
        """
        Args:
            teacher: the one that embedded the vocabulary.
            batch_size: crops in one pass of the teacher; the result does not depend on it.
            recipe: how boxes become embeddings.
        """
        self.teacher, self.recipe = teacher, recipe
        self.embed: Embed = partial(
            embed_proposals, teacher=teacher, recipe=recipe, batch_size=batch_size
        )

    def __call__(self, loader: Batches) -> OnlineTeacherLoader:
        return OnlineTeacherLoader(loader, self.embed)

    def problems(self, context: SetupContext) -> list[str]:
        """Whether the teacher can do what the recipe says, and student and text share it."""
        teacher, problems = self.teacher, self.recipe.problems(self.teacher)
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
