#!/usr/bin/env python
"""Make a panoptic data set of instance masks, and one of semantic segmentation."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.data import MetadataCatalog

from ovd_d2.data.registration import register_data_sets
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.projects.clipself.segment_sets import SegmentFiles, write_panoptic

EPILOG = """example:
  python projects/CLIPSelf/tools/write_panoptic.py --dataset pictograms_v1_val
writes beside its annotation file; pictograms_v1_val_regions, ..._panoptic and ..._semantic read it
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="registered, with masks")
    parser.add_argument("--output", type=Path, help="folder (default: of its annotation file)")
    return parser.parse_args()


@exit_with_message(SetupError, OSError, KeyError, ValueError)
def main() -> None:
    args = parse_args()
    register_data_sets()
    folder = args.output or Path(MetadataCatalog.get(args.dataset).json_file).parent
    files = SegmentFiles.beside(folder, args.dataset)
    count = write_panoptic(args.dataset, files)
    print(f"{count} segments in {files.json_file}")


if __name__ == "__main__":
    main()
