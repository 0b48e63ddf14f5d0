#!/usr/bin/env python
"""Train the Pictogram CLIP, the small teacher of the Pictograms data set."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.loading import load_teacher
from ovd_d2.errors import exit_with_message
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.pictograms.teacher_training import (
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
  make the detectors' initial weights in the package (without novel glyphs; about 8 minutes):
    python tools/train_pictogram_clip.py --base-only --steps 1500 --crops 400 \\
        --output output/pictogram_rn_base.safetensors
  test the weights in the package:
    python tools/train_pictogram_clip.py --evaluate shipped
"""


def parse_args() -> argparse.Namespace:
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/pictogram_rn.safetensors"))
    parser.add_argument(
        "--evaluate", metavar="WEIGHTS", help=f"only test a file or '{SHIPPED_TAG}'"
    )
    parser.add_argument("--categories", type=int, default=defaults.categories)
    parser.add_argument(
        "--base-only",
        action="store_true",
        help="leave out the data set's novel names: initial weights of a detector, no teacher",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=defaults.steps)
    length.add_argument("--minutes", type=float, help="choose the steps to take about that long")
    parser.add_argument(
        "--crops",
        type=int,
        default=defaults.crops_per_category,
        help="rendered crops per category",
    )
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--test-crops", type=int, default=20, help="held-out crops per category")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads that train; more than one helps on an idle machine only",
    )
    return parser.parse_args()


@exit_with_message(OSError, ValueError)
def evaluate(weights: str, args: argparse.Namespace) -> tuple[CLIPTeacher, CropAccuracy]:
    teacher = load_teacher(ARCHITECTURE, weights, key="weights")
    settings = TrainingSettings(categories=args.categories, base_only=args.base_only)
    categories = categories_of(settings)
    result = crop_accuracy(
        teacher, categories, per_category=args.test_crops, seed=args.seed, workers=args.workers
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
    if args.evaluate:
        report(*evaluate(args.evaluate, args))
        return
    settings = replace(
        TrainingSettings(),
        categories=args.categories,
        base_only=args.base_only,
        crops_per_category=args.crops,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    checkpoint = args.output.with_suffix(".checkpoint.pt")
    state = train(settings, checkpoint, minutes=args.minutes, workers=args.workers)
    metadata = {"architecture": ARCHITECTURE, "command": shlex.join(["python", *sys.argv])}
    save_weights(state, args.output, metadata)
    teacher, result = evaluate(str(args.output), args)  # of the file, as it will be used
    report(teacher, result)
    metadata |= {
        "seed": str(args.seed),
        "settings": json.dumps(asdict(settings)),
        "top1_1x": f"{result.tight:.4f}",
        "top1_1.5x": f"{result.wide:.4f}",
        "top1_mixed": f"{result.mixed:.4f}",
        "torch": torch.__version__,
    }
    save_weights(state, args.output, metadata)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
