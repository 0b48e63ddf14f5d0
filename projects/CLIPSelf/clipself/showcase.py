"""What CLIPSelf and F-ViT show on Pictograms (:mod:`ovd_d2.pictograms.showcase`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovd_d2.pictograms.showcase import Method, Ordering, Showcase
from ovd_d2.pictograms.steps import Run, Step, train_step, vocabulary_step
from ovd_d2.pictograms.teacher import VIT_ARCHITECTURE
from ovd_d2.projects.clipself.export import FILE
from ovd_d2.vild.showcase import proposal_steps

PATCHES, PROPOSALS = "clipself_patches", "clipself_proposals"
FOLDER = "projects/CLIPSelf/configs/pictograms"


def refined(run: Run, name: str) -> Path:
    """The CLIP that a self-distillation of this run exports."""
    return run.output(name) / FILE


def prepare(run: Run) -> list[Step]:
    """Data, names and proposals; then the ViT learns what its regions are, without a label."""
    return [
        *proposal_steps(run),
        vocabulary_step(VIT_ARCHITECTURE),
        distillation_step(run, PROPOSALS),
    ]


def distillation_step(run: Run, name: str) -> Step:
    """A self-distillation; no detector is evaluated.

    Args:
        run: where, and with which seed.
        name: of the config; any but that of patches takes the run's proposals.
    """
    proposals = proposal_steps(run)[-1]
    stored = ("MODEL.CLIPSELF.PROPOSALS", str(proposals.product.parent))
    return train_step(
        run,
        name,
        f"{FOLDER}/{name}.yaml",
        f"Let the ViT's regions learn from its own crops, without any label ({name})",
        options=() if name == PATCHES else stored,
        needs=("data",) if name == PATCHES else (proposals.name,),
        evaluated=False,
    )


def _refined_options(run: Run) -> Sequence[str]:
    return ("MODEL.FVIT.VIT_WEIGHTS", str(refined(run, PROPOSALS)))


def _vocabulary(run: Run) -> Sequence[str]:
    return (vocabulary_step(VIT_ARCHITECTURE).name,)


SHOWCASE = Showcase(
    prepare=prepare,
    methods=(
        Method(f"{FOLDER}/fvit.yaml", "F-ViT on the CLIP as it is", needs=_vocabulary),
        Method(
            f"{FOLDER}/fvit_clipself.yaml",
            "F-ViT on CLIPSelf",
            "a frozen ViT whose regions have learnt from its crops",
            options=_refined_options,
            needs=lambda run: (*_vocabulary(run), run.step(PROPOSALS)),
        ),
    ),
    demo=("fvit_clipself", "fvit"),
    demo_table=("fvit", "fvit_clipself"),
    orderings=tuple(
        Ordering(
            f"{group} box AP50, F-ViT: the CLIP as it is {relation} CLIPSelf",
            f"box AP50_{group}",
            "fvit",
            relation,
            "fvit_clipself",
        )
        for group, relation in (("novel", "<"), ("base", "<="))
    ),
)
