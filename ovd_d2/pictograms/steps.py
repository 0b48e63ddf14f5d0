"""The commands that lead to a detector of Pictograms, as a user would type them.

What all systems share is here: the data set, its vocabulary, a training, an evaluation. A step is
run by :class:`ovd_d2.pipeline.pipeline.Pipeline`; systems list theirs in a
:class:`ovd_d2.pictograms.showcase.Showcase`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.data.paths import datasets_root
from ovd_d2.pictograms.teacher import (
    ARCHITECTURE,
    SHIPPED_BASE_TAG,
    SHIPPED_TAG,
    SHIPPED_WEIGHTS,
    VIT_ARCHITECTURE,
)
from ovd_d2.pipeline.pipeline import repository_root
from ovd_d2.pipeline.step import CONFIG_OPTION, Step

DATASET = "pictograms_v1"
TRAIN_SET = f"{DATASET}_train"
VAL_SET = f"{DATASET}_val"
# Teacher -> what its vocabulary's name ends with.
VOCABULARY_SUFFIXES = {ARCHITECTURE: "", VIT_ARCHITECTURE: "_vit"}


@dataclass(frozen=True)
class Run:
    """One training of every method, with one seed.

    Attributes:
        folder: holds one sub-folder per seed, and in it one per step.
        seed: of all randomness in training.
    """

    folder: Path
    seed: int = 0

    def output(self, name: str) -> Path:
        """Where a step of this run writes."""
        return self.folder / f"seed{self.seed}" / name

    def weights(self, name: str) -> Path:
        """The checkpoint that a training of this run leaves."""
        return self.output(name) / "model_final.pth"

    def step(self, name: str) -> str:
        """What a step of this run is called among those of all runs."""
        return f"{name}_seed{self.seed}"


def datasets_folder() -> Path:
    """The folder of all data sets, as commands in the repository's folder name it.

    However `DETECTRON2_DATASETS` spells a folder, the commands are the same, and so what they have
    made before is known again.
    """
    root, default = repository_root(), Path("datasets")
    folder = (root / datasets_root()).resolve()
    return default if folder == (root / default).resolve() else folder


def data_step() -> Step:
    """Draws the data set, which every other step needs."""
    return Step(
        "data",
        "Draw Pictograms: scenes of glyphs, rare ones without boxes in the training set",
        "datasets/prepare_pictograms.py",
        ("--replace-older",),
        datasets_folder() / DATASET / f"{VAL_SET}.json",
    )


def teacher_step() -> Step:
    """Evaluates the shipped teacher; nothing needs it."""
    return Step(
        "teacher",
        "Look at the teacher: a small CLIP that has read all names but seen no scene",
        "tools/train_pictogram_clip.py",
        ("--evaluate", SHIPPED_TAG),
        SHIPPED_WEIGHTS[ARCHITECTURE][SHIPPED_TAG],
    )


def backbone_step() -> Step:
    """Initial weights for the backbone of `configs/pictograms/base.yaml`."""
    output = datasets_folder() / DATASET / "backbone.pth"
    return Step(
        "backbone",
        "Take initial weights of the detector's backbone from a CLIP that knows no novel glyph",
        "tools/convert_clip_backbone.py",
        (*clip_options(SHIPPED_BASE_TAG), "--output", str(output)),
        output,
        needs=("data",),  # its folder, which a new data set replaces
    )


def vocabulary_step(architecture: str = ARCHITECTURE) -> Step:
    """The vocabulary of the configs whose teacher is this one.

    Args:
        architecture: of the teacher; each has a file of its own.
    """
    name = "vocabulary" + VOCABULARY_SUFFIXES[architecture]
    output = datasets_folder() / DATASET / f"{name}.safetensors"
    return Step(
        name,
        "Write the category names as text embeddings",
        "tools/build_vocabulary.py",
        (
            *("--dataset", TRAIN_SET, *clip_options(SHIPPED_TAG, architecture)),
            *("--output", str(output)),
        ),
        output,
        needs=("data",),
    )


def prompts_step(folder: Path, family: str) -> Step:
    """The names once more, by another family of prompts, for comparison."""
    output = folder / f"vocabulary_{family}.safetensors"
    return Step(
        f"vocabulary_{family}",
        f"Write the category names as text embeddings, prompts {family}",
        "tools/build_vocabulary.py",
        (
            *("--dataset", TRAIN_SET, *clip_options(SHIPPED_TAG)),
            *("--prompts", family, "--output", str(output)),
        ),
        output,
        needs=("data",),
    )


def clip_options(tag: str, architecture: str = ARCHITECTURE) -> tuple[str, ...]:
    """Options of the tools that read a CLIP: a Pictogram teacher with these weights."""
    return ("--architecture", architecture, "--pretrained", tag)


def train_step(
    run: Run,
    name: str,
    config: str,
    purpose: str,
    *,
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
    evaluated: bool = True,
) -> Step:
    """Trains a config and evaluates it.

    Args:
        run: where, and with which seed.
        name: of the step, without the seed, and of its output folder.
        config: yaml file, from the repository root on.
        purpose: what the user reads.
        options: `KEY VALUE` pairs.
        needs: full names of the steps that come before.
        evaluated: False where only the weights are wanted.
    """
    output = run.output(name)
    fixed = ["SEED", str(run.seed), "OUTPUT_DIR", str(output)]
    if not evaluated:
        fixed += ["DATASETS.TEST", "()"]
    return Step(
        run.step(name),
        purpose,
        "tools/train_net.py",
        (CONFIG_OPTION, config, "--resume", *fixed, *options),
        _results(output) if evaluated else run.weights(name),
        tuple(needs),
        output,
    )


def evaluate_step(
    run: Run,
    name: str,
    config: str,
    purpose: str,
    *,
    weights_of: str,
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Step:
    """Evaluates a config with the weights of a training of the same run.

    Args:
        weights_of: the training, without the seed; it comes before.
        needs: full names of further steps that come before.
        run, name, config, purpose, options: as of :func:`train_step`.
    """
    output = run.output(name)
    return Step(
        run.step(name),
        purpose,
        "tools/train_net.py",
        (
            *(CONFIG_OPTION, config, "--eval-only"),
            *("SEED", str(run.seed), "OUTPUT_DIR", str(output)),
            *("MODEL.WEIGHTS", str(run.weights(weights_of)), *options),
        ),
        _results(output),
        (run.step(weights_of), *needs),
        output,
    )


def _results(output: Path) -> Path:
    return output / "inference" / "results.json"
