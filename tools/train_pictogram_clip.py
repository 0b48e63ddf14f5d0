#!/usr/bin/env python
"""Train a Pictogram CLIP, a small teacher of the Pictograms data set."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.loading import load_teacher
from ovd_d2.errors import exit_with_message
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.pictograms.teacher_training import (
    RECIPES,
    CropAccuracy,
    TrainingSettings,
    categories_of,
    crop_accuracy,
    save_weights,
    train,
)

EXAMPLE = """examples:
  make the weights in the package (about 16 minutes on two cores; killed, it continues):
    python tools/train_pictogram_clip.py --output output/pictogram_rn.safetensors
  make the ViT in the package, with the text tower of the above (40 minutes on one core):
    python tools/train_pictogram_clip.py --architecture Pictogram-ViT
  make the detectors' initial weights in the package (without novel glyphs; about 8 minutes):
    python tools/train_pictogram_clip.py --base-only --steps 1500 --crops 400 \\
        --output output/pictogram_rn_base.safetensors
  test the weights in the package:
    python tools/train_pictogram_clip.py --evaluate shipped
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", choices=RECIPES, default=ARCHITECTURE)
    parser.add_argument("--output", type=Path, help="default: output/, named by architecture")
    parser.add_argument(
        "--evaluate", metavar="WEIGHTS", help=f"only test a file or '{SHIPPED_TAG}'"
    )
    parser.add_argument("--categories", type=int)
    parser.add_argument(
        "--base-only",
        action="store_true",
        help="leave out the data set's novel names: initial weights of a detector, no teacher",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="default, as of all settings: as in the package")
    length.add_argument("--minutes", type=float, help="choose the steps to take about that long")
    parser.add_argument(
        "--crops", type=int, dest="crops_per_category", help="rendered crops per category"
    )
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--test-crops", type=int, default=20, help="held-out crops per category")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads that train; more than one helps on an idle machine only",
    )
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> TrainingSettings:
    """The recipe of the architecture with what the options change."""
    given = {key: value for key, value in vars(args).items() if value is not None}
    changes = {
        field.name: given[field.name] for field in fields(TrainingSettings) if field.name in given
    }
    return replace(RECIPES[args.architecture], **changes)


@exit_with_message(OSError, ValueError)
def evaluate(
    weights: str, settings: TrainingSettings, args: argparse.Namespace
) -> tuple[CLIPTeacher, CropAccuracy]:
    teacher = load_teacher(settings.architecture, weights, key="weights")
    result = crop_accuracy(
        teacher,
        categories_of(settings),
        per_category=args.test_crops,
        seed=settings.seed,
        workers=args.workers,
    )
    return teacher, result


def report(teacher: CLIPTeacher, result: CropAccuracy) -> None:
    print(f"teacher {teacher.fingerprint}, D = {teacher.embedding_dim}")
    print(f"zero-shot top-1 on {result.crops} held-out crops each (prompts vild63):")
    print(f"  1x context     {result.tight:.4f}")
    print(f"  1.5x context   {result.wide:.4f}")
    print(f"  1x to 1.5x     {result.mixed:.4f}")
    for right, answer, count in result.confusions[:5]:
        print(f"  {count} x '{right}' taken for '{answer}'")


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("ovd_d2").setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    settings = settings_of(args)
    if args.evaluate:
        report(*evaluate(args.evaluate, settings, args))
        return
    name = settings.architecture.lower().replace("-", "_")
    output = args.output or Path("output") / f"{name}.safetensors"
    checkpoint = output.with_suffix(".checkpoint.pt")
    state = train(settings, checkpoint, minutes=args.minutes, workers=args.workers)
    metadata = {"architecture": settings.architecture, "command": shlex.join(["python", *sys.argv])}
    save_weights(state, output, metadata)
    teacher, result = evaluate(str(output), settings, args)  # of the file, as it will be used
    report(teacher, result)
    metadata |= {
        "seed": str(settings.seed),
        "settings": json.dumps(asdict(settings)),
        "top1_1x": f"{result.tight:.4f}",
        "top1_1.5x": f"{result.wide:.4f}",
        "top1_mixed": f"{result.mixed:.4f}",
        "torch": torch.__version__,
    }
    save_weights(state, output, metadata)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
