"""What GLIP shows on Pictograms (:mod:`ovd_d2.pictograms.showcase`)."""

from __future__ import annotations

from collections.abc import Sequence

from ovd_d2.pictograms.showcase import Gap, Method, Ordering, Showcase
from ovd_d2.pictograms.steps import (
    TRAIN_SET,
    Run,
    backbone_step,
    data_step,
    vocabulary_step,
)
from ovd_d2.pipeline.step import CONFIG_OPTION, Step
from ovd_d2.projects.glip.pictograms import SHOTS
from ovd_d2.projects.glip.pseudo_labels import DATA_SET_FILE
from ovd_d2.projects.glip.tuning import FULL, LINEAR, PROMPT

FOLDER = "projects/GLIP/configs/pictograms"
# Captions of all glyphs; the tool does not look at their boxes.
CAPTIONS = TRAIN_SET.replace("_train", "_captions_train_all")
# Least score of a teacher's box. The paper's 0.5 is of another loss: here it keeps twice as many
# boxes as captions name objects (4,931), this one as many. Of novel glyphs, which the teacher has
# not seen, it would keep few: the best box of a phrase stays down to the paper's.
THRESHOLD, PHRASE_THRESHOLD = "0.62", "0.5"
_TITLES = {FULL: "full tuning", LINEAR: "linear probing", PROMPT: "prompt tuning"}


def prepare(run: Run) -> list[Step]:
    """Data, names and the image tower that GLIP starts from."""
    return [data_step(), backbone_step(), vocabulary_step()]


def _shared(run: Run) -> tuple[str, ...]:
    return tuple(step.name for step in prepare(run))


def _trained(name: str, title: str, about: str = "") -> Method:
    return Method(f"{FOLDER}/{name}.yaml", title, about, needs=_shared)


TEACHER = _trained("glip_teacher", "GLIP + base captions", "names and captions of base glyphs")
SMALL_TEACHER = _trained(
    "glip_small_teacher", "Small GLIP + base captions", "one block, 32 channels"
)


def labels_step(run: Run) -> Step:
    """The teacher finds boxes for what captions name; it has seen no novel glyph."""
    output = run.output("pseudo_labels")
    return Step(
        run.step("pseudo_labels"),
        "Find boxes for the phrases of captions that name novel glyphs, too, by the teacher",
        "projects/GLIP/tools/pseudo_label.py",
        (
            *(CONFIG_OPTION, TEACHER.config, "--dataset", CAPTIONS),
            *("--threshold", THRESHOLD, "--phrase-threshold", PHRASE_THRESHOLD),
            *("--output", str(output), "MODEL.WEIGHTS", str(TEACHER.weights(run))),
        ),
        output / DATA_SET_FILE,
        needs=("data", run.step(TEACHER.name)),
        folder=output,
    )


def _labels_options(run: Run) -> Sequence[str]:
    return ("DATASETS.OWN", str(labels_step(run).product))


STUDENT = Method(
    f"{FOLDER}/glip_student.yaml",
    "GLIP + pseudo-labelled captions",
    "captions name the novel glyphs, a teacher found their boxes",
    options=_labels_options,
    needs=lambda run: (*_shared(run), labels_step(run).name),
    before=lambda run: (TEACHER.step(run), labels_step(run)),
)


def _tuned(mode: str, shots: str, teacher: Method = TEACHER) -> Method:
    about = "on all images" if shots == "all" else f"on {shots} per glyph"
    size, title = ("", "GLIP") if teacher is TEACHER else ("small_", "Small GLIP")
    return Method(
        f"{FOLDER}/glip_{size}{mode}_{shots}.yaml",
        f"{title}, {_TITLES[mode]} {about}",
        options=lambda run: ("MODEL.WEIGHTS", str(teacher.weights(run))),
        needs=lambda run: (*_shared(run), run.step(teacher.name)),
        before=lambda run: (teacher.step(run),),
    )


TUNED = tuple(_tuned(mode, shots) for mode in (PROMPT, LINEAR, FULL) for shots in SHOTS)
SMALL_TUNED = tuple(_tuned(mode, "all", SMALL_TEACHER) for mode in (PROMPT, FULL))
_NEAR = 2.0  # points of AP


def _prompt_is_near_full(shots: str) -> Ordering:
    gap = Gap(lower=f"glip_prompt_{shots}", higher=f"glip_full_{shots}")
    images = "all images" if shots == "all" else f"{shots} per glyph"
    claim = f"AP, {images}: full tuning - prompt tuning <= {_NEAR:.0f}"
    return Ordering(claim, "box AP", gap, "<=", _NEAR)


SHOWCASE = Showcase(
    prepare=prepare,
    methods=(
        _trained("glip_no_fusion", "GLIP without fusion"),
        _trained("glip_detection", "GLIP", "base names alone"),
        _trained("glip_captions", "GLIP + captions", "captions name the novel glyphs, with boxes"),
        TEACHER,
        STUDENT,
        *TUNED,
        SMALL_TEACHER,
        *SMALL_TUNED,
    ),
    quick=(_trained("glip_captions_quick", "GLIP + captions", "half of the iterations"),),
    demo=("glip_captions_quick",),
    demo_table=("glip_no_fusion", "glip_detection", "glip_captions"),
    orderings=(  # of the paper's tables 2 to 5 and its figure of tuning
        Ordering(
            "novel AP50: detection alone < + captions",
            "box AP50_novel",
            "glip_detection",
            "<",
            "glip_captions",
        ),
        Ordering(
            "AP: without fusion < with",
            "box AP",
            "glip_no_fusion",
            "<",
            "glip_detection",
            "Likely: the name of a glyph means the same in every image. To read it with the image "
            "in view adds little, and the tower has more to learn in as many iterations.",
        ),
        Ordering(
            "novel AP50: teacher < student", "box AP50_novel", "glip_teacher", "<", "glip_student"
        ),
        Ordering(
            "novel AP50: ViLD-ensemble < GLIP + captions (expected here, no paper's)",
            "box AP50_novel",
            "vild_ensemble",
            "<",
            "glip_captions",
            "Each novel glyph has 7 to 11 boxes in 1,030 captions, enough for a detector of two "
            "stages (supervised_rfs). Likely: one stage needs more data than this. Of base glyphs, "
            "too, Detectron2's own RetinaNet knows less after 800 iterations "
            "(configs/pictograms/retinanet.yaml, box AP50 35.9) than ViLD's first stage after 300 "
            "(start.yaml, 36.4); GLIP without fusion has 26.0 after 800.",
        ),
        Ordering(
            "AP, all images: linear probing < prompt tuning",
            "box AP",
            "glip_linear_all",
            "<",
            "glip_prompt_all",
        ),
        *map(_prompt_is_near_full, SHOTS),
        Ordering(
            "AP, all images: full - prompt tuning, GLIP < small GLIP",
            "box AP",
            Gap(lower="glip_prompt_all", higher="glip_full_all"),
            "<",
            Gap(lower="glip_small_prompt_all", higher="glip_small_full_all"),
            "In points of AP. As a share of full tuning's AP, which is that much lower for the "
            "small model, the gap is smaller for the larger one.",
        ),
    ),
)
