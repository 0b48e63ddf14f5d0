#!/usr/bin/env python
"""Look at everything a training or an evaluation needs, and list every problem with its fix."""

from __future__ import annotations

import argparse
import logging

from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
example:
  python tools/check_setup.py --config-file configs/pictograms/vild.yaml \\
      MODEL.VILD.DISTILLATION.CACHE output/demo/seed0/cache
Exit status 1 if there is a problem. tools/train_net.py makes the same checks before it starts.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--eval-only", action="store_true", help="what an evaluation needs")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser.parse_args()


@exit_with_message(SetupError)
def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args.config_file, args.opts)
    notices = idle_key_notices(cfg) + check_setup(cfg, training=not args.eval_only)
    for notice in notices:
        print(f"note: {notice}")
    print("Everything needed is there and fits.")


if __name__ == "__main__":
    main()
