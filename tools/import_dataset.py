#!/usr/bin/env python
"""Make a data set of another format one of your own: checked COCO JSONs and my_data.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovd_d2.data.importing.folder import (
    YAML,
    Wish,
    import_dataset,
    read_base,
    write_imported,
)
from ovd_d2.data.importing.formats import READERS
from ovd_d2.data.importing.found import Choices
from ovd_d2.data.importing.source import Source
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
examples:
  python tools/import_dataset.py VOC2007 --base "cat,dog,car" --output my_data
  python tools/import_dataset.py boxes.csv --images photographs --output my_data
Images stay where they are. What was left out and why is printed and, case by case, in report.txt.
"""


def share(text: str) -> float:
    """A number from 0 to below 1, for argparse."""
    if not 0 <= (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of the data set, or its one file")
    parser.add_argument("--output", required=True, type=Path, help="a folder, which is made")
    parser.add_argument(
        "--format",
        choices=READERS,
        help="(default: by looking) "
        + "; ".join(f"{k}: {one.title}" for k, one in READERS.items()),
    )
    parser.add_argument(
        "--images", type=Path, help="folder of the images, where they are not there"
    )
    parser.add_argument(
        "--base",
        help="names that are trained on, comma-separated or a file with one per line; all others "
        "are novel (default: none is held out)",
    )
    parser.add_argument("--name", default="my", help="of the data sets: my_train, my_val")
    parser.add_argument(
        "--val",
        type=share,
        default=0.2,
        help="share of the images to evaluate on, where no split is given (default: 0.2)",
    )
    parser.add_argument(
        "--background",
        action="store_true",
        help="images without annotation show nothing; otherwise they are left out",
    )
    parser.add_argument(
        "--from-zero", action="store_true", help="VOC: pixels count from 0, not from 1"
    )
    parser.add_argument(
        "--drop-difficult", action="store_true", help="VOC: leave out what is marked difficult"
    )
    parser.add_argument(
        "--predictions",
        action="store_true",
        help="Label Studio: take a model's predictions where nobody has annotated",
    )
    return parser.parse_args(arguments)


@exit_with_message(SetupError, FileExistsError)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    choices = Choices(args.from_zero, not args.drop_difficult, args.predictions)
    base = None if args.base is None else read_base(args.base)
    wish = Wish(args.name, base, args.val, args.background, choices)
    source = Source(args.source, args.images)
    imported = import_dataset(source, wish, args.format)
    print(write_imported(imported, source, wish, args.output))
    print(f"\nwritten: {args.output / YAML}")


if __name__ == "__main__":
    main()
