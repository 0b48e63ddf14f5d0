#!/usr/bin/env python
"""Boxes for the phrases of captions by a trained GLIP: a grounding set to train on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ovd_d2.engine import build_open_vocabulary_model
from ovd_d2.engine.launching import add_launch_arguments, launch_processes, on_main_process
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import fingerprint_json, sha256_file
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.pseudo_labels import (
    FINDERS,
    CaptionedImage,
    LabelRun,
    Settings,
    images_of_data_set,
    images_of_folder,
    label_images,
)
from ovd_d2.projects.glip.pseudo_labels.teacher import GLIPTeacher, write_sheet
from ovd_d2.ranks import RankError

EPILOG = """examples:
  the captions of a registered grounding set, whose boxes are not looked at:
    python projects/GLIP/tools/pseudo_label.py --config-file output/glip/config.yaml \\
        --dataset pictograms_v1_captions_train_all --output output/pseudo \\
        MODEL.WEIGHTS output/glip/model_final.pth
  a folder of images, and a text file with a line "FILE<TAB>a red anchor . two suns ." for each:
    python projects/GLIP/tools/pseudo_label.py --config-file output/glip/config.yaml \\
        --images photos --captions captions.tsv --output output/pseudo
  captions in English sentences, "FILE<TAB>A red anchor lies beside two suns.":
    pip install "ovd_d2[phrases]"
    python projects/GLIP/tools/pseudo_label.py --config-file output/glip/config.yaml \\
        --images photos --captions captions.tsv --phrases english --output output/pseudo

Stopped at any point, the same command goes on where it was, with any number of processes. The
result, pseudo_labels.json, is a grounding set in MDETR's layout. To train on it:
  DATASETS.OWN output/pseudo/data_set.yaml DATASETS.TRAIN "('lvis_v1_train_norare','pseudo_labels')"
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the teacher")
    parser.add_argument("--dataset", help="a registered grounding set")
    parser.add_argument("--images", type=Path, help="folder of images, with --captions")
    parser.add_argument("--captions", type=Path, help="text file: FILE<TAB>phrases, one per line")
    parser.add_argument(
        "--phrases",
        choices=list(FINDERS),
        help="what is looked for: the parts of a list, 'a red anchor . two suns .', or the noun "
        "phrases of English sentences (needs the extra 'phrases'); default: the spans of the data "
        "set, of --captions a list",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the labels")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of a box (default 0.5)"
    )
    parser.add_argument(
        "--phrase-threshold",
        type=float,
        help="least score of a phrase's best box, as the caption says that it is there (default: "
        "that of --threshold)",
    )
    parser.add_argument("--shard-size", type=int, default=100, help="images per shard (100)")
    add_launch_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    if (args.dataset is None) == (args.images is None) or bool(args.images) != bool(args.captions):
        parser.error("give either --dataset, or --images with --captions")
    if args.shard_size < 1 or not 0 <= args.threshold < 1:
        parser.error("--shard-size is at least 1, --threshold from 0 to below 1")
    if args.phrase_threshold is None:
        args.phrase_threshold = args.threshold
    if not 0 <= args.phrase_threshold <= args.threshold:
        parser.error("--phrase-threshold is from 0 to --threshold")
    return args


def read_images(args: argparse.Namespace) -> list[CaptionedImage]:
    find = FINDERS.get(args.phrases)
    if args.dataset:
        return images_of_data_set(args.dataset, find)
    return images_of_folder(args.images, args.captions, find or FINDERS["list"])


def fingerprint_of(cfg: CfgNode) -> str:
    """Of the teacher: its weights, and what of its config changes a box."""
    model = cfg.MODEL.clone()
    weights = sha256_file(model.pop("WEIGHTS"))
    model.pop("DEVICE")
    return fingerprint_json([weights, model, cfg.INPUT, cfg.TEST.DETECTIONS_PER_IMAGE])


@exit_with_message(SetupError, RankError)
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    if not Path(cfg.MODEL.WEIGHTS).is_file():
        raise SetupError([f"MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}' is no file: name the teacher's"])
    images = on_main_process(lambda: read_images(args))
    tokenizer = load_tokenizer(cfg.MODEL.GLIP.TOKENIZER)
    teacher = GLIPTeacher(build_open_vocabulary_model(cfg), cfg, tokenizer)
    settings = Settings(fingerprint_of(cfg), args.threshold, args.phrase_threshold, args.shard_size)
    run = LabelRun(args.output, images, settings)
    statistics = label_images(images, teacher, run)
    if comm.is_main_process():
        write_sheet(list(run.entries()), args.output)
        print(json.dumps(statistics, indent=2))


if __name__ == "__main__":
    launch_processes(main, parse_args())
