#!/usr/bin/env python
"""A trained GLIP on every detection set below a folder (ODinW, RF100-VL), zero- and few-shot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils import comm

from ovd_d2.engine.config_keys import default_config
from ovd_d2.engine.launching import add_launch_arguments, launch_processes
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.projects.glip.folders import (
    Plan,
    evaluate_folders,
    find_sets,
    folders_table,
    read_prompts,
    select_sets,
    write_report,
)

EPILOG = """examples:
  ODinW-13 as it is, with hand-written prompts for four of its sets:
    python projects/GLIP/tools/evaluate_folders.py \\
        --config-file projects/GLIP/configs/glip_t.yaml --root datasets/odinw --sets odinw13 \\
        --prompts projects/GLIP/configs/odinw_prompts.yaml \\
        MODEL.WEIGHTS glip_t/model.pth OUTPUT_DIR output/odinw13
  the same after fine-tuning on 1 and 3 images of every category, three seeds each:
    python projects/GLIP/tools/evaluate_folders.py \\
        --config-file projects/GLIP/configs/glip_t.yaml --root datasets/odinw --sets odinw13 \\
        --shots 1 3 MODEL.WEIGHTS glip_t/model.pth MODEL.GLIP.TUNING prompt \\
        OUTPUT_DIR output/odinw13_prompt
  RF100-VL's folders:
    python projects/GLIP/tools/evaluate_folders.py \\
        --config-file projects/GLIP/configs/glip_t.yaml --root datasets/rf100-vl --shots 0 10 \\
        MODEL.WEIGHTS glip_t/model.pth OUTPUT_DIR output/rf100

A folder with valid/ or test/ and COCO's JSON in them is a set; test/ is scored where it is there.
Stopped at any point, the same command goes on where it was. The table also goes to
OUTPUT_DIR/results.json.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--root", type=Path, required=True, help="folder of the sets")
    parser.add_argument(
        "--sets", nargs="+", default=[], help="odinw13, odinw35, or folders (default: all)"
    )
    parser.add_argument("--prompts", type=Path, help="yaml or JSON: what is asked for, by category")
    parser.add_argument(
        "--shots", nargs="+", default=["0"], help="images per category: 0, 1, 3, 5, 10, all (0)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[3, 30, 300], help="of the trainings (3 30 300)"
    )
    parser.add_argument("--epochs", type=int, default=200, help="of a training, at most (200)")
    add_launch_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    return with_options_of_lists(args, parser)


def with_options_of_lists(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """The pairs after a list of words, which argparse takes for words of it."""
    for key in ("sets", "shots"):
        words = getattr(args, key)
        begin = next((k for k, word in enumerate(words) if _is_key(word)), len(words))
        setattr(args, key, words[:begin])
        args.opts = [*words[begin:], *args.opts]
    if any(not (one == "all" or one.isdigit()) for one in args.shots) or not args.shots:
        parser.error(f"--shots takes numbers and 'all', got {' '.join(args.shots)}")
    if args.epochs < 1:
        parser.error("--epochs is at least 1")
    return args


def _is_key(word: str) -> bool:
    return word == "OUTPUT_DIR" or word.split(".")[0] in default_config()


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    sets = select_sets(find_sets(args.root), args.sets)
    prompts = read_prompts(args.prompts) if args.prompts else {}
    plan = Plan(args.shots, args.seeds, prompts, args.epochs)
    report = evaluate_folders(cfg, args, sets, plan)
    if comm.is_main_process():
        write_report(report, Path(cfg.OUTPUT_DIR) / "results.json")
        print(folders_table(report))


if __name__ == "__main__":
    launch_processes(main, parse_args())
