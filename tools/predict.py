#!/usr/bin/env python
"""Detect whatever can be named in words or shown in example images, in images and videos."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.captions import Caption, Span
from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.engine.launching import add_launch_arguments, launch_processes, on_main_process
from ovd_d2.engine.run import load_config
from ovd_d2.entries import Entry, Example, entries_of_text, read_entries, with_example
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.model_folder import pretrained_config
from ovd_d2.predict_files import (
    DRAWINGS,
    OUTPUTS,
    Request,
    check_files,
    expand_inputs,
    nothing_message,
    predict_files,
    skipped_message,
)
from ovd_d2.predictor import THRESHOLD, Names, OpenVocabularyPredictor
from ovd_d2.vocabulary import Vocabulary

CALIBRATED = "calibrated"
EPILOG = """
examples:
  python tools/predict.py --model output/my_model --input photographs \\
      --names "red car, sofa|couch" --output found
  python tools/predict.py --config-file configs/pictograms/vild_ensemble.yaml \\
      --input "scenes/*.png" --names "red anchor, snowman" --output found \\
      MODEL.WEIGHTS output/demo/seed0/vild_ensemble/model_final.pth
  python tools/predict.py --model output/my_glip --input scenes --output found \\
      --caption "a red anchor left of two suns" --spans 2:12 25:29

Writes detections.json and what --write names. Without names it looks for the vocabulary of the
model. A run that was stopped goes on where it was when the same command is given again. Images that
cannot be used are skipped and named at the end; exit status 1 then.
"""


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def share_or_calibrated(text: str) -> float | None:
    """A number from 0 to 1, or None for the word "calibrated", for argparse."""
    return None if text == CALIBRATED else share(text)


def span(text: str) -> Span:
    """Two numbers with a colon between them, for argparse."""
    first, _, end = text.partition(":")
    try:
        return int(first), int(end)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no FIRST:END, such as 2:12") from error


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="a model folder, or owner/name of one on the hub")
    model.add_argument("--config-file", help="config of the trained model")
    parser.add_argument(
        "--input", required=True, nargs="+", help="images, videos, folders or glob patterns"
    )
    add_names_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument(
        "--write",
        nargs="*",
        choices=OUTPUTS,
        default=[DRAWINGS],
        help="what else than detections.json (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold", type=share, default=THRESHOLD, help="least score (default: %(default)s)"
    )
    parser.add_argument(
        "--least-presence",
        type=share_or_calibrated,
        default=0.0,
        metavar="SHARE",
        help="names less likely than this to be in an image give nothing there; 'calibrated': what "
        "tools/calibrate_presence.py has chosen",
    )
    parser.add_argument(
        "--tile",
        type=positive,
        default=0,
        metavar="SIDE",
        help="look at larger images in tiles of so many px, too, and merge what is found",
    )
    parser.add_argument(
        "--tile-overlap", type=share, default=0.2, help="of neighbouring tiles (default: 0.2)"
    )
    parser.add_argument(
        "--batch", type=positive, default=1, help="images at once, of one padded size (default: 1)"
    )
    parser.add_argument(
        "--every", type=positive, default=1, help="of a video, every so-manieth frame (default: 1)"
    )
    parser.add_argument(
        "--no-distractors",
        action="store_true",
        help="do not let the names of the model's vocabulary compete with those given",
    )
    add_launch_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    parsed = parser.parse_args(args)
    if parsed.tile_overlap >= 1:
        parser.error("--tile-overlap must be below 1")
    if problem := names_problem(parsed):
        parser.error(problem)
    return parsed


def add_names_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look for."""
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--names", help="what to look for, comma-separated; | between words that mean one thing"
    )
    names.add_argument(
        "--vocabulary", type=Path, help="a vocabulary (.safetensors) or its description (.yaml)"
    )
    names.add_argument(
        "--caption", help="a text whose phrases to look for, with a detector that reads captions"
    )
    parser.add_argument(
        "--spans",
        type=span,
        nargs="+",
        metavar="FIRST:END",
        help="characters of each phrase of --caption, counted from 0, END not included (default: "
        "its noun phrases; needs the extra 'phrases')",
    )
    parser.add_argument(
        "--like",
        action="append",
        default=[],
        metavar="CROP=NAME",
        help="an example image of a name; may be given several times",
    )


def names_problem(args: argparse.Namespace) -> str:
    """Which of what is to be looked for does not go together; empty: all does."""
    if args.like and args.vocabulary and args.vocabulary.suffix == ".safetensors":
        return "--like goes with --names or a YAML --vocabulary"
    if args.caption is None and args.spans:
        return "--spans are of a --caption: give it"
    if args.caption is not None and args.like:
        return "--like goes with --names or a YAML --vocabulary, not with --caption"
    return ""


def entries_of(args: argparse.Namespace) -> list[Entry]:
    """What --names, a YAML --vocabulary and --like say.

    Raises:
        SetupError: a --like without a name.
    """
    entries = read_entries(args.vocabulary) if args.vocabulary else []
    if args.names is not None:
        entries = entries_of_text(args.names)
    for text in args.like:
        file, _, name = (part.strip() for part in text.rpartition("="))
        if not (file and name):
            raise SetupError([f"--like {text}: expected FILE=NAME"])
        entries = with_example(entries, name, Example(file))
    return entries


def names_of(args: argparse.Namespace, predictor: OpenVocabularyPredictor) -> Names | None:
    """What to look for; made once for all images."""
    if args.vocabulary and args.vocabulary.suffix == ".safetensors":
        return Vocabulary.load(args.vocabulary)
    if args.caption is not None:
        return Caption(args.caption, args.spans)
    if args.vocabulary or args.names is not None or args.like:
        return predictor.vocabulary_of(entries_of(args))
    return None


def least_presence_of(args: argparse.Namespace, predictor: OpenVocabularyPredictor) -> float:
    """What --least-presence says.

    Raises:
        SetupError: "calibrated", but the model was not.
    """
    if args.least_presence is not None:
        return float(args.least_presence)
    predictor.check_presence(1.0)
    return 0.0 if predictor.presence is None else predictor.presence.least


def checked_files(args: argparse.Namespace) -> list[Path]:
    """What --input names; raises what makes a run impossible, before the model loads."""
    files = expand_inputs(args.input, drawings=DRAWINGS in args.write)
    check_files(files, args.output, smallest_resize(config_of(args), is_train=False))
    return files


def config_of(args: argparse.Namespace) -> CfgNode:
    """Of the model folder, or the config file's."""
    if args.model:
        return pretrained_config(args.model, options=args.opts)
    return load_config(args.config_file, args.opts)


@exit_with_message(SetupError, ValueError, FileNotFoundError)
def main(args: argparse.Namespace) -> None:
    files = on_main_process(partial(checked_files, args))
    predictor = OpenVocabularyPredictor(config_of(args), distractors=not args.no_distractors)
    request = Request(
        names_of(args, predictor),
        args.threshold,
        tuple(args.write),
        args.tile,
        args.tile_overlap,
        args.every,
        least_presence_of(args, predictor),
        args.batch,
    )
    found = predict_files(predictor, files, args.output, request)
    if not comm.is_main_process():
        return
    total = sum(map(len, found.detections.values()))
    where = args.output / "detections.json"
    print(f"{total} detections in {len(found.detections)} images: {where}")
    if not total and found.detections:
        print(nothing_message(found.best_scores, args.threshold, request.least_presence))
    if found.skipped:
        sys.exit(skipped_message(found.skipped, len(files)))


if __name__ == "__main__":
    launch_processes(main, parse_args())
