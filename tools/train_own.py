#!/usr/bin/env python
"""A data set of your own, one command: vocabulary, checks, ViLD, evaluation, images."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import ovd_d2  # noqa: F401  (registers the data sets)
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.own_training import (
    Run,
    own_data,
    recipe_file,
    results_table,
    training_steps,
    vocabulary_step,
    write_configs,
)
from ovd_d2.pipeline.pipeline import Pipeline, StepFailed

EPILOG = """
examples:
  python tools/train_own.py my_data/my_data.yaml --output output/mine
  python tools/train_own.py my_data/my_data.yaml --output output/mine \\
      --architecture ViT-B-16 --pretrained laion2b_s34b_b88k SOLVER.MAX_ITER 6000
my_data.yaml: tools/import_dataset.py writes it. Killed or run again, it goes on where it was; what
depends on a changed annotation file, option or recipe is done again.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="yaml file of the data sets")
    parser.add_argument(
        "--output", type=Path, default=Path("output/own"), help="folder of everything that is made"
    )
    parser.add_argument("--train", default="", help="data set to train on (default: *_train)")
    parser.add_argument("--test", default="", help="to evaluate on (default: *_val, *_test)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="which recipe: configs/own/gpu.yaml or cpu.yaml (default: here %(default)s)",
    )
    parser.add_argument("--recipe", default="", help="a config in the place of these")
    parser.add_argument("--architecture", help="teacher: open_clip architecture name")
    parser.add_argument("--pretrained", help="teacher: open_clip tag, or a local file of it")
    parser.add_argument(
        "--license", default="other", help="of the weights, for the model card (default: other)"
    )
    parser.add_argument("opts", nargs="*", help="config options: KEY VALUE ...")
    args = parser.parse_intermixed_args(arguments)  # options may stand between the pairs
    if (args.architecture is None) != (args.pretrained is None):
        parser.error("--architecture and --pretrained go together")
    if len(args.opts) % 2:
        parser.error(f"config options come in pairs, KEY VALUE: {' '.join(args.opts)}")
    return args


@exit_with_message(SetupError, StepFailed)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    options = list(args.opts)
    if args.architecture is not None:
        options += ["MODEL.OVD.TEACHER.ARCHITECTURE", args.architecture]
        options += ["MODEL.OVD.TEACHER.PRETRAINED", args.pretrained]
    run = Run(
        own_data(args.data, args.train, args.test),
        args.output.absolute(),
        recipe_file(args.recipe, args.device),
        options,
        args.license,
    )
    write_configs(run)
    Pipeline([vocabulary_step(run)], run.folder, jobs=1).run()
    write_configs(run)
    Pipeline(training_steps(run), run.folder, jobs=1).run()
    print(f"\n{results_table(run)}\n")
    print(f"images    {run.folder / 'images'}")
    print(f"model     {run.folder / 'model'}  (tools/predict.py --model, any names)")


if __name__ == "__main__":
    main()
