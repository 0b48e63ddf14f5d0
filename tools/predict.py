#!/usr/bin/env python
"""Detect whatever can be named in words, in any images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.data.augmentation import smallest_resize
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.predict_files import check_files, expand_inputs, predict_files, skipped_message
from ovd_d2.predictor import OpenVocabularyPredictor

EPILOG = """
example:
  tools/predict.py --config-file configs/pictograms/vild_ensemble.yaml \\
      --input "scenes/*.png" --names "red anchor, snowman" --output found \\
      MODEL.WEIGHTS output/demo/seed0/vild_ensemble/model_final.pth

Writes one drawing per image and detections.json. Without --names it looks for the vocabulary of
the config. Images that cannot be used are skipped and named at the end; exit status 1 then.
"""


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the trained model")
    parser.add_argument("--input", required=True, nargs="+", help="image files or glob patterns")
    parser.add_argument("--names", help="what to look for, comma-separated")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument(
        "--confidence-threshold",
        type=share,
        default=0.25,
        help="least score shown (default: %(default)s)",
    )
    parser.add_argument(
        "--no-distractors",
        action="store_true",
        help="do not let the names of the config's vocabulary compete with --names",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args(args)


@exit_with_message(SetupError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    names = [name.strip() for name in args.names.split(",")] if args.names is not None else None
    files = expand_inputs(args.input)
    cfg = load_config(args.config_file, args.opts)
    check_files(files, args.output, smallest_resize(cfg, is_train=False))  # before the model loads
    predictor = OpenVocabularyPredictor(cfg, distractors=not args.no_distractors)
    found = predict_files(
        predictor,
        files,
        args.output,
        names=names,
        confidence_threshold=args.confidence_threshold,
    )
    total = sum(map(len, found.detections.values()))
    where = args.output / "detections.json"
    print(f"{total} detections in {len(found.detections)} images: {where}")
    if found.skipped:
        sys.exit(skipped_message(found.skipped, len(files)))


if __name__ == "__main__":
    main()
