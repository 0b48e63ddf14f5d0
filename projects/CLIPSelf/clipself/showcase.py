"""What CLIPSelf and F-ViT show on Pictograms (:mod:`ovd_d2.pictograms.showcase`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovd_d2.pictograms.showcase import Method, Ordering, Showcase
from ovd_d2.pictograms.steps import (
    Run,
    train_step,
    vocabulary_step,
)
from ovd_d2.pictograms.teacher import VIT_ARCHITECTURE
from ovd_d2.pipeline.step import Step
from ovd_d2.projects.clipself.export import FILE
from ovd_d2.vild.showcase import proposal_steps

PATCHES, PROPOSALS = "clipself_patches", "clipself_proposals"
FOLDER = "projects/CLIPSelf/configs/pictograms"


def refined(run: Run, name: str) -> Path:
    """The CLIP that a self-distillation of this run exports."""
    return run.output(name) / FILE


def prepare(run: Run) -> list[Step]:
    """Data, names and proposals."""
    return [*proposal_steps(run), vocabulary_step(VIT_ARCHITECTURE)]


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


def _vocabulary(run: Run) -> Sequence[str]:
    return (vocabulary_step(VIT_ARCHITECTURE).name,)


def _on_refined(name: str, title: str, distillation: str) -> Method:
    """F-ViT on a ViT that learns first, without a label, what its regions are."""
    return Method(
        f"{FOLDER}/{name}.yaml",
        title,
        "a frozen ViT whose regions have learnt from its crops",
        options=lambda run: ("MODEL.FVIT.VIT_WEIGHTS", str(refined(run, distillation))),
        needs=lambda run: (*_vocabulary(run), run.step(distillation)),
        before=lambda run: (distillation_step(run, distillation),),
    )


ORIGINAL, REFINED = "fvit", "fvit_clipself"
SHOWCASE = Showcase(
    prepare=prepare,
    methods=(
        Method(f"{FOLDER}/{ORIGINAL}.yaml", "F-ViT on the CLIP as it is", needs=_vocabulary),
        _on_refined(REFINED, "F-ViT on CLIPSelf", PROPOSALS),
    ),
    quick=(_on_refined("fvit_clipself_quick", "F-ViT on a quick CLIPSelf", "clipself_quick"),),
    demo=("fvit_clipself_quick", ORIGINAL),
    demo_table=(ORIGINAL, REFINED),
    orderings=tuple(
        Ordering(
            f"{group} box AP50, F-ViT: the CLIP as it is {relation} CLIPSelf",
            f"box AP50_{group}",
            ORIGINAL,
            relation,
            REFINED,
        )
        for group, relation in (("novel", "<"), ("base", "<="))
    ),
)
