"""The demo's way from nothing to ViLD, as the commands a user would type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.data.paths import datasets_root
from ovd_d2.pictograms.demo.steps import Step
from ovd_d2.pictograms.teacher import (
    ARCHITECTURE,
    SHIPPED_BASE_TAG,
    SHIPPED_TAG,
    SHIPPED_WEIGHTS,
)

DATASET = "pictograms_v1"
TRAIN_SET = f"{DATASET}_train"
VAL_SET = f"{DATASET}_val"
PROPOSALS_PER_IMAGE = 25
DISTILLING = ("vild_image", "vild", "vild_ensemble")
# Methods that are another way to evaluate what was trained -> whose weights they take.
EVALUATED_ONLY = {
    "clip_crops": "start",
    "clip_crops_no_objectness": "start",
    "text_and_clip_crops": "vild_text",
}


@dataclass(frozen=True)
class Run:
    """One training of the Pictograms family with its seed.

    Attributes:
        folder: holds one sub-folder a training.
        seed: of all randomness in training.
    """

    folder: Path
    seed: int = 0

    def output(self, method: str) -> Path:
        return self.folder / f"seed{self.seed}" / method

    def weights(self, method: str) -> Path:
        """The checkpoint a method is evaluated with."""
        return self.output(EVALUATED_ONLY.get(method, method)) / "model_final.pth"

    @property
    def start_weights(self) -> Path:
        return self.weights("start")

    @property
    def cache(self) -> Path:
        return self.output("cache")


def data_steps() -> list[Step]:
    """The data set, then its vocabulary; the teacher and what is taken from it."""
    root = datasets_root() / DATASET
    return [
        Step(
            "data",
            "Draw Pictograms: scenes of glyphs, rare ones without boxes in the training set",
            "datasets/prepare_pictograms.py",
            ("--replace-older",),
            root / f"{VAL_SET}.json",
        ),
        Step(
            "teacher",
            "Look at the teacher: a small CLIP that has read all names but seen no scene",
            "tools/train_pictogram_clip.py",
            ("--evaluate", SHIPPED_TAG),
            SHIPPED_WEIGHTS[SHIPPED_TAG],
        ),
        Step(
            "backbone",
            "Take initial weights of the detector's backbone from a CLIP that knows no novel glyph",
            "tools/convert_clip_backbone.py",
            (*_clip(SHIPPED_BASE_TAG), "--output", str(_backbone(root))),
            _backbone(root),
            needs=("data",),  # its folder, which a new data set replaces
        ),
        Step(
            "vocabulary",
            "Write the category names as text embeddings",
            "tools/build_vocabulary.py",
            ("--dataset", TRAIN_SET, *_clip(SHIPPED_TAG), "--output", str(_vocabulary(root))),
            _vocabulary(root),
            needs=("data",),
        ),
    ]


def prompts_step(folder: Path, family: str) -> Step:
    """The names once more, by another family of prompts, for comparison."""
    output = folder / f"vocabulary_{family}.safetensors"
    return Step(
        f"vocabulary_{family}",
        f"Write the category names as text embeddings, prompts {family}",
        "tools/build_vocabulary.py",
        (
            *("--dataset", TRAIN_SET, *_clip(SHIPPED_TAG)),
            *("--prompts", family, "--output", str(output)),
        ),
        output,
        needs=("data",),
    )


def _backbone(root: Path) -> Path:
    return root / "backbone.pth"


def _vocabulary(root: Path) -> Path:
    return root / "vocabulary.safetensors"


def _clip(tag: str) -> tuple[str, ...]:
    return ("--architecture", ARCHITECTURE, "--pretrained", tag)


def start_steps(run: Run) -> list[Step]:
    """ViLD-text, the beginning on base boxes, its proposals, their teacher embeddings."""
    proposals = run.output("proposals")
    return [
        train_step(run, "start", "Train the first stage on base boxes (ViLD-text, the beginning)"),
        Step(
            f"proposals_seed{run.seed}",
            "Propose boxes: anything that looks like an object, named or not",
            "tools/extract_proposals.py",
            (
                *("--config-file", "configs/pictograms/start.yaml"),
                *("--dataset", TRAIN_SET, "--top-k", str(PROPOSALS_PER_IMAGE)),
                *("--output", str(proposals), "MODEL.WEIGHTS", str(run.start_weights)),
            ),
            proposals / "manifest.json",
            needs=(f"start_seed{run.seed}",),
            folder=proposals,
        ),
        cache_step(run),
    ]


def cache_step(run: Run, *, name: str = "cache", options: Sequence[str] = ()) -> Step:
    """Builds the cache of the run's proposals.

    Args:
        run: where.
        name: of the folder.
        options: of `tools/cache.py build`.
    """
    output = run.output(name)
    return Step(
        f"{name}_seed{run.seed}",
        "Let the teacher look at every proposal, once, and keep what it sees",
        "tools/cache.py",
        (
            *("build", "--dataset", TRAIN_SET, "--proposals", str(run.output("proposals"))),
            *(*_clip(SHIPPED_TAG), "--output", str(output), *options),
        ),
        output / "manifest.json",
        needs=(f"proposals_seed{run.seed}",),
        folder=output,
    )


def train_step(
    run: Run,
    method: str,
    purpose: str,
    *,
    name: str = "",
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Step:
    """Trains `configs/pictograms/<method>.yaml` and evaluates it.

    The first stage ("start") is not evaluated; all others start from its weights.

    Args:
        run: where, and with which seed.
        method: the config.
        purpose: what the user reads.
        name: of the output folder, where it is not the method's.
        options: further `KEY VALUE` pairs.
        needs: further steps that come before.
    """
    output = run.output(name or method)
    fixed = ["SEED", str(run.seed), "OUTPUT_DIR", str(output)]
    product = output / "inference" / "results.json"
    before: tuple[str, ...] = ("vocabulary", "backbone")
    if method == "start":
        fixed += ["DATASETS.TEST", "()"]
        product = run.start_weights
    else:
        fixed += ["MODEL.WEIGHTS", str(run.start_weights)]
        fixed += ["MODEL.VILD.DISTILLATION.CACHE", str(run.cache)]
        before = (f"{'cache' if method in DISTILLING else 'start'}_seed{run.seed}",)
    return Step(
        f"{name or method}_seed{run.seed}",
        purpose,
        "tools/train_net.py",
        ("--config-file", f"configs/pictograms/{method}.yaml", "--resume", *fixed, *options),
        product,
        (*before, *needs),
        output,
    )


def evaluate_step(
    run: Run,
    method: str,
    purpose: str,
    *,
    name: str = "",
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Step:
    """Evaluates `configs/pictograms/<method>.yaml` with weights that another step has trained.

    Args: as of :func:`train_step`.
    """
    output = run.output(name or method)
    source = EVALUATED_ONLY.get(method, method)
    return Step(
        f"{name or method}_seed{run.seed}",
        purpose,
        "tools/train_net.py",
        (
            *("--config-file", f"configs/pictograms/{method}.yaml", "--eval-only"),
            *("SEED", str(run.seed), "OUTPUT_DIR", str(output)),
            *("MODEL.WEIGHTS", str(run.weights(method)), *options),
        ),
        output / "inference" / "results.json",
        (f"{source}_seed{run.seed}", *needs),
        output,
    )


def demo_steps(folder: Path) -> list[Step]:
    """Everything `make demo` trains."""
    run = Run(folder)
    return [
        *data_steps(),
        *start_steps(run),
        train_step(
            run, "vild_ensemble", "Train ViLD-ensemble: words for base, the teacher's eye for all"
        ),
        train_step(run, "vild_text", "Train ViLD-text just as long: words alone"),
    ]


def names_step(run: Run, names: str, image: Path) -> Step:
    """Looks for a user's own words in one scene with the trained ViLD-ensemble."""
    output = run.folder / "your_names"
    return Step(
        "names",
        f"Look for {names}",
        "tools/predict.py",
        (
            *("--config-file", "configs/pictograms/vild_ensemble.yaml"),
            *("--input", str(image), "--names", names, "--output", str(output)),
            *("MODEL.WEIGHTS", str(run.output("vild_ensemble") / "model_final.pth")),
        ),
        output / f"{image.stem}.png",
        folder=output,
    )


def benchmark_steps(folder: Path, seeds: Sequence[int], methods: Sequence[str]) -> list[Step]:
    """Everything that a table of these methods compares, for several seeds.

    Args:
        methods: names of configs; those whose weights an EVALUATED_ONLY method takes come first.
    """
    steps = data_steps()
    for seed in seeds:
        run = Run(folder, seed)
        steps += start_steps(run)
        steps += [
            evaluate_step(run, method, f"Evaluate {method}, seed {seed}")
            if method in EVALUATED_ONLY
            else train_step(run, method, f"Train {method}, seed {seed}")
            for method in methods
        ]
    return steps
