#!/usr/bin/env python
"""Write a CLIP's convolutional image tower as initial weights of a detector's backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ovd_d2.clip.loading import load_teacher
from ovd_d2.errors import exit_with_message
from ovd_d2.files import atomic_write

EPILOG = """
example:
  tools/convert_clip_backbone.py --architecture Pictogram-RN --pretrained shipped \\
      --output output/pictogram_backbone.pth
then train with MODEL.WEIGHTS output/pictogram_backbone.pth and, in the config,
MODEL.BACKBONE.NAME build_ovd_timm_fpn_backbone with the tower's TIMM_ARCHITECTURE.
"""
PREFIX = "backbone.bottom_up.body."  # of TimmBackbone under FPN in a Detectron2 checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", required=True, help="open_clip name with a timm tower")
    parser.add_argument("--pretrained", required=True, help="open_clip tag or local file")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write (.pth)")
    return parser.parse_args()


@exit_with_message(OSError, ValueError)
def main() -> None:
    args = parse_args()
    key = "--architecture, --pretrained"
    teacher = load_teacher(args.architecture, args.pretrained, key=key)
    weights = {PREFIX + name: value for name, value in teacher.timm_trunk_state().items()}
    with atomic_write(args.output) as temporary:
        torch.save({"model": weights}, temporary)
    print(f"{len(weights)} tensors of {teacher.fingerprint} in {args.output}")


if __name__ == "__main__":
    main()
