"""What ViLD shows on Pictograms (:mod:`ovd_d2.pictograms.showcase`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovd_d2.pictograms.showcase import Expectation, Method, Ordering, Showcase
from ovd_d2.pictograms.steps import (
    TRAIN_SET,
    Run,
    backbone_step,
    clip_options,
    data_step,
    teacher_step,
    train_step,
    vocabulary_step,
)
from ovd_d2.pictograms.teacher import SHIPPED_TAG
from ovd_d2.pipeline.step import CONFIG_OPTION, Step

START = "start"  # the first stage: nothing is evaluated, everything starts from its weights
PROPOSALS_PER_IMAGE = 25


def cache_of(run: Run) -> Path:
    """The cache that a run distils from."""
    return run.output("cache")


def prepare(run: Run) -> list[Step]:
    """Data and teacher; then ViLD-text's beginning, its proposals, their embeddings."""
    return [*proposal_steps(run), cache_step(run)]


def proposal_steps(run: Run) -> list[Step]:
    """Those of :func:`start_steps`; then its proposals, the last step's product."""
    return [*start_steps(run), proposals_step(run)]


def start_steps(run: Run) -> list[Step]:
    """Data and teacher; then ViLD-text's beginning, whose weights are `run.weights(START)`."""
    start = train_step(
        run,
        START,
        _config(START),
        "Train the first stage on base boxes (ViLD-text, the beginning)",
        needs=("vocabulary", "backbone"),
        evaluated=False,
    )
    shared = [data_step(), teacher_step(), backbone_step(), vocabulary_step()]
    return [*shared, start]


def proposals_step(
    run: Run, *, name: str = "proposals", dataset: str = TRAIN_SET, needs: Sequence[str] = ()
) -> Step:
    """Extracts proposals by the run's first stage.

    Args:
        run: where.
        name: of the folder.
        dataset: whose images.
        needs: full names of the steps that come before, beside that of the first stage.
    """
    output = run.output(name)
    return Step(
        run.step(name),
        "Propose boxes: anything that looks like an object, named or not",
        "tools/extract_proposals.py",
        (
            *(CONFIG_OPTION, _config(START)),
            *("--dataset", dataset, "--top-k", str(PROPOSALS_PER_IMAGE)),
            *("--output", str(output), "MODEL.WEIGHTS", str(run.weights(START))),
        ),
        output / "manifest.json",
        needs=(run.step(START), *needs),
        folder=output,
    )


def cache_step(
    run: Run,
    *,
    name: str = "cache",
    teacher: Sequence[str] = clip_options(SHIPPED_TAG),
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Step:
    """Builds the cache of the run's proposals.

    Args:
        run: where.
        name: of the folder.
        teacher: the options that name it.
        options: of `tools/cache.py build`, beside these.
        needs: full names of the steps that come before, beside that of the proposals.
    """
    output = run.output(name)
    return Step(
        run.step(name),
        "Let the teacher look at every proposal, once, and keep what it sees",
        "tools/cache.py",
        (
            *("build", "--dataset", TRAIN_SET, "--proposals", str(run.output("proposals"))),
            *(*teacher, "--output", str(output), *options),
        ),
        output / "manifest.json",
        needs=(run.step("proposals"), *needs),
        folder=output,
    )


def _config(name: str) -> str:
    return f"configs/pictograms/{name}.yaml"


def _training_options(run: Run) -> Sequence[str]:
    start = ("MODEL.WEIGHTS", str(run.weights(START)))
    return (*start, "MODEL.VILD.DISTILLATION.CACHE", str(cache_of(run)))


def _trained(name: str, title: str, about: str = "", *, after: str = START) -> Method:
    return Method(
        _config(name),
        title,
        about,
        options=_training_options,
        needs=lambda run: (run.step(after),),
    )


SHOWCASE = Showcase(
    prepare=prepare,
    methods=(
        _trained("supervised_base", "Mask R-CNN on base categories"),
        _trained("supervised_rfs", "Mask R-CNN on all categories"),
        Method(_config("clip_crops_no_objectness"), "CLIP on crops, plain", weights_of=START),
        Method(_config("clip_crops"), "CLIP on crops", weights_of=START),
        _trained("vild_text", "ViLD-text", "words alone"),
        Method(_config("text_and_clip_crops"), "ViLD-text + CLIP", weights_of="vild_text"),
        _trained("vild_image", "ViLD-image", after="cache"),
        _trained("vild", "ViLD", after="cache"),
        _trained(
            "vild_ensemble",
            "ViLD-ensemble",
            "words for base, the teacher's eye for all",
            after="cache",
        ),
    ),
    demo=("vild_ensemble", "vild_text"),
    demo_table=("supervised_base", "clip_crops", "vild_text", "vild", "vild_ensemble"),
    expectations=(
        Expectation(
            "novel box AP50, ViLD-ensemble / ViLD-text >= 1.25",
            "box AP50_novel",
            "vild_ensemble",
            over="vild_text",
            least=1.25,
        ),
        Expectation(
            "novel (rare) mask AP, ViLD-ensemble / ViLD-text >= 1.25",
            "segm APr",
            "vild_ensemble",
            over="vild_text",
            least=1.25,
        ),
        Expectation(
            "base box AP50, ViLD-ensemble / ViLD-text >= 0.95",
            "box AP50_base",
            "vild_ensemble",
            over="vild_text",
            least=0.95,
        ),
        Expectation(
            "novel box AP50, supervised on base = 0",
            "box AP50_novel",
            "supervised_base",
            most=0.05,
        ),
    ),
    orderings=(  # of the paper's tables 2 and 3
        Ordering(
            "APr: supervised on base < ViLD-text", "segm APr", "supervised_base", "<", "vild_text"
        ),
        Ordering("APr: ViLD-text < ViLD", "segm APr", "vild_text", "<", "vild"),
        Ordering("APr: ViLD <= ViLD-ensemble", "segm APr", "vild", "<=", "vild_ensemble"),
        Ordering(
            "APr: ViLD-text < ViLD-text + CLIP", "segm APr", "vild_text", "<", "text_and_clip_crops"
        ),
        Ordering(
            "APr: ViLD-image < ViLD",
            "segm APr",
            "vild_image",
            "<",
            "vild",
            reason="Likely: the Pictograms teacher knows novel glyphs as well as base ones (crop "
            "top-1 0.99), so a student of the teacher alone loses little on rare categories, while "
            "ViLD's one head serves the base labels as well: its AP lies between ViLD-text's and "
            "ViLD-image's, on rare and on frequent categories.",
        ),
        Ordering(
            "APr: Supervised-RFS < ViLD",
            "segm APr",
            "supervised_rfs",
            "<",
            "vild",
            reason="Likely: supervised-RFS has boxes of the rare categories. A glyph looks the "
            "same in every image up to colour, size and rotation, so a handful of boxes teach it; "
            "an object of LVIS has more to vary.",
        ),
        Ordering("APf: ViLD <= ViLD-ensemble", "segm APf", "vild", "<=", "vild_ensemble"),
        Ordering("APf: ViLD-text = ViLD-ensemble", "segm APf", "vild_text", "=", "vild_ensemble"),
        Ordering("APf: ViLD-image < ViLD-text", "segm APf", "vild_image", "<", "vild_text"),
        Ordering("time: ViLD < CLIP on crops", "ms_per_image", "vild", "<", "clip_crops"),
    ),
)
