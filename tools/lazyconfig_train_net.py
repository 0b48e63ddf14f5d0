#!/usr/bin/env python
"""Train or evaluate a LazyConfig, as Detectron2's own lazyconfig_train_net.py does."""

from __future__ import annotations

import argparse

from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser
from detectron2.utils.file_io import PathManager

from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.launching import launch_processes
from ovd_d2.engine.lazy import evaluate, train
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
examples:
  train, here with fewer iterations:
    tools/lazyconfig_train_net.py --config-file configs/pictograms/lazy_vitdet.py train.max_iter=10
  a recipe of 64 GPUs on 8 (Detectron2 does not rescale LazyConfigs; iterations stay as they are):
    tools/lazyconfig_train_net.py --config-file configs/new_baselines/vild_R_50_FPN_LSJ.py \\
        --num-gpus 8 dataloader.train.total_batch_size=32 optimizer.lr=0.04
  evaluate a checkpoint:
    tools/lazyconfig_train_net.py --config-file configs/pictograms/lazy_vitdet.py --eval-only \\
        train.init_checkpoint=output/pictograms/lazy_vitdet/model_final.pth
"""


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    register_data_sets()
    if not PathManager.isfile(args.config_file):
        raise SetupError([f"--config-file: no file at '{args.config_file}'"])
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    if args.eval_only:
        evaluate(cfg, args)
    else:
        train(cfg, args)


if __name__ == "__main__":
    arguments = default_argument_parser(epilog=EPILOG).parse_args()
    launch_processes(main, arguments)
