#!/usr/bin/env python3
"""Writes the OV-COCO split (48 base, 17 novel categories) from COCO's official annotations."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ovd_d2.data.ov_coco import build_ov_coco
from ovd_d2.data.paths import datasets_root

_EXAMPLE = """example:
  # reads coco/annotations/instances_{train,val}2017.json, writes coco/zero-shot/*_2.json
  python datasets/prepare_ov_coco.py
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder of all data sets (DETECTRON2_DATASETS or ./datasets)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        build_ov_coco(args.root, overwrite=args.overwrite)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
