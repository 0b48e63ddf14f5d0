#!/usr/bin/env python
"""Export a trained detector to ONNX; the names that it looks for stay an input."""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.data.images import checked_image
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.evaluation import results_table
from ovd_d2.predictor import OpenVocabularyPredictor

EPILOG = """
examples:
  tools/export_onnx.py --config-file configs/pictograms/vild_ensemble.yaml \\
      --output exported/vild.onnx --check "scenes/*.png" \\
      MODEL.WEIGHTS output/demo/seed0/vild_ensemble/model_final.pth

  the same in int8, and what that costs in AP on DATASETS.TEST:
  tools/export_onnx.py --config-file configs/pictograms/vild_ensemble.yaml \\
      --output exported/vild_int8.onnx --int8 "datasets/pictograms_v1/train/0000*.png" --evaluate \\
      MODEL.WEIGHTS output/demo/seed0/vild_ensemble/model_final.pth

Writes vild.onnx, vild.json (sizes, channels, names, thresholds) and vild.safetensors (the words
of the config's vocabulary, which are the other inputs; tools/build_vocabulary.py makes more).
docs/export/run_onnx.py runs them with NumPy and onnxruntime. MODEL.MASK_ON False leaves masks out.
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the trained model")
    parser.add_argument("--output", required=True, type=Path, help="the file, *.onnx")
    parser.add_argument(
        "--check",
        metavar="IMAGES",
        help="a file or a quoted pattern: images to compare onnxruntime and PyTorch on",
    )
    parser.add_argument(
        "--int8",
        metavar="IMAGES",
        help="the same: write a network in int8, calibrated on these images; a hundred that are "
        "like those it will see",
    )
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="AP on DATASETS.TEST of PyTorch and of what was written; files go to a folder of its "
        "name",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args(args)


def checked_files(option: str, pattern: str | None) -> list[str]:
    """The files of an option."""
    files = sorted(glob.glob(pattern)) if pattern else []
    if pattern and not files:
        raise SetupError([f"{option}: no file matches '{pattern}'"])
    return files


@exit_with_message(SetupError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        from ovd_d2.export import (
            OnnxDetector,
            OnnxModel,
            check_parity,
            evaluate,
            export_detector,
        )
        from ovd_d2.export.detector import output_problems
    except ModuleNotFoundError as error:
        raise SetupError([f"{error}: pip install 'ovd_d2[onnx]'"]) from error
    if problems := output_problems(args.output):
        raise SetupError(problems)
    checked, calibrating = checked_files("--check", args.check), checked_files("--int8", args.int8)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if args.evaluate and not cfg.DATASETS.TEST:
        raise SetupError(["--evaluate: DATASETS.TEST names no data set: set it to some"])
    predictor = OpenVocabularyPredictor(cfg)
    model = predictor.model
    images, calibration = (
        [predictor.network_image(checked_image(file)) for file in files]
        for files in (checked, calibrating)
    )
    network = export_detector(cfg, model, args.output, calibration or None)
    print(f"wrote {args.output} with .json and .safetensors beside it")
    detector = OnnxDetector(args.output)
    if images:
        print(check_parity(network, model, detector, images))
    if args.evaluate:
        cfg.OUTPUT_DIR = str(args.output.with_suffix(""))
        forms = {"pytorch": model, "onnxruntime": OnnxModel(network, model, detector)}
        print(results_table(evaluate(cfg, args, forms)))


if __name__ == "__main__":
    main()
