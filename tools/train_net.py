#!/usr/bin/env python
"""Train or evaluate an open-vocabulary detector, as Detectron2's own train_net.py does."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ovd_d2.engine.launching import launch_processes
from ovd_d2.engine.run import evaluate, load_config, train
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
examples:
  train on one machine (the recipes without _short are for 64 GPUs: docs/recipes.md):
    tools/train_net.py --config-file configs/vild_r50_short.yaml --num-gpus 8
  change an option:
    tools/train_net.py --config-file configs/vild_r50_short.yaml --num-gpus 8 MODEL.WEIGHTS r50.pkl
  evaluate a checkpoint:
    tools/train_net.py --config-file configs/vild_r50_short.yaml --eval-only \\
        MODEL.WEIGHTS model_final.pth
  on the processor:
    tools/train_net.py --config-file configs/pictograms/vild_text.yaml MODEL.DEVICE cpu
"""


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    cfg: CfgNode = load_config(args.config_file, args.opts)
    if args.eval_only:
        evaluate(cfg, args)
    else:
        train(cfg, args)


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EPILOG)
    arguments = parser.parse_args()
    launch_processes(main, arguments)
