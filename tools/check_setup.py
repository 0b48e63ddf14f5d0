#!/usr/bin/env python
"""Look at everything a training or an evaluation needs, and list every problem with its fix."""

from __future__ import annotations

import argparse
import logging

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from tabulate import tabulate

from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.estimates import checkpoint_bytes, estimate_training_memory
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import free_bytes, readable_bytes

EPILOG = """
example:
  python tools/check_setup.py --config-file configs/pictograms/vild.yaml \\
      MODEL.OVD.DISTILLATION.CACHE output/demo/seed0/cache
Exit status 1 if there is a problem. tools/train_net.py makes the same checks before it starts.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--eval-only", action="store_true", help="what an evaluation needs")
    parser.add_argument("--num-gpus", type=int, default=1, help="images are shared among them")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args()


def print_needs(cfg: CfgNode, num_gpus: int) -> None:
    cfg = DefaultTrainer.auto_scale_workers(cfg, num_gpus)  # as the trainer does
    images = max(1, cfg.SOLVER.IMS_PER_BATCH // num_gpus)
    memory = estimate_training_memory(cfg, images)
    rows = [
        [f"memory a process, {images} images", f"{readable_bytes(memory.total)} at least"],
        ["  of it activations", readable_bytes(memory.activations)],
        ["checkpoints, all of them", readable_bytes(checkpoint_bytes(cfg))],
        [f"free on the disk of {cfg.OUTPUT_DIR}", readable_bytes(free_bytes(cfg.OUTPUT_DIR))],
    ]
    if memory.teacher:
        rows.insert(2, ["  of it the online teacher", readable_bytes(memory.teacher)])
    print(tabulate(rows, ["needs (estimated)", ""], tablefmt="simple"))
    if checkpoint_bytes(cfg) > free_bytes(cfg.OUTPUT_DIR):
        raise SetupError(
            [
                f"the checkpoints will not fit on the disk of OUTPUT_DIR {cfg.OUTPUT_DIR}: name "
                "another folder or raise SOLVER.CHECKPOINT_PERIOD"
            ]
        )


@exit_with_message(SetupError)
def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args.config_file, args.opts)
    notices = idle_key_notices(cfg) + check_setup(cfg, training=not args.eval_only)
    if not args.eval_only:
        print_needs(cfg, args.num_gpus)
    for notice in notices:
        print(f"note: {notice}")
    print("Everything needed is there and fits.")


if __name__ == "__main__":
    main()
