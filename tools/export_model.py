#!/usr/bin/env python
"""Write a trained detector as a model folder, and push it to the Hugging Face hub when asked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import read_text
from ovd_d2.model_folder import Card, export_model, push_model

EXAMPLE = """
example:
  python tools/export_model.py --training output/demo/seed0/vild_ensemble \\
      --license apache-2.0 --output output/my_model
  python tools/predict.py --model output/my_model --input "scenes/*.png" --names "red anchor" \\
      --output found

The folder is a training's OUTPUT_DIR: its config.yaml, model_final.pth and metrics.json are read.
"""
METRICS = "metrics.json"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True, type=Path, help="its OUTPUT_DIR")
    parser.add_argument("--output", required=True, type=Path, help="the model folder to be made")
    parser.add_argument(
        "--license", required=True, help="of the weights, as the hub spells it: apache-2.0, other"
    )
    parser.add_argument("--weights", default="model_final.pth", help="checkpoint in that folder")
    parser.add_argument("--about", default="", help="a sentence for the model card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="make what --push makes private")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args()


def metrics_of(folder: Path) -> dict[str, float]:
    """The last value of every AP and recall that a training has recorded."""
    path = folder / METRICS
    found: dict[str, float] = {}
    for line in read_text(path).splitlines() if path.is_file() else ():
        found |= {key: value for key, value in json.loads(line).items() if _is_metric(key)}
    return found


def _is_metric(key: str) -> bool:
    return "/AP" in key or "recall" in key.lower()


@exit_with_message(SetupError)
def main() -> None:
    args = parse_args()
    if not (args.training / "config.yaml").is_file():
        raise SetupError([f"{args.training} has no config.yaml: name the OUTPUT_DIR of a training"])
    weights = ["MODEL.WEIGHTS", str(args.training / args.weights)]
    cfg = load_config(str(args.training / "config.yaml"), [*weights, *args.opts])
    card = Card(args.license, metrics_of(args.training), args.about)
    export_model(cfg, args.output, card)
    print(f"model folder: {args.output}")
    if args.push:
        print(f"pushed: {push_model(args.output, args.push, private=args.private)}")


if __name__ == "__main__":
    main()
