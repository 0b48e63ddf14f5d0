#!/usr/bin/env python3
"""Draws the Pictograms data set and its mini pair, or the small set to tune on."""

from __future__ import annotations

import argparse
import os
import sys

from ovd_d2.pictograms.dataset import TuningArguments, max_categories, prepare, prepare_tuning

_EXAMPLES = """examples:
  # the default: 80 categories, 1030 + 250 images of 160 px, and the mini pair
  python datasets/prepare_pictograms.py
  # 8 further glyphs with 10 boxes each, to tune a detector on (pictograms_v1_tuning)
  python datasets/prepare_pictograms.py --tuning
  # for a GPU: 300 categories (colour x glyph), 1024 px
  python datasets/prepare_pictograms.py --categories 300 --images 8000 --val-images 1000 \\
      --size 1024 --root /data/pictograms_large
"""


_IMAGES_HELP = (
    "training images with base objects (default 1000); 3 in a hundred without any come on top"
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument(
        "--root", default=root, help="folder of all data sets (DETECTRON2_DATASETS or ./datasets)"
    )
    parser.add_argument(
        "--categories", type=int, default=80, help=f"4 to {max_categories()} (default 80)"
    )
    parser.add_argument("--images", type=int, default=1000, help=_IMAGES_HELP)
    parser.add_argument("--val-images", type=int, default=250, help="default 250")
    parser.add_argument("--size", type=int, default=160, help="side in px (default 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--mini-only", action="store_true", help="only the mini pair for tests")
    parser.add_argument(
        "--tuning", action="store_true", help="only the small set to tune on, for the --seed"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a set made with other arguments"
    )
    parser.add_argument(
        "--replace-older", action="store_true", help="replace a set made by an older version"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    replacing = {"overwrite": args.overwrite, "replace_older": args.replace_older}
    try:
        if args.tuning:
            folders = [prepare_tuning(args.root, TuningArguments(seed=args.seed), **replacing)]
        else:
            folders = prepare(
                args.root,
                images=(args.images, args.val_images),
                size=args.size,
                categories=args.categories,
                seed=args.seed,
                workers=args.workers,
                full=not args.mini_only,
                **replacing,
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for folder in folders:
        print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
