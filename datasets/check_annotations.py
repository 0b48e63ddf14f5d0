#!/usr/bin/env python3
"""Lists everything that is wrong with an annotation file, and writes a repaired copy."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog
from tabulate import tabulate

import ovd_d2.data.builtin  # noqa: F401  registers the data sets
from ovd_d2.data.annotation_files import read_annotations, write_annotations
from ovd_d2.data.validation import DatasetUse, Report, validate_dataset, validate_file
from ovd_d2.data.validation.fixing import Repairs, repair
from ovd_d2.errors import SetupError, exit_with_message

EXAMPLE = """
example:
  python datasets/check_annotations.py train.json
  python datasets/check_annotations.py train.json --images images --fix train-fixed.json
  OVD_DATASETS=my_data.yaml python datasets/check_annotations.py my_train --masks off
Exit status 1 if there is a problem (in the repaired copy, where one is written). Only the headers
of images are read, and those only where a size is missing; tools/check_setup.py looks at images.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="COCO- or LVIS-format JSON, or a registered data set")
    parser.add_argument(
        "--masks",
        choices=("polygon", "bitmask", "off"),
        default="polygon",
        help="INPUT.MASK_FORMAT, or off for MODEL.MASK_ON False (default: polygon)",
    )
    parser.add_argument("--test", action="store_true", help="the file is evaluated on")
    parser.add_argument("--fix", type=Path, metavar="OUT.json", help="write a repaired copy")
    parser.add_argument("--images", type=Path, help="their folder, for sizes that are missing")
    parser.add_argument(
        "--corners",
        action="store_true",
        help="confirms that boxes are [x1, y1, x2, y2], where that is suspected",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an OUT.json that exists")
    return parser.parse_args(arguments)


def check(file: str, use: DatasetUse) -> Report:
    """The report of a path or of a registered data set."""
    if Path(file).is_file():
        return validate_file(Path(file), use)
    if file in DatasetCatalog:
        return validate_dataset(file, use)
    raise FileNotFoundError(f"{file}: neither a file nor a registered data set")


def write_fixed(source: Path, args: argparse.Namespace) -> Repairs:
    """Repairs a copy; the input stays as it is.

    Raises:
        SetupError: the output is the input, or exists.
        ValueError: the file cannot be read.
    """
    target: Path = args.fix
    if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
        raise SetupError([f"--fix {target} is the input: name another file"])
    if target.exists() and not args.overwrite:
        raise SetupError([f"--fix {target} exists: name another file, or give --overwrite"])
    dataset = read_annotations(source)
    repairs = repair(dataset, images=args.images, corners=args.corners)
    write_annotations(target, dataset, overwrite=args.overwrite)
    return repairs


def print_report(report: Report) -> None:
    for problem in report.problems:
        print(f"problem: {problem}")
    for notice in report.notices:
        print(f"note: {notice}")
    if report.counts:
        rows = [[what, f"{count:,}"] for what, count in report.counts.items()]
        print(tabulate(rows, [report.source, ""], colalign=("left", "right")))


def print_repairs(repairs: Repairs, target: Path) -> None:
    rows = [[what, f"{count:,}"] for what, count in repairs.done.items()]
    rows = rows or [["nothing was to be repaired", ""]]
    print(tabulate(rows, [f"changed in {target}", "entries"], colalign=("left", "right")))
    for reason in repairs.left:
        print(f"left: {reason}")


@exit_with_message(OSError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use = DatasetUse(not args.test, args.masks != "off", args.masks.replace("off", "polygon"))
    report = check(args.file, use)
    print_report(report)
    if args.fix is not None:
        print_repairs(write_fixed(Path(report.source), args), args.fix)
        report = check(str(args.fix), use)
        print_report(report)
    if report.problems:
        sys.exit(f"{len(report.problems)} problem(s)")
    print("No problem found.")


if __name__ == "__main__":
    main()
