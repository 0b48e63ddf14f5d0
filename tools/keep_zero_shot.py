#!/usr/bin/env python
"""Find the weights between before and after a tuning that learn the new and keep the old."""

from __future__ import annotations

import argparse

from detectron2.engine import default_argument_parser

from ovd_d2.engine.keep_zero_shot import (
    FOLDER,
    SHARES,
    WEIGHTS,
    chosen,
    keep_zero_shot,
    mixtures_table,
)
from ovd_d2.engine.launching import launch_processes
from ovd_d2.engine.run import load_config
from ovd_d2.engine.trainer import FINAL
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
example (output/tuned: the OUTPUT_DIR of a training on own boxes):
  tools/keep_zero_shot.py --config-file output/tuned/config.yaml \\
      --new my_val --old pictograms_v1_val

The config of the training says from which weights it began (MODEL.WEIGHTS); it ended with
OUTPUT_DIR/model_final.pth.
Each share of the tuned weights is evaluated on both sets: AP of all names of --new, AP of the novel
names of --old. The best on --new that keeps --keep of the old AP is written to
OUTPUT_DIR/kept/model_kept.pth.
"""


def parse_args() -> argparse.Namespace:
    parser = default_argument_parser(epilog=EPILOG)
    parser.description = __doc__
    add = parser.add_argument
    add("--new", required=True, metavar="NAME", help="data set of the new names")
    add("--old", required=True, metavar="NAME", help="data set with novel names known before")
    add("--after", metavar="FILE", help="tuned weights (default: OUTPUT_DIR/model_final.pth)")
    words = ",".join(map(str, SHARES))
    add("--shares", default=words, help="of the tuned weights, 0 to 1 (default: %(default)s)")
    add("--keep", type=float, default=0.95, help="least share of the old AP (default: %(default)s)")
    add("--metric", default="AP", help="of boxes, AP or AP50 (default: %(default)s)")
    return parser.parse_args()


def parse_shares(text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise SetupError([f"--shares {text}: {error}; expected e.g. 0.25,0.5"]) from error


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    found = keep_zero_shot(
        cfg,
        args,
        after=args.after or f"{cfg.OUTPUT_DIR}/{FINAL}.pth",
        new_set=args.new,
        old_set=args.old,
        shares=parse_shares(args.shares),
        keep=args.keep,
        metric=args.metric,
    )
    if found:
        print(mixtures_table(found, chosen(found, args.keep)))
        print(f"\nwritten: {cfg.OUTPUT_DIR}/{FOLDER}/{WEIGHTS}")


if __name__ == "__main__":
    launch_processes(main, parse_args())
