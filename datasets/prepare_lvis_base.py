#!/usr/bin/env python3
"""Writes lvis_v1_train_norare.json: LVIS v1 train without the annotations of rare categories.

For programs that want the file. This project needs none: its data set lvis_v1_train_norare drops
the same annotations when it loads the official file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ovd_d2.data.lvis_base import write_lvis_base
from ovd_d2.data.paths import datasets_root

_EXAMPLE = """examples:
  # lvis/lvis_v1_train.json -> lvis/lvis_v1_train_norare.json, 866 base and 337 novel categories
  python datasets/prepare_lvis_base.py
  # any LVIS-format file
  python datasets/prepare_lvis_base.py --input mine.json --output mine_norare.json
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = datasets_root() / "lvis"
    parser.add_argument("--input", type=Path, default=folder / "lvis_v1_train.json")
    parser.add_argument("--output", type=Path, default=folder / "lvis_v1_train_norare.json")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        counts = write_lvis_base(args.input, args.output, overwrite=args.overwrite)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{counts.base} base and {counts.novel} novel categories")
    print(f"{counts.annotations_kept:,} annotations kept, {counts.annotations_removed:,} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
