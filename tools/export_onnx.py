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
from ovd_d2.predictor import OpenVocabularyPredictor

EPILOG = """
example:
  tools/export_onnx.py --config-file configs/pictograms/vild_ensemble.yaml \\
      --output exported/vild.onnx --check "scenes/*.png" \\
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
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args(args)


def checked_files(pattern: str | None) -> list[str]:
    """The files of `--check`."""
    files = sorted(glob.glob(pattern)) if pattern else []
    if pattern and not files:
        raise SetupError([f"--check: no file matches '{pattern}'"])
    return files


@exit_with_message(SetupError, ValueError)
def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        from ovd_d2.export import OnnxDetector, check_parity, export_detector
        from ovd_d2.export.detector import output_problems
    except ModuleNotFoundError as error:
        raise SetupError([f"{error}: pip install 'ovd_d2[onnx]'"]) from error
    if problems := output_problems(args.output):
        raise SetupError(problems)
    files = checked_files(args.check)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    predictor = OpenVocabularyPredictor(cfg)
    images = [predictor.network_image(checked_image(file)) for file in files]
    network = export_detector(cfg, predictor.model, args.output)
    print(f"wrote {args.output} with .json and .safetensors beside it")
    if images:
        print(check_parity(network, predictor.model, OnnxDetector(args.output), images))


if __name__ == "__main__":
    main()
