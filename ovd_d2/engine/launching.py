"""How the tools that take Detectron2's arguments start their processes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.engine import launch


def launch_processes(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Runs `main(args)` in as many processes as `--num-gpus` and `--num-machines` say.

    Args:
        main: a function of a module, so that other processes can find it.
        args: of Detectron2's `default_argument_parser`.
    """
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
