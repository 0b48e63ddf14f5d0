#!/usr/bin/env python
"""Region classification (mAcc) by the dense features of any CLIP ViT, refined or not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ovd_d2.clip import PROMPT_FAMILIES
from ovd_d2.clip.loading import load_teacher
from ovd_d2.engine.launching import add_device_argument, add_launch_arguments, launch_processes
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_write_json
from ovd_d2.projects.clipself.region_classification.standalone import RegionRun, evaluate_sizes

EPILOG = """examples:
  the original EVA02-CLIP on COCO's 133 categories, at three sizes, with image crops as the ceiling:
    python projects/CLIPSelf/tools/evaluate_regions.py --dataset coco_2017_val_regions \\
        --architecture EVA02-B-16 --pretrained merged2b_s8b_b131k --sizes 320 640 1024
  a refined one, as CLIPSelf's trainings export it or as its authors publish it:
    python projects/CLIPSelf/tools/evaluate_regions.py --dataset coco_2017_val_regions \\
        --architecture EVA02-B-16 --pretrained output/clipself/refined.pt --crops none
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="e.g. coco_2017_val_regions")
    parser.add_argument("--architecture", required=True, help="open_clip's name of a ViT")
    parser.add_argument("--pretrained", default="", help="an open_clip tag of it, or a file")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1024], help="longest side, pixels (default 1024)"
    )
    parser.add_argument(
        "--crops",
        choices=("image", "dense-mean", "none"),
        default="image",
        help="features of crops: CLS, the mean of the dense map, or leave crops out (faster)",
    )
    parser.add_argument(
        "--crop-scale", type=float, default=1.5, help="of a thing's box (published figures: 1.5)"
    )
    parser.add_argument(
        "--antialias",
        action="store_true",
        help="resize masks with antialiasing, as torchvision since 0.17 (published figures: not)",
    )
    parser.add_argument("--window", type=int, default=0, help="of attention, patches; 0: global")
    parser.add_argument("--global-blocks", type=int, nargs="*", default=[], help="from 0")
    parser.add_argument("--prompts", choices=sorted(PROMPT_FAMILIES), default="vild63")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default 2)")
    parser.add_argument("--output", type=Path, default=Path("output/regions"), help="folder")
    add_device_argument(parser)
    add_launch_arguments(parser)
    return parser.parse_args(argv)


@exit_with_message(SetupError, OSError, KeyError, ValueError)
def main(args: argparse.Namespace) -> dict[str, Any]:
    for name in ("detectron2", "ovd_d2"):
        setup_logger(distributed_rank=comm.get_rank(), name=name)
    device = args.device
    if comm.get_world_size() > 1 and device == "cuda":
        device = f"cuda:{comm.get_local_rank()}"
    teacher = load_teacher(
        args.architecture, args.pretrained, device, key="--architecture, --pretrained"
    )
    run = RegionRun(
        dataset=args.dataset,
        teacher=teacher,
        crops=args.crops,
        crop_scale=args.crop_scale,
        antialias=args.antialias,
        window=args.window,
        global_blocks=tuple(args.global_blocks),
        prompts=args.prompts,
        workers=args.workers,
    )
    results = evaluate_sizes(run, args.sizes, args.output)
    if comm.is_main_process():
        atomic_write_json(args.output / "results.json", results)
    return results


if __name__ == "__main__":
    arguments = parse_args()
    launch_processes(main, arguments)
